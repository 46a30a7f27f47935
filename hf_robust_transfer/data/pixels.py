"""Images as [0, 1] pixels at a model's resolution: decode, keep, collate."""

import hashlib
import mmap
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image, Value
from PIL import Image as PILImage
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BaseImageProcessor
from transformers.utils import logging

from ..errors import UsageError, listed
from .cropping import RandomCrops
from .decoding import size_of, to_rgb
from .labels import without_format
from .parts import in_threads, leaves, resolved
from .pixel_cache import WORTH_KEEPING, CacheFolder, CannotBeKept, kept_pixels
from .processing import to_pixels

logger = logging.get_logger(__name__)
_LONGEST = 500  # of the shorter side: resized by that to 224 pixels, such an image has 25 million
_PART = 500  # images that are decoded before they are written
_MAKING_ROOM = Lock()  # for all images: one thread does


class PixelDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Images as [0, 1] pixels at a model's resolution, with their labels.

    Images of any size and mode become RGB ones as a viewer shows them, which `to_rgb` tells, or grey ones for a model of
    one channel; what cannot be read is refused.

    Args:
        split: a data set with the columns ``image`` and ``label``, as `load_image_splits` gives it: a `ClassLabel`, or
            integers from 0. The names of a `ClassLabel` must be those of the model's labels wherever the two meet.
        processor: the model's image processor.
        name: what to call the split in an error.
        keep: keep decoded images in memory, as long as they fit.

    Items are ``{"pixel_values": (C, H, W), "labels": int}``, the pixels uint8 as image files have them; where a processor
    makes other values of them, float32 in [0, 1]. `as_pixels` gives the latter in any case. Images are decoded once and
    kept in memory, which worker processes share, as long as all of them take no more than ``KEEP_BYTES`` (2 GiB).
    `cropped` reads one anew, as it lies in its file, and cuts a part out of it.

    Raises:
        UsageError: columns of another kind or a missing label; on reading an image that cannot be decoded, where the
            message names its file and row.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> _, processor = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> dataset = PixelDataset(split, processor)  # doctest: +SKIP
        >>> as_pixels(dataset[0]["pixel_values"]).max() <= 1  # doctest: +SKIP
        tensor(True)
    """

    KEEP_BYTES = 2 * 2**30

    def __init__(self, split: Dataset, processor: BaseImageProcessor, name: str = "train", *, keep: bool = True) -> None:
        self.name = name
        split = without_format(split)
        _check_images(split, name)
        self.label_names, self.labels = labels_of(split, name)
        self._has_said_so, self._keep = False, keep
        self._sizes = np.zeros((len(self.labels), 2), dtype=np.int32)  # widths and heights, of images that were decoded
        self._kept: tuple[Tensor, Tensor] | None = None  # all images, and which of them are there
        self._held: Any = None  # the file that they lie in, open so that it is not deleted
        self._encoded = split.cast_column("image", Image(decode=False))
        self._decoder = Image()
        self._to_pixels = to_pixels(processor)
        self._processing = processor.to_json_string()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that items follow from: the images' own content, their labels and the processor."""
        return hashlib.sha256(f"{self.content_sha256} {self._processing}".encode()).hexdigest()

    @property
    def in_memory(self) -> bool:
        """Whether images are kept once they were read; known after the first."""
        return self._kept is not None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self._remembered(row), "labels": self.labels[row]}

    def cropped(self, row: int, crop: Callable[[PILImage.Image], Tensor]) -> dict[str, Any]:
        """An item whose pixels are what a function makes of the image as it lies in its file, upright and in RGB."""
        return {"pixel_values": crop(self._decode(row)), "labels": self.labels[row]}

    def size(self, row: int) -> tuple[int, int] | None:
        """The width and height of an image as it lies in its file, None where they cannot be told."""
        width, height = self._sizes[row].tolist()
        return (width, height) if width else size_of(self._encoded[row]["image"])

    def __getstate__(self) -> dict[str, Any]:
        # Forked workers share what is kept; a process that gets the data set pickled decodes for itself.
        return {**self.__dict__, "_kept": None, "_held": None}

    def _remembered(self, row: int) -> Tensor:
        if self._kept is not None and self._kept[1][row]:
            return self._kept[0][row]
        return self._read(row)

    def _made(self, row: int) -> Tensor:
        return in_bytes(self._to_pixels(self._decode(row)))

    def _read(self, row: int) -> Tensor:
        pixels = self._made(row)
        if pixels.dtype != torch.uint8:
            return pixels
        if self._kept is None and self._keep and pixels.nbytes * len(self) <= self.KEEP_BYTES:
            with _MAKING_ROOM:
                self._kept = self._kept or (_shared((len(self), *pixels.shape)), _shared((len(self),)))
        if self._kept is not None and pixels.shape == self._kept[0].shape[1:]:
            self._kept[0][row], self._kept[1][row] = pixels, 1
        return pixels

    def _decode(self, row: int) -> PILImage.Image:
        encoded = self._encoded[row]["image"]
        file = f" ({encoded['path']})" if encoded and encoded.get("path") else ""
        try:
            if encoded is None:
                raise UsageError("there is none")
            image = self._decoder.decode_example(encoded)
            self._sizes[row] = image.size
            if getattr(image, "is_animated", False) and image.format != "MPO":  # a photograph and its preview
                self._say_that_the_first_frame_is_used(row, file)
            return viewed(image)
        except Exception as error:  # for damaged files Pillow raises nearly anything
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UsageError(f"image in row {row} of the {self.name} split{file} cannot be read: {reason}") from error

    def _say_that_the_first_frame_is_used(self, row: int, file: str) -> None:
        if not self._has_said_so:
            logger.warning(f"images of several frames, as in row {row} of the {self.name} split{file}: the first is used")
        self._has_said_so = True

    @cached_property
    def content_sha256(self) -> str:
        """A hash of the encoded images and their labels, in their order: the same wherever they lie."""
        digest = hashlib.sha256()
        encodings = (encoded for rows in self._encoded.iter(_PART) for encoded in rows["image"])
        for label, encoded in zip(self.labels, encodings, strict=True):
            encoded = encoded or {}
            file = Path(encoded.get("path") or "")
            content = encoded.get("bytes") or (file.read_bytes() if file.is_file() else str(file).encode())
            digest.update(f"{label} {len(content)} ".encode())
            digest.update(content)
        return digest.hexdigest()

    def check(self, rank: int = 0, world_size: int = 1, *, keep_in: CacheFolder | None = None) -> None:
        """Read the images once, so that a damaged one is found now and not in the middle of training.

        Args:
            rank, world_size: of several processes, each checks its share.
            keep_in: where decoded images are kept for the next run, which finds them there: of a data set of a thousand
                images and more, whose pixels are uint8 and of one shape.
        """
        if keep_in is not None and self._keep and len(self) >= WORTH_KEEPING:
            kept = kept_pixels(keep_in, self.fingerprint, len(self), partial(self._decoded_in_parts, show=rank == 0))
            if kept is not None:
                self._kept = (torch.from_numpy(kept.pixels), torch.ones(len(self), dtype=torch.uint8))
                self._sizes[:], self._held = kept.sizes, kept.held
                return
        rows = range(rank, len(self), world_size)
        read = in_threads(self._touch, rows)
        for _ in tqdm(read, f"checking {self.name} images", len(rows), leave=False, disable=rank > 0 or len(rows) < 1000):
            pass

    def _decoded_in_parts(self, *, show: bool) -> Iterator[tuple[Any, Any]]:
        """All images in their order, and the sizes that they had, as `kept_pixels` wants them."""
        made, title = in_threads(self._made, range(len(self))), f"decoding {self.name} images"
        read = iter(tqdm(made, title, len(self), leave=False, disable=not show))
        for first in range(0, len(self), _PART):
            part = list(islice(read, _PART))
            if {(pixels.dtype, pixels.shape) for pixels in part} != {(torch.uint8, part[0].shape)}:
                raise CannotBeKept
            yield torch.stack(part).numpy(), self._sizes[first : first + _PART]

    def _touch(self, row: int) -> None:
        self._remembered(row)


