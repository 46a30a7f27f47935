"""Image processors: what they do to pixels, and the size that they make images of."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from ..data import image_channels, to_pixels
from ..data.processing import check_is_image_processor
from ..errors import UsageError, listed

LARGEST_SIDE = 8192  # of an image, in pixels
_SEEN = ((48, 64), (64, 48), (56, 56))  # heights and widths of images that a processor is tried on


class Normalisation(NamedTuple):
    """What becomes of pixels in [0, 1]: ``(pixel - mean) / std`` of each channel; where ``flipped``, blue comes first."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flipped: bool


def pixel_statistics(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation, in [0, 1] pixel units, with which a checkpoint's image processor normalises.

    Returns:
        Both with one value for each channel of the image: red, green, blue, or grey.

    Raises:
        UsageError: whatever `normalisation` raises.
    """
    return normalisation(processor)[:2]


_known: dict[str, Normalisation] = {}


def normalisation(processor: Any) -> Normalisation:
    """How a checkpoint's image processor normalises, measured on images that it is given.

    Whatever its options are called, what it makes of pixels must be a line for each channel; blue may come first.

    Raises:
        UsageError: it is no image processor, it does something else, or a std is not above 0.

    Example:
        >>> from transformers import MobileViTImageProcessor
        >>> normalisation(MobileViTImageProcessor())
        Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), flipped=True)
    """
    check_is_image_processor(processor)
    channels = image_channels(processor)
    data_config = getattr(processor, "data_config", None)
    if data_config is not None:  # timm's transforms end with this
        _check_statistics(data_config["mean"], data_config["std"])
        return Normalisation(tuple(data_config["mean"]), tuple(data_config["std"]), flipped=False)
    key = f"{type(processor).__name__} {processor.to_json_string()}"
    if key not in _known:
        _known[key] = _measured(processor, channels)
    return _known[key]


def _measured(processor: Any, channels: int) -> Normalisation:
    name = type(processor).__name__
    stated = _stated(processor, channels)
    try:
        offset = _centre(processor, (0,) * channels)
        colours = (255 * np.eye(channels, dtype=int)).tolist()
        gains = torch.stack([_centre(processor, tuple(colour)) - offset for colour in colours], dim=1)  # out by in
        flipped = bool(gains.abs().argmax(dim=1)[0])
        if flipped:
            gains, offset, stated = gains.flip(0), offset.flip(0), [each[::-1] for each in stated]
        mean, std = -offset / gains.diag(), 1 / gains.diag()
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
        noise = noise if channels == 3 else noise.convert("L")
        seen, pixels = _output(processor, noise), to_pixels(processor)(noise)
        expected = (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        seen = seen.flip(0) if flipped else seen
        affine = torch.allclose(seen, expected, rtol=1e-4, atol=1e-4 * float(gains.abs().max()))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{name} makes no images of {channels} channel{'s'[: channels - 1]}: {reason}") from error
    _check_statistics(mean.tolist(), std.tolist())
    if not affine:
        raise UsageError(f"{name} does something else to pixels than (pixel - mean) / std for each channel by itself")
    means, stds = (tuple(map(_as_stated, each.tolist(), given)) for each, given in zip((mean, std), stated, strict=True))
    return Normalisation(means, stds, flipped)


def _as_stated(measured: float, stated: float) -> float:
    """The number as an option states it, where that is what was measured."""
    return float(stated) if abs(measured - stated) < 1e-5 + 1e-4 * abs(stated) else float(f"{measured:.6g}")


def _stated(processor: Any, channels: int) -> list[list[float]]:
    """The mean and standard deviation that a processor's options name, in the order of the channels that it makes."""
    if not getattr(processor, "do_normalize", False):
        return [[0.0] * channels, [1.0] * channels]
    given = (processor.image_mean, processor.image_std)
    mean, std = (list(each) if isinstance(each, Sequence) else [float(each)] * channels for each in given)
    _check_statistics(mean, std)
    if len(mean) != channels or len(std) != channels:
        raise UsageError(f"image_mean {mean} and image_std {std} of the image processor must have {channels} values each")
    return [mean, std]


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if not all(isfinite(value) for value in (*mean, *std)) or not all(value > 0 for value in std):
        raise UsageError(
            f"the image processor normalises with mean {tuple(mean)} and std {tuple(std)}: each std must be above 0, and"
            " both those of pixels in [0, 1], so divide those of 0 … 255 by 255"
        )


