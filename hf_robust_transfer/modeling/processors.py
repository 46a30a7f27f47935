"""Image processors: what they do to pixels, and the size that they make images of."""

from math import isfinite
from typing import Any

from transformers import BaseImageProcessor
from transformers.video_processing_utils import BaseVideoProcessor

from ..errors import UsageError

LARGEST_SIDE = 8192  # of an image, in pixels


def pixel_statistics(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation, in [0, 1] pixel units, with which a checkpoint's image processor normalises.

    Raises:
        UsageError: it is no image processor, does something else to pixel values than ``(pixel - mean) / std``, or a std
            is not above 0.
    """
    if not isinstance(processor, BaseImageProcessor) or isinstance(processor, BaseVideoProcessor):
        within = isinstance(getattr(processor, "image_processor", None), BaseImageProcessor)
        raise UsageError(
            "the model's image processor is needed, whose normalisation happens inside, but there is"
            f" {'none' if processor is None else f'a {type(processor).__name__}'}: give"
            + (" its image_processor" if within else " what load_model returns beside the model, or AutoImageProcessor's")
        )
    mean, std = _statistics(processor)
    if not all(isfinite(value) for value in (*mean, *std)) or not all(value > 0 for value in std):
        raise UsageError(
            f"the image processor normalises with mean {mean} and std {std}: each std must be above 0, and both those of"
            " pixels in [0, 1], so divide those of 0 … 255 by 255"
        )
    return mean, std


def _statistics(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    data_config = getattr(processor, "data_config", None)
    if data_config is not None:  # timm
        return tuple(data_config["mean"]), tuple(data_config["std"])
    for flag in ("rescale_offset", "include_top", "do_flip_channel_order"):
        if getattr(processor, flag, False):
            raise UsageError(
                f"{type(processor).__name__} with {flag}=True is not supported: its pixels are not (x-mean)/std"
            )
    factor = getattr(processor, "rescale_factor", 1 / 255)
    if not getattr(processor, "do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        raise UsageError(f"{type(processor).__name__} must rescale pixels by 1/255, but has rescale_factor={factor}")
    if not getattr(processor, "do_normalize", False):
        return (0.0,), (1.0,)
    return tuple(processor.image_mean), tuple(processor.image_std)


def check_processor(processor: BaseImageProcessor) -> None:
    """Make sure that an image processor makes images of a possible size, and normalises them with a standard deviation.

    Raises:
        UsageError: it does not.
    """
    pixel_statistics(processor)
    data_config = getattr(processor, "data_config", None)
    sizes = [getattr(processor, name, None) or {} for name in ("size", "crop_size")]
    sides = [side for size in sizes for side in dict(size).values()] if data_config is None else data_config["input_size"]
    for side in sides:
        if side is not None and not 1 <= side <= LARGEST_SIDE:
            raise UsageError(f"its image processor makes images of {side} pixels: a side has 1 to {LARGEST_SIDE}")