def viewed(image: PILImage.Image) -> PILImage.Image:
    """An image as `to_rgb` shows it.

    Raises:
        ValueError: what `to_rgb` raises, or the image is too long and thin to be resized.
    """
    if max(image.size) > _LONGEST * min(image.size):
        raise UsageError(f"{image.width}×{image.height} pixels are too long and thin to be resized")
    return to_rgb(image)


def in_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8, as image files have them, or as they are where they lie between those values."""
    whole = (pixels * 255).round()
    return pixels if (pixels * 255 - whole).abs().max() > 1e-3 else whole.byte()


def _check_images(split: Dataset, name: str) -> None:
    for column in ("image", "label"):
        if column not in split.column_names:
            raise UsageError(f"the {name} split has no column {column!r}, only {listed(split.column_names)}: rename one")
    if not isinstance(split.features["image"], Image):
        raise UsageError(f"the column 'image' of the {name} split holds {split.features['image']}, not images")


def labels_of(split: Dataset, name: str) -> tuple[list[str] | None, list[int]]:
    """The names of the labels, where they have any, and the label of each image.

    Args:
        split: with a column ``label``.
        name: what to call it in an error.

    Raises:
        UsageError: the column holds no classes, or no label for some image.
    """
    feature = split.features["label"]
    if not isinstance(feature, ClassLabel) and not (isinstance(feature, Value) and "int" in feature.dtype):
        raise UsageError(
            f"the column 'label' of the {name} split holds {feature}, not numbers of classes: class_encode_column('label')"
            " makes them of names"
        )
    labels = split["label"][:]
    missing = [row for row, label in enumerate(labels) if label is None or label < 0]
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(labels)} images of the {name} split have no label, row {missing[0]} first"
        )
    return list(feature.names) if isinstance(feature, ClassLabel) else None, labels


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Zeros that forked processes see each other write to, uint8. Unlike torch's shared memory it needs no /dev/shm."""
    return torch.from_numpy(np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), dtype=np.uint8)).view(shape)


