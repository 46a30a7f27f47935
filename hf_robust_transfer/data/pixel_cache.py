"""Decoded images that are kept on disk, memory-mapped, so that the next run on the same data starts at once."""

import hashlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from transformers.utils import logging

from ..atomic import replacing
from ..cache_folder import ArrayWriter, hold, locked, trim, whole_array

logger = logging.get_logger(__name__)
WORTH_KEEPING = 1000  # images: fewer are decoded in a second or two
_DECODERS = ("hf-robust-transfer", "pillow", "transformers", "torch")


class CacheFolder(NamedTuple):
    """Where decoded images are kept, and how many bytes that folder may take; the least recently used files go first."""

    path: Path
    limit: float


class KeptPixels(NamedTuple):
    """Decoded images (N, C, H, W), uint8, their widths and heights as they lay in their files (N, 2), and the open file."""

    pixels: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any]
    held: IO[bytes]


def kept_pixels(
    folder: CacheFolder, fingerprint: str, count: int, decode: Callable[[], Iterator[tuple[Any, Any]]]
) -> KeptPixels | None:
    """The decoded images of a data set, as an earlier run left them, or decoded and kept now.

    Of several processes that want the same, one decodes, and all of them share what is in memory of the file. A file that
    is damaged is made anew.

    Args:
        folder: where to keep them.
        fingerprint: tells the images and what is made of them from others.
        count: how many images there are.
        decode: yields the images in their order, in parts: uint8 pixels (n, C, H, W), and widths and heights (n, 2).
            Raises `CannotBeKept` where there are others.

    Returns:
        The images; None where they are of different shapes or too many, or cannot be written, which is told of.
    """
    named = " ".join((fingerprint, *map(version, _DECODERS)))
    file = folder.path / f"pixels-{hashlib.sha256(named.encode()).hexdigest()}.npy"
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        with locked(file):
            found = whole_array(file, (1, count))
            if found is None:
                with replacing(file) as part:
                    _write(part, count, decode, folder.limit)
                found = np.load(file, mmap_mode="c")
            kept = KeptPixels(found["pixels"][0], found["size"][0], hold(file))
        trim(folder.path, folder.limit)
    except CannotBeKept:
        return None
    except OSError as error:
        logger.warning(f"decoded images cannot be kept in {folder.path}: {error.strerror or error}. They are decoded anew.")
        return None
    return kept


class CannotBeKept(Exception):
    """Images of different shapes, or more than the folder may hold."""


def _write(file: Path, count: int, decode: Callable[[], Iterator[tuple[Any, Any]]], limit: float) -> None:
    kind, done = None, 0
    with ArrayWriter(file, (1, count)) as writer:
        for pixels, sizes in decode():
            found = np.dtype([("pixels", "u1", pixels.shape[1:]), ("size", "<i4", (2,))])
            if (kind is not None and found != kind) or found.itemsize * count > limit:
                raise CannotBeKept
            kind, values = found, np.empty((1, len(pixels)), found)
            values["pixels"], values["size"] = pixels, sizes
            writer.write(values, done)
            done += len(pixels)
        writer.finish()
