"""Encoded images as RGB or grey ones, as a viewer shows them."""

from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image that Pillow reads as an RGB one with 8 bits, as a viewer shows it.

    What is transparent lies on white. Grey values of 16 bits are scaled to 8, floating ones from [0, 1]; of an animation
    or of several pages the first is taken. Colour profiles are not applied.

    Args:
        image: in any mode.

    Raises:
        ValueError: there is no agreed meaning of its values: floating ones outside [0, 1], 32-bit integers above 255, or
            a mode that Pillow does not convert.

    Example:
        >>> to_rgb(Image.new("I;16", (1, 1), 32768)).getpixel((0, 0))
        (128, 128, 128)
        >>> to_rgb(Image.new("RGBA", (1, 1), (200, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _of_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_grey(image: Image.Image) -> Image.Image:
    """Any image that Pillow reads as a grey one with 8 bits: of what `to_rgb` gives, the luma of ITU-R 601-2.

    Example:
        >>> to_grey(Image.new("LA", (1, 1), (100, 0))).getpixel((0, 0)), to_grey(Image.new("L", (1, 1), 7)).getpixel((0, 0))
        (255, 7)
    """
    return image if image.mode == "L" and not image.has_transparency_data else to_rgb(image).convert("L")


def is_coloured(image: Image.Image) -> bool:
    """Whether an image shows any colour but greys."""
    if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"):
        return False
    red, green, blue = to_rgb(image).split()
    return any(ImageChops.difference(red, other).getbbox() is not None for other in (green, blue))


def size_of(image: Any) -> tuple[int, int] | None:
    """The width and height of an image, from its header where it is encoded; None where they cannot be told.

    Args:
        image: of Pillow, an array (H, W) or (H, W, C), a file's name or its content, or one as `datasets` stores it.

    Example:
        >>> size_of(Image.new("RGB", (40, 30))), size_of(np.zeros((30, 40, 3))), size_of(b"no image")
        ((40, 30), (40, 30), None)
    """
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, Image.Image):
        return image.size
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        return image.shape[1], image.shape[0]
    if isinstance(image, str | Path | bytes):
        # For damaged files Pillow raises nearly anything; it reads no more than the header here.
        with suppress(Exception), Image.open(BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.size
    return None


def _of_8_bits(image: Image.Image) -> Image.Image:
    """A grey image whose values are integers of 16 or 32 bits, or floating."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are not finite")
    largest = _largest(image)
    if not values.min() >= 0 or values.max() > largest:
        raise ValueError(
            f"its pixels lie between {values.min():g} and {values.max():g}, not between 0 and {largest:g}: convert it to 8"
            " or 16 bits"
        )
    tags = getattr(image, "tag_v2", {})
    transparent = values == image.info["transparency"] if "transparency" in image.info else None
    shares = values / largest
    if image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shares = 1 - shares
    if transparent is not None:
        shares[transparent] = 1
    return Image.fromarray((shares * 255).round().astype(np.uint8))


def _largest(image: Image.Image) -> float:
    """The value that is white."""
    if image.mode == "F":
        return 1
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))
        return 2 ** max(8, bits[0]) - 1
    return 65535 if image.format in ("PNG", "PPM") else 255  # "I": those have 16 bits, others 32