class Indexed(torch.utils.data.Dataset[dict[str, Any]]):
    """A map-style data set whose items know their index (``indices``), which randomness is keyed by.

    Args:
        dataset: yields dictionaries, with a label in ``labels`` where it is known.
        num_labels: how many labels the model has.
        names: of these labels; a data set that knows its own, as `PixelDataset` does, must have the same.
        crops: cut out of each image, as it lies in its file, for which the data set must be a `PixelDataset`, or a subset
            or concatenation of such ones.

    Attributes:
        labels_only: a boolean tensor: leave out the pixels, which a `PixelDataset` then does not read.

    Raises:
        UsageError: the names differ, or there are no images to cut crops out of; on reading, an item whose label the model
            does not have.
    """

    def __init__(
        self, dataset: Any, num_labels: int, names: Sequence[str] | None = None, crops: RandomCrops | None = None
    ) -> None:
        self.dataset, self.num_labels, self.crops = dataset, num_labels, crops
        self.labels_only = torch.tensor(False)
        if crops is not None:
            check_that_it_can_be_cropped(dataset)
        if names is not None:
            check_label_names(dataset, names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The samples of a batch; those that are to be decoded for it, by several threads."""
        dataset, _ = resolved(self.dataset, indices[0])
        decodes = isinstance(dataset, PixelDataset) and (self.crops is not None or not dataset.in_memory)
        decodes = decodes and not self.labels_only
        return list((in_threads if decodes else map)(self.__getitem__, indices))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.labels_only:
            item = {"labels": self.dataset.labels[index]}
        elif self.crops is None:
            item = self.dataset[index]
        else:
            dataset, row = resolved(self.dataset, index)
            item = dataset.cropped(row, partial(self.crops, index=index))
        if not isinstance(item, Mapping):
            raise UsageError(f"sample {index} is a {type(item).__name__}, not a dictionary of pixel_values and labels")
        item = {**item, "indices": index}
        check_label(item.get("labels", 0), self.num_labels, index)
        return item


def check_that_it_can_be_cropped(dataset: Any) -> None:
    """Refuse a data set that has no images to cut parts out of.

    Raises:
        UsageError: some of it is no `PixelDataset`.
    """
    other = next((leaf for leaf in leaves(dataset) if not isinstance(leaf, PixelDataset)), None)
    if other is not None:
        raise UsageError(
            "--random_resized_crop cuts parts out of images as they lie in their files, but the training data set makes its"
            f" samples itself ({type(getattr(other, 'dataset', other)).__name__}): crop there, or give images without a"
            " transform, as a datasets.Dataset, an ImageFolder or rows"
        )


def check_label(label: Any, num_labels: int, index: int) -> None:
    """Refuse what is no label of a model.

    Args:
        label: of a sample.
        num_labels: how many the model has.
        index: of the sample.
    """
    number = _whole(label, "labels")
    if not 0 <= number < num_labels:
        raise UsageError(
            f"sample {index} has label {number}, but only {num_labels} labels are known: load the model with"
            " load_model(…, id2label=…) to give it a head for all, or name all of another classifier's with labels=…"
        )


def check_label_names(dataset: Any, names: Sequence[str]) -> None:
    """Make sure that the labels of a data set that knows their names are a model's.

    Args:
        dataset: with ``label_names``, as `PixelDataset` has them, or without.
        names: of the model's labels.

    Raises:
        UsageError: they are others, or in another order; or a `PixelDataset` has a label that the model does not have.
    """
    own = getattr(dataset, "label_names", None)
    if own is not None and list(own) != list(names) and not unnamed(names):
        images = f"{getattr(dataset, 'name', 'given')} images"
        raise UsageError(
            f"the model has the labels {listed(names)}, the {images} {listed(own)}: give the images the model's labels"
            " with hf_robust_transfer.data.as_labels_of(split, labels), or the model a head for theirs with"
            " load_model(…, id2label=…)"
        )
    if isinstance(dataset, PixelDataset):
        beyond = [row for row, label in enumerate(dataset.labels) if label >= len(names)]
        if beyond:
            raise UsageError(
                f"row {beyond[0]} of the {dataset.name} images has label {dataset.labels[beyond[0]]}, but the model's head"
                f" has {len(names)} labels: load the model with load_model(…, id2label=…) to give it a head for these"
            )


def unnamed(names: Sequence[str]) -> bool:
    """Whether these are the names that `transformers` makes up."""
    return list(names) == [f"LABEL_{index}" for index in range(len(names))]


def _whole(value: Any, name: str) -> int:
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be one integer per sample, not {value!r}") from None


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack items into a batch, and refuse pixels that are neither uint8 nor in [0, 1].

    Args:
        items: dictionaries with ``indices`` and, where they are there, ``pixel_values`` (C, H, W) and ``labels``.

    Returns:
        Tensors by the items' names. Pixels that are uint8 stay so on their way to the device, for `as_pixels` there.

    Raises:
        UsageError: pixels of another type than uint8 or a floating one, or outside [0, 1]: normalised, or 0.0 … 255.0;
            images of several shapes; labels that are no integers.
    """
    batch = {}
    if "pixel_values" in items[0]:
        each = [_tensor(item["pixel_values"]) for item in items]
        shapes = {tuple(pixels.shape) for pixels in each}
        if len(shapes) > 1:
            raise UsageError(f"pixel_values of one batch have the shapes {listed(sorted(shapes))}: make them the same")
        same = len({pixels.dtype for pixels in each}) == 1
        pixels = batch["pixel_values"] = torch.stack(each if same else [as_pixels(pixels) for pixels in each])
        if pixels.dtype != torch.uint8 and not (
            pixels.is_floating_point() and pixels.min() >= 0 and pixels.max() <= 1  # also refuses NaN
        ):
            raise UsageError(
                f"pixel_values are {pixels.dtype} between {pixels.min():.3g} and {pixels.max():.3g}, but must be uint8, or"
                " floating and in [0, 1]: do not normalise them, the model's own normalisation happens inside"
            )
    for name in ("labels", "indices"):
        if name in items[0]:
            batch[name] = torch.tensor([_whole(item[name], name) for item in items])
    return batch


def _tensor(values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"pixel_values are a {type(values).__name__}, but must be a tensor or an array (C, H, W) of numbers in [0, 1]"
        ) from None


def as_pixels(values: Tensor) -> Tensor:
    """Pixels in [0, 1], in float32 or better: uint8 values divided by 255, floating ones as they are.

    Example:
        >>> as_pixels(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
        >>> as_pixels(torch.tensor([0.5], dtype=torch.float16)).dtype
        torch.float32
    """
    if values.dtype == torch.uint8:
        return values.float() / 255
    return values.to(torch.promote_types(values.dtype, torch.float32)) if values.is_floating_point() else values
