"""What is done to images before a model sees them: from which sizes they are made which, and what that costs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers.utils import logging

from .parts import resolved
from .pixels import PixelDataset

logger = logging.get_logger(__name__)
_LOOKED_AT, _ASKED_FOR = 10_000, 8  # how many images' headers are read at most, and how often a user's code is run
_PHOTOGRAPH = 224  # pixels of a side at which networks look at photographs: what lies beyond is not missed
_FACTOR = 2  # from which on most pixels are thrown away: three of four
_USUAL = (32, 48, 64, 96, 128, 160, 192, 224)


class Resizing(NamedTuple):
    """What becomes of images: as text, from which sizes they are made which.

    Args:
        images: how many there are.
        known: of how many of them the sizes are known.
        smallest, largest: of these images' sides, in pixels.
        typical: the median of their shorter sides.
        left: the median share of pixels that is left of an image.
        height, width: of what is made of them.

    Example:
        >>> print(Resizing(366, 366, 64, 480, 240, 0.018, 32, 32))
        366 images, 64 – 480 px → 32 × 32 px
    """

    images: int
    known: int
    smallest: int
    largest: int
    typical: float
    left: float
    height: int
    width: int

    def __str__(self) -> str:
        made = f"{self.height} × {self.width} px"
        if not self.known or self.smallest == self.largest == self.height == self.width:
            return f"{self.images} images, {made}{', as they are' if self.known else ''}"
        sides = f"{self.smallest} px" if self.smallest == self.largest else f"{self.smallest} – {self.largest} px"
        return f"{self.images} images, {sides}{f' in {self.known} of them' if self.known < self.images else ''} → {made}"

    @property
    def sides(self) -> list[float]:
        """The smallest and the largest side of an image, and the median of their shorter ones, in pixels."""
        return [self.smallest, self.largest, self.typical]

    @property
    def shrinkage(self) -> str | None:
        """How many times smaller images are made where most of them is thrown away; None where that is not so."""
        side = min(self.height, self.width)
        if min(self.typical, max(_PHOTOGRAPH, side)) < _FACTOR * side:
            return None
        return f"{self.typical / side:.3g} times smaller, to {self.height} × {self.width} pixels"

    @property
    def warning(self) -> str | None:
        """What to tell who is about to throw most of the images away; None where that is not so."""
        if self.shrinkage is None:
            return None
        fits = max(usual for usual in _USUAL if usual <= self.typical or usual == _USUAL[0])
        return (
            f"The images are made {self.shrinkage}: {100 * self.left:.2g} % of a typical one's pixels are left. Use a"
            " source that was trained on larger images (hf-robust-transfer sources lists some, docs/how-to/photographs.md"
            f" tells more), or, where it takes any size, --image_size {fits} (in Python image_size= of load_model)"
        )


def resizing_of(dataset: Any) -> Resizing | None:
    """What becomes of the images of a data set on their way to a model; None for one without images.

    Their sizes are those seen on decoding, or else read from the headers of at most 10 000 of them; a data set that makes
    each sample anew is asked for 8.

    Args:
        dataset: as `as_pixel_dataset` gives it.
    """
    if not len(dataset):
        return None
    height, width = np.shape(dataset[0]["pixel_values"])[-2:]
    most = _LOOKED_AT if isinstance(resolved(dataset, 0)[0], PixelDataset) else _ASKED_FOR
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), most)).astype(int)
    known = [size for row in rows if (size := _size(*resolved(dataset, int(row)), (width, height))) is not None]
    if not known:
        return Resizing(len(dataset), 0, 0, 0, 0, 1, height, width)
    sizes = np.array(known)
    return Resizing(
        images=len(dataset),
        known=len(known),
        smallest=int(sizes.min()),
        largest=int(sizes.max()),
        typical=float(np.median(sizes.min(1))),
        left=float(np.median(height * width / sizes.prod(1))),
        height=height,
        width=width,
    )


def tell_of_images(resizing: Resizing | None, name: str) -> None:
    """Print what is done to a data set's images, and warn where most of them is thrown away.

    Args:
        resizing: what is done to them.
        name: what to call the data set.
    """
    if resizing is not None:
        print(f"{name}: {resizing}", flush=True)
        if resizing.warning is not None:
            logger.warning(resizing.warning)


def shrinkage(sides: Sequence[float], height: int, width: int) -> str | None:
    """`Resizing.shrinkage` of images of these `Resizing.sides`, of which such ones were made.

    Example:
        >>> shrinkage([64, 480, 240.0], 32, 32)
        '7.5 times smaller, to 32 × 32 pixels'
    """
    smallest, largest, typical = sides
    return Resizing(1, 1, int(smallest), int(largest), typical, 1, height, width).shrinkage


def _size(dataset: Any, row: int, made: tuple[int, int]) -> tuple[int, int] | None:
    """Width and height of an image; of one that comes as pixels, those that it has."""
    size: tuple[int, int] | None = dataset.size(row) if hasattr(dataset, "size") else made
    return size