def _output(processor: Any, image: Image.Image) -> Tensor:
    """What a processor makes of an image, (C, H, W)."""
    made = processor(image, return_tensors="pt")
    others = [name for name in made if name != "pixel_values"]
    if others:
        raise ValueError(f"beside pixel_values it makes {listed(others)}, which a classifier over pixels has no place for")
    pixels: Tensor = made["pixel_values"]
    channels = len(image.getbands())
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[:2] != (1, channels):
        raise ValueError(
            f"its pixel_values have the shape {tuple(getattr(pixels, 'shape', ()))}, not (1, {channels}, H, W)"
        )
    return pixels[0].float()


def _centre(processor: Any, colour: tuple[int, ...]) -> Tensor:
    """What becomes of a colour, (C,), away from borders that some processors pad."""
    image = Image.new("RGB", (32, 32), colour) if len(colour) == 3 else Image.new("L", (32, 32), colour[0])
    made = _output(processor, image)
    return made[:, made.shape[1] // 2, made.shape[2] // 2]


def check_processor(processor: BaseImageProcessor) -> None:
    """Make sure that an image processor makes images of a possible size, and normalises them with a standard deviation.

    Raises:
        UsageError: it does not.
    """
    data_config = getattr(processor, "data_config", None)
    sizes = [getattr(processor, name, None) or {} for name in ("size", "crop_size")]
    sides = [side for size in sizes for side in dict(size).values()] if data_config is None else data_config["input_size"]
    for side in sides:
        if side is not None and not 1 <= side <= LARGEST_SIDE:
            raise UsageError(f"its image processor makes images of {side} pixels: a side has 1 to {LARGEST_SIDE}")
    normalisation(processor)


def image_sizes(processor: BaseImageProcessor) -> set[tuple[int, int]]:
    """The sizes (H, W) of the images that a processor makes: one, whatever it is given, if they can be batched.

    Example:
        >>> from transformers import ViTImageProcessor
        >>> image_sizes(ViTImageProcessor())
        {(224, 224)}
    """
    convert = to_pixels(processor)
    shapes = (convert(Image.new("RGB", (width, height))).shape for height, width in _SEEN)
    return {(shape[-2], shape[-1]) for shape in shapes}


def of_size(processor: BaseImageProcessor, height: int, width: int) -> BaseImageProcessor:
    """A copy of a `transformers` image processor that makes images of this size.

    What it resizes and crops to is scaled, so that it cuts off the same share as before. One that kept the shape of an
    image crops the centre now.

    Raises:
        UsageError: its class makes no images of that size.

    Example:
        >>> from transformers import DeiTImageProcessor
        >>> processor = of_size(DeiTImageProcessor(), 112, 112)
        >>> processor.size["height"], processor.crop_size["height"]
        (128, 112)
    """
    exactly = {"height": height, "width": width}
    attempts: list[dict[str, Any]] = []
    made = image_sizes(processor)
    if len(made) == 1:
        ((old_height, old_width),) = made
        scales = {"width": width / old_width}  # of the others, the height's
        attempts.append(
            {
                name: {key: max(1, round(side * scales.get(key, height / old_height))) for key, side in dict(size).items()}
                for name in ("size", "crop_size", "pad_size")
                if (size := getattr(processor, name, None))
            }
        )
        attempts.append({"crop_size": exactly, **attempts[0], "size": exactly})
    attempts.append(
        {"do_resize": True, "size": {"shortest_edge": max(height, width)}, "do_center_crop": True, "crop_size": exactly}
    )
    attempts.append({"do_resize": True, "size": exactly, "do_center_crop": True, "crop_size": exactly})
    for changes in attempts:
        changed = changed_processor(processor, **changes)
        try:
            if image_sizes(changed) == {(height, width)}:
                return changed
        except (ValueError, TypeError, RuntimeError, LookupError, AttributeError):  # a class without that kind of size
            continue
    raise UsageError(f"{type(processor).__name__} makes no images of {height}×{width} pixels, which the model needs")


def changed_processor(processor: BaseImageProcessor, **changes: Any) -> BaseImageProcessor:
    """A copy of a `transformers` image processor with other options."""
    return type(processor).from_dict({**processor.to_dict(), **changes})
