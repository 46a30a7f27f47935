"""Adversarially robust transfer learning for Hugging Face image classifiers.

The names below load on first use, so that importing the package is cheap.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_names
from .registration import register_architectures

if TYPE_CHECKING:
    from .attacks.fgsm import fgsm
    from .attacks.pgd import pgd
    from .attacks.until_fooled import pgd_until_fooled
    from .data import DataArguments, ImageSplits, PixelDataset, load_image_splits
    from .evaluation import RobustnessReport, evaluate_robustness, load_metric
    from .evaluation.evaluator import RobustnessEvaluator
    from .modeling import PixelClassifier, create_model, import_checkpoint, load_model, replace_head
    from .modeling.fast import fast_copy
    from .threat_model import ThreatModel
    from .trainer import RobustTrainer
    from .training_args import RobustTrainingArguments
    from .transfer import blocks, describe, feature_distance, freeze

__version__ = "0.1.0"

_HOMES = {
    "attacks": ("fgsm", "pgd", "pgd_until_fooled"),
    "data": ("DataArguments", "ImageSplits", "PixelDataset", "load_image_splits"),
    "evaluation": ("RobustnessReport", "evaluate_robustness", "load_metric"),
    "evaluation.evaluator": ("RobustnessEvaluator",),
    "modeling": ("PixelClassifier", "create_model", "import_checkpoint", "load_model", "replace_head"),
    "modeling.fast": ("fast_copy",),
    "threat_model": ("ThreatModel",),
    "trainer": ("RobustTrainer",),
    "training_args": ("RobustTrainingArguments",),
    "transfer": ("blocks", "describe", "feature_distance", "freeze"),
}

__all__ = [
    "DataArguments",
    "ImageSplits",
    "PixelClassifier",
    "PixelDataset",
    "RobustTrainer",
    "RobustTrainingArguments",
    "RobustnessEvaluator",
    "RobustnessReport",
    "ThreatModel",
    "blocks",
    "create_model",
    "describe",
    "evaluate_robustness",
    "fast_copy",
    "feature_distance",
    "fgsm",
    "freeze",
    "import_checkpoint",
    "load_image_splits",
    "load_metric",
    "load_model",
    "pgd",
    "pgd_until_fooled",
    "replace_head",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
register_architectures()
