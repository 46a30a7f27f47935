"""Checkpoints for others: folders that load without this package, honest model cards, publishing."""

from .card import model_card, read_facts
from .publishing import PublishingError, files_to_publish, publish, publish_in_background
from .timm_layout import stand_alone

__all__ = [
    "PublishingError",
    "files_to_publish",
    "model_card",
    "publish",
    "publish_in_background",
    "read_facts",
    "stand_alone",
]
