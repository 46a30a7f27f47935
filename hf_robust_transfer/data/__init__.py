"""Data: load and choose images, decode them to [0, 1] pixels, augment."""

from .arguments import DataArguments
from .augmentation import augment, mirrored
from .decoding import to_grey, to_rgb
from .given import as_pixel_dataset, choose_split
from .labels import as_labels_of, match_labels
from .pixels import Indexed, PixelDataset, as_pixels, collate
from .processing import image_channels, to_pixels
from .splits import ImageSplits, choose_splits, load_evaluation_split, load_image_splits

__all__ = [
    "DataArguments",
    "ImageSplits",
    "Indexed",
    "PixelDataset",
    "as_labels_of",
    "as_pixel_dataset",
    "as_pixels",
    "augment",
    "choose_split",
    "choose_splits",
    "collate",
    "image_channels",
    "load_evaluation_split",
    "load_image_splits",
    "match_labels",
    "mirrored",
    "to_grey",
    "to_pixels",
    "to_rgb",
]
