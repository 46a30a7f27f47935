"""Adversarially robust transfer learning for Hugging Face image classifiers.

The names below load on first use, so that importing the package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attacks.fgsm import fgsm
    from .attacks.pgd import pgd
    from .data import DataArguments, ImageSplits, PixelDataset, load_image_splits
    from .evaluation import RobustnessReport, evaluate_robustness, load_metric
    from .evaluation.evaluator import RobustnessEvaluator
    from .modeling import PixelClassifier, create_model, import_checkpoint, load_model, replace_head
    from .threat_model import ThreatModel
    from .trainer import RobustTrainer
    from .training_args import RobustTrainingArguments
    from .transfer import blocks, describe, feature_distance, freeze

__version__ = "0.1.0"

_HOMES = {
    "attacks": ("fgsm", "pgd"),
    "data": ("DataArguments", "ImageSplits", "PixelDataset", "load_image_splits"),
    "evaluation": ("RobustnessReport", "evaluate_robustness", "load_metric"),
    "evaluation.evaluator": ("RobustnessEvaluator",),
    "modeling": ("PixelClassifier", "create_model", "import_checkpoint", "load_model", "replace_head"),
    "threat_model": ("ThreatModel",),
    "trainer": ("RobustTrainer",),
    "training_args": ("RobustTrainingArguments",),
    "transfer": ("blocks", "describe", "feature_distance", "freeze"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
