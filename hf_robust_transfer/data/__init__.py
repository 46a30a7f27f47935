"""Data: load and choose images, decode them to [0, 1] pixels, augment."""

from .augmentation import augment, mirrored
from .pixels import Indexed, PixelDataset, as_pixels, collate, to_pixels
from .splits import DataArguments, ImageSplits, choose_splits, load_evaluation_split, load_image_splits

__all__ = [
    "DataArguments",
    "ImageSplits",
    "Indexed",
    "PixelDataset",
    "as_pixels",
    "augment",
    "choose_splits",
    "collate",
    "load_evaluation_split",
    "load_image_splits",
    "mirrored",
    "to_pixels",
]
