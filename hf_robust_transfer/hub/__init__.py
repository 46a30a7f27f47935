"""Checkpoints for others: folders that load without this package, honest model cards, publishing."""

from .access import PublishingError, UnreachableHub, check_access
from .card import model_card, read_facts
from .exporting import export_classifier
from .publishing import files_to_publish, publish, publish_in_background
from .timm_layout import stand_alone

__all__ = [
    "PublishingError",
    "UnreachableHub",
    "check_access",
    "export_classifier",
    "files_to_publish",
    "model_card",
    "publish",
    "publish_in_background",
    "read_facts",
    "stand_alone",
]
