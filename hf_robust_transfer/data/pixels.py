"""Images as [0, 1] pixels at a model's resolution: decode, keep, collate."""

import hashlib
import mmap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from torch import Tensor
from torchvision.transforms import Compose, Normalize
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..errors import UsageError


def to_pixels(processor: BaseImageProcessor) -> Callable[[PILImage.Image], Tensor]:
    """What a checkpoint's image processor does to an image, but for the normalisation.

    Args:
        processor: the checkpoint's image processor.

    Returns:
        A function from an RGB image of any size to float32 pixels in [0, 1], (3, H, W) at the model's resolution.
    """
    transforms = getattr(processor, "val_transforms", None)
    if transforms is not None:  # timm
        steps = [step for step in transforms.transforms if not isinstance(step, Normalize)]
        return Compose(steps)
    return partial(_processed, processor)


def _processed(processor: BaseImageProcessor, image: PILImage.Image) -> Tensor:
    pixels: Tensor = processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    return pixels


class PixelDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Images as [0, 1] pixels at a model's resolution, with their labels.

    Grey, palette and RGBA images of any size become RGB ones, as `transformers` pipelines do it.

    Args:
        split: a data set with the columns ``image`` and ``label``, as `load_image_splits` gives it.
        processor: the model's image processor.
        name: what to call the split in an error.

    Items are ``{"pixel_values": (3, H, W), "labels": int}``, the pixels uint8 as image files have them; where a processor
    makes other values of them, float32 in [0, 1]. `as_pixels` gives the latter in any case. Images are decoded once and
    kept in memory, which worker processes share, as long as all of them take no more than ``KEEP_BYTES`` (2 GiB).

    Raises:
        ValueError: on reading an image that cannot be decoded; the message names its file and row.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> _, processor = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> dataset = PixelDataset(split, processor)  # doctest: +SKIP
        >>> as_pixels(dataset[0]["pixel_values"]).max() <= 1  # doctest: +SKIP
        tensor(True)
    """

    KEEP_BYTES = 2 * 2**30

    def __init__(self, split: Dataset, processor: BaseImageProcessor, name: str = "train") -> None:
        self.name = name
        self.fingerprint = hashlib.sha256(f"{split._fingerprint} {processor.to_json_string()}".encode()).hexdigest()
        self._kept: tuple[Tensor, Tensor] | None = None  # all images, and which of them are there
        self.labels: list[int] = list(split["label"])
        self._encoded = split.cast_column("image", Image(decode=False))
        self._decoder = Image(mode="RGB")
        self._to_pixels = to_pixels(processor)

    @property
    def in_memory(self) -> bool:
        """Whether images are kept once they were read; known after the first."""
        return self._kept is not None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self._remembered(row), "labels": self.labels[row]}

    def __getstate__(self) -> dict[str, Any]:
        # Forked workers share what is kept; a process that gets the data set pickled decodes for itself.
        return {**self.__dict__, "_kept": None}

    def _remembered(self, row: int) -> Tensor:
        if self._kept is not None and self._kept[1][row]:
            return self._kept[0][row]
        return self._read(row)

    def _read(self, row: int) -> Tensor:
        pixels = self._to_pixels(self._decode(row))
        whole = (pixels * 255).round()
        if (pixels * 255 - whole).abs().max() > 1e-3:
            return pixels
        pixels = whole.byte()
        if self._kept is None and pixels.nbytes * len(self) <= self.KEEP_BYTES:
            self._kept = _shared((len(self), *pixels.shape)), _shared((len(self),))
        if self._kept is not None and pixels.shape == self._kept[0].shape[1:]:
            self._kept[0][row], self._kept[1][row] = pixels, 1
        return pixels

    def _decode(self, row: int) -> PILImage.Image:
        encoded = self._encoded[row]["image"]
        try:
            if encoded is None:
                raise UsageError("there is none")
            return self._decoder.decode_example(encoded)
        except (OSError, SyntaxError, ValueError, TypeError) as error:  # what Pillow raises for damaged files
            file = f" ({encoded['path']})" if encoded and encoded.get("path") else ""
            raise UsageError(f"image in row {row} of the {self.name} split{file} cannot be read: {error}") from error

    def content_sha256(self) -> str:
        """A hash of the encoded images and their labels, in their order: the same wherever they lie."""
        digest = hashlib.sha256()
        for row, label in enumerate(self.labels):
            encoded = self._encoded[row]["image"] or {}
            content = encoded.get("bytes") or (Path(encoded["path"]).read_bytes() if encoded.get("path") else b"")
            digest.update(f"{label} {len(content)} ".encode())
            digest.update(content)
        return digest.hexdigest()

    def check(self, rank: int = 0, world_size: int = 1) -> None:
        """Read the images once, so that a damaged one is found now and not in the middle of training.

        Args:
            rank, world_size: of several processes, each checks its share.
        """
        rows = range(rank, len(self), world_size)
        for row in tqdm(rows, desc=f"checking {self.name} images", leave=False, disable=rank > 0 or len(rows) < 1000):
            self._remembered(row)


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Zeros that forked processes see each other write to, uint8. Unlike torch's shared memory it needs no /dev/shm."""
    return torch.from_numpy(np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), dtype=np.uint8)).view(shape)


class Indexed(torch.utils.data.Dataset[dict[str, Any]]):
    """A map-style data set whose items know their index (``indices``), which randomness is keyed by.

    Args:
        dataset: yields dictionaries, with a label in ``labels`` where it is known.
        num_labels: how many labels the model has.

    Raises:
        ValueError: on reading an item whose label the model does not have.
    """

    def __init__(self, dataset: Any, num_labels: int) -> None:
        self.dataset, self.num_labels = dataset, num_labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {**self.dataset[index], "indices": index}
        if not 0 <= int(item.get("labels", 0)) < self.num_labels:
            raise UsageError(
                f"sample {index} has label {int(item['labels'])}, but the model's head has {self.num_labels} labels:"
                " load the model with load_model(…, id2label=…) to give it a head for these labels"
            )
        return item


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack items into a batch, and refuse pixels that are neither uint8 nor in [0, 1].

    Args:
        items: dictionaries with ``indices`` and, where they are there, ``pixel_values`` (C, H, W) and ``labels``.

    Returns:
        Tensors by the items' names. Pixels that are uint8 stay so on their way to the device, for `as_pixels` there.

    Raises:
        ValueError: pixels of another type than uint8 or a floating one, or outside [0, 1]: normalised, or 0.0 … 255.0.
    """
    batch = {}
    if "pixel_values" in items[0]:
        each = [torch.as_tensor(item["pixel_values"]) for item in items]
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
            batch[name] = torch.tensor([int(item[name]) for item in items])
    return batch


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
