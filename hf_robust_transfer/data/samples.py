"""Samples of any kind as pixels in [0, 1] and a model's label."""

import operator
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Image
from PIL import Image as PILImage, ImageOps
from torch import Tensor
from transformers import BaseImageProcessor

from ..errors import UsageError, listed
from .decoding import size_of
from .labels import match_labels
from .pixels import PixelDataset, in_bytes, viewed
from .processing import to_pixels


class ReadPixels(torch.utils.data.Dataset[dict[str, Any]]):
    """A map-style data set, read sample by sample: each time anew, for it may draw its own augmentation.

    Args:
        dataset: yields what the user made of a sample.
        read: makes pixels and a label of it.
        name: what to call the data set in an error.
        image: a sample's key for its image or pixels.
    """

    def __init__(self, dataset: Any, read: Callable[[Any], dict[str, Any]], name: str, image: Any) -> None:
        self.dataset, self.name = dataset, name
        self._read, self._image = read, image

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        sample = self.dataset[row]
        try:
            return self._read(sample)
        except UsageError as error:
            raise UsageError(f"sample {row} of the {self.name} data set: {error}") from error

    def size(self, row: int) -> tuple[int, int] | None:
        """The width and height of what a sample has as its image, None where they cannot be told."""
        if isinstance(self.dataset, PixelDataset):
            return self.dataset.size(row)
        value = self.dataset[row][self._image]
        if not isinstance(value, Tensor) and self._image != "pixel_values":
            return size_of(value)
        height, width = np.shape(value)[-2:]
        return width, height


def read_sample(
    image: Any, label: Any, pixels: Callable[[Any], Any], number: Callable[[Any], int] | None, sample: Any
) -> dict[str, Any]:
    """Pixels and label of a sample.

    Args:
        image, label: its keys for them; no label with None.
        pixels, number: make the item's pixels, and its label, of what is there; without ``number`` it stays as it is.
        sample: a dictionary or a pair.

    Raises:
        UsageError: it lacks one of them, or has something else there.
    """
    try:
        item = {"pixel_values": pixels(sample[image])}
        if label is not None:
            item["labels"] = sample[label] if number is None else number(sample[label])
    except (LookupError, TypeError) as error:
        raise UsageError(f"it has no image and label as the first one ({error!r})") from error
    return item


def without_label(item: dict[str, Any]) -> dict[str, Any]:
    """The pixels alone."""
    return {"pixel_values": item["pixel_values"]}


def as_array(dtype: str, values: Any) -> Tensor:
    """Nested lists as a tensor of a type."""
    return torch.as_tensor(np.asarray(values, dtype=dtype))


class LabelNumbers:
    """The model's label for a label of the data: the one of its name, as `match_labels` finds it.

    Args:
        names: of the data's labels, where they are known.
        labels: the model's, where they have names.
    """

    def __init__(self, names: Sequence[str] | None, labels: Sequence[str] | None) -> None:
        self.names, self.labels = names, labels
        self._known: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        value = plain_label(value)
        if value not in self._known:
            self._known[value] = self._found(value)
        return self._known[value]

    def _found(self, value: Any) -> int:
        value = str(value) if isinstance(value, bool) else value
        if value is None or value == "" or (isinstance(value, int) and value < 0):
            raise UsageError(f"it has no label, but {value!r}")
        if isinstance(value, str):
            name = value
        elif self.names is None:
            name = str(value)
        elif value < len(self.names):
            name = self.names[value]
        else:
            raise UsageError(f"label {value} is none of its {len(self.names)} classes {listed(self.names)}")
        numbered = self.names is None and not isinstance(value, str)
        if self.labels is not None:
            return next(iter(match_labels([name], self.labels, numbered=numbered, remedy=None).values()))
        if isinstance(value, str):
            raise UsageError(f"label {value!r} is a name, but the model's labels have none: load it with id2label=…")
        return int(value)


class PixelMaker:
    """The pixels of an image, made by the model's image processor; tensors are pixels already.

    Args:
        processor: the model's; a tensor must have the shape that it would give. Without one, there may be tensors only.
    """

    def __init__(self, processor: BaseImageProcessor | None) -> None:
        self._to_pixels = _no_processor if processor is None else to_pixels(processor)
        self._checks = processor is not None
        self._sound: set[tuple[int, ...]] = set()

    def __call__(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            return in_bytes(self._to_pixels(_image(value)))
        shape = tuple(value.shape)
        if self._checks and shape not in self._sound:
            made = self._shape(shape)
            if made != shape:
                raise UsageError(
                    f"its pixels have the shape {shape}, but the model's image processor makes {made} of"
                    " such an image: give the image itself, or resize as the processor says"
                )
            self._sound.add(shape)
        return value

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        width, height = (shape[2], shape[1]) if len(shape) == 3 and min(shape[1:]) else (1, 1)
        return tuple(self._to_pixels(viewed(PILImage.new("RGB", (width, height)))).shape)


def _no_processor(image: PILImage.Image) -> Tensor:
    raise UsageError("it has an image, which needs a model's image processor: give a PixelClassifier, or pixels in [0, 1]")


def _image(value: Any) -> PILImage.Image:
    """An image from Pillow, from an array, from a file's name or from its content, as a viewer shows it."""
    if not isinstance(value, PILImage.Image | np.ndarray | str | Path | bytes | Mapping):
        raise UsageError(f"its image is a {type(value).__name__}: give one of Pillow, an array, or a file's name")
    try:
        if isinstance(value, PILImage.Image):
            return viewed(ImageOps.exif_transpose(value))
        return viewed(Image().decode_example(Image().encode_example(_of_channels(value))))
    except Exception as error:  # for damaged files Pillow raises nearly anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(f"its image cannot be read: {reason}") from error


def as_stored(value: Any) -> Any:
    """An image as `datasets` stores it: a file by its name, others by their pixels."""
    if isinstance(value, str | Path) and not Path(value).is_file():
        raise UsageError(f"its image is the file {value}, which does not exist")
    if isinstance(value, str | Path | bytes):
        return Image().encode_example(value)
    if isinstance(value, Mapping):
        return value
    content = BytesIO()
    _image(value).save(content, "PNG", compress_level=1)  # the fastest
    return {"path": None, "bytes": content.getvalue()}


def _of_channels(value: Any) -> Any:
    """An array of several channels, which `datasets` would cut down to uint8 unasked; other values as they are."""
    if isinstance(value, np.ndarray) and value.ndim == 3:
        if value.dtype != np.uint8:
            raise UsageError(f"an array of {value.dtype}; with channels, (H, W, C), it must be of uint8")
        return value[:, :, 0] if value.shape[2] == 1 else value
    return value


def plain_label(label: Any) -> Any:
    """A label as a number, a text, or None for none."""
    if label is None or isinstance(label, str):
        return None if label is None else str(label)
    if isinstance(label, bool | np.bool_):
        return bool(label)
    try:
        return operator.index(label)
    except (TypeError, ValueError):
        raise UsageError(f"its label is {label!r}, not one integer or name") from None
