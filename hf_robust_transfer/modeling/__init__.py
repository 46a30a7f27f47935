"""Any image-classification checkpoint as a classifier over [0, 1] pixels; new heads; CIFAR networks; imports."""

from .classifier import ClassifierOutput, PixelClassifier, classifier_layer, pixel_statistics
from .importing import import_checkpoint
from .loading import create_model, load_model, replace_head

__all__ = [
    "ClassifierOutput",
    "PixelClassifier",
    "classifier_layer",
    "create_model",
    "import_checkpoint",
    "load_model",
    "pixel_statistics",
    "replace_head",
]
