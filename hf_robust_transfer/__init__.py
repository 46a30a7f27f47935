"""Adversarially robust transfer learning for Hugging Face image classifiers.

The names below load on first use, so that importing the package is cheap.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .attacks.early_stopping import early_stopping_pgd
    from .attacks.fgsm import fgsm
    from .attacks.pgd import pgd
    from .data import DataArguments, ImageSplits, PixelDataset, load_image_splits
    from .evaluation import RobustnessReport, evaluate_robustness, load_metric
    from .evaluation.evaluator import RobustnessEvaluator
    from .modeling import PixelClassifier, create_model, import_checkpoint, load_model, replace_head
    from .modeling.attack_copy import attack_copy
    from .threat_model import ThreatModel
    from .training import RobustTrainer, RobustTrainingArguments
    from .transfer import blocks, describe, feature_distance, freeze

__version__ = "0.1.0"

_HOMES = {
    "attacks": ("early_stopping_pgd", "fgsm", "pgd"),
    "data": ("DataArguments", "ImageSplits", "PixelDataset", "load_image_splits"),
    "evaluation": ("RobustnessReport", "evaluate_robustness", "load_metric"),
    "evaluation.evaluator": ("RobustnessEvaluator",),
    "modeling": ("PixelClassifier", "create_model", "import_checkpoint", "load_model", "replace_head"),
    "modeling.attack_copy": ("attack_copy",),
    "threat_model": ("ThreatModel",),
    "training": ("RobustTrainer", "RobustTrainingArguments"),
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
    "attack_copy",
    "blocks",
    "create_model",
    "describe",
    "early_stopping_pgd",
    "evaluate_robustness",
    "feature_distance",
    "fgsm",
    "freeze",
    "import_checkpoint",
    "load_image_splits",
    "load_metric",
    "load_model",
    "pgd",
    "replace_head",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
