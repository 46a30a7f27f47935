"""Any image-classification checkpoint as a classifier over [0, 1] pixels; new heads; CIFAR networks; imports.

The names below load on first use, so that importing `cifar` alone, which registers the networks, takes no more than timm.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .classifier import ClassifierOutput, PixelClassifier
    from .creating import create_model
    from .heads import classifier_layers, replace_head
    from .importing import import_checkpoint
    from .loading import load_model
    from .processors import pixel_statistics

__all__ = [
    "ClassifierOutput",
    "PixelClassifier",
    "classifier_layers",
    "create_model",
    "import_checkpoint",
    "load_model",
    "pixel_statistics",
    "replace_head",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "classifier": ("ClassifierOutput", "PixelClassifier"),
        "heads": ("classifier_layers", "replace_head"),
        "importing": ("import_checkpoint",),
        "creating": ("create_model",),
        "loading": ("load_model",),
        "processors": ("pixel_statistics",),
    },
)
