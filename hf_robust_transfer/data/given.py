"""Whatever somebody has as a data set, as one of [0, 1] pixels at a model's resolution and of the model's labels."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from transformers import BaseImageProcessor

from ..errors import UsageError, listed
from .columns import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    choose_column,
    image_column,
    label_column,
    leaf_of,
    refuse_streams,
    tidy,
)
from .folders import SPLIT_WORDS, split_of
from .labels import as_labels_of, check_label_column, has_transform, is_numbered, with_classes
from .pixels import PixelDataset, check_label, check_label_names, collate, labels_of, unnamed
from .samples import LabelNumbers, PixelMaker, ReadPixels, as_array, as_stored, plain_label, read_sample, without_label

_ROLES = {"train": ["train"], "validation": ["validation", "test"], "test": ["test", "validation"]}


def as_pixel_dataset(
    dataset: Any,
    processor: BaseImageProcessor | None,
    name: str = "train",
    *,
    labels: Sequence[str] | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    labelled: bool = True,
) -> Any:
    """Turn what is given as a data set into a map-style one of ``{"pixel_values": (C, H, W), "labels": int}``.

    What can be read again and again becomes a `PixelDataset`: a `datasets.Dataset` with a column of images and one of
    labels, torchvision's `ImageFolder` without a transform, and a list of rows, which are dictionaries or pairs with an
    image (from Pillow, an array, or a file's name) and a label. Anything else is read sample by sample, whenever it is
    asked for: a `datasets.Dataset` with a transform or with ``pixel_values``, and all map-style data sets of pairs or
    dictionaries with an image or pixels. Subsets and concatenations of all these do as well. Dictionaries with
    ``pixel_values`` and integer ``labels`` are used as they are.

    Labels with names (a `ClassLabel`, texts, ``classes`` of torchvision) become the model's labels of these names.
    Integers without names count the model's labels, unless these are named by numbers, as `match_labels` does it.

    Args:
        dataset: as told above; of several splits the one of this name is taken, for validation also a test split, and for
            a test a validation split.
        processor: the model's image processor; without one, only pixels are taken.
        name: ``"train"``, ``"validation"``, ``"test"`` or another split's: what errors call it.
        labels: the model's, in the order of its logits; by default the data's own.
        image_column_name, label_column_name: the columns, or a row's keys; by default ``image`` and ``label`` (or
            ``labels``), else the only column of images, and the only one of classes.
        labelled: whether each sample needs a label.

    Raises:
        UsageError: a stream, or what is no such data set; labels that are not the model's. On reading: a sample that
            cannot be read.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> _, processor = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> rows = [{"image": PILImage.new("RGB", (40, 50)), "label": name} for name in ("dog", "cat")]
        >>> dataset = as_pixel_dataset(rows, processor, labels=["cat", "dog"])
        >>> dataset[0]["pixel_values"].shape, dataset[0]["labels"]
        (torch.Size([3, 32, 32]), 1)
    """
    if isinstance(dataset, Mapping):
        dataset = dataset[choose_split(dataset, name)]
    refuse_streams(dataset, f"{name} data set")
    if isinstance(dataset, PixelDataset):
        if labels is not None:
            check_label_names(dataset, labels)
        return dataset
    if isinstance(dataset, ReadPixels) or not len(dataset):
        return dataset
    again = partial(
        as_pixel_dataset,
        processor=processor,
        name=name,
        labels=labels,
        image_column_name=image_column_name,
        label_column_name=label_column_name,
        labelled=labelled,
    )
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, Dataset):
        return again(dataset.dataset.select(dataset.indices))
    if isinstance(dataset, Subset):
        return Subset(again(dataset.dataset), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([again(part) for part in dataset.datasets])
    given = _Given(dataset, processor, name, labels, image_column_name, label_column_name, labelled)
    made = given.converted()
    if not isinstance(made, PixelDataset):
        given.check(made)
    elif labels is not None:
        check_label_names(made, labels)
    return made


def choose_split(splits: Mapping[str, Any], name: str) -> str:
    """The split of a data set that has several which is called this or, where none is, may stand for it.

    Args:
        splits: by their names.
        name: ``"train"``; or ``"validation"`` or ``"test"``, either of which may stand for the other.

    Raises:
        UsageError: there is none.

    Example:
        >>> choose_split({"Train": [], "val": []}, "test")
        'val'
    """
    if name in splits:
        return name
    for role in _ROLES.get(split_of(name) or "", []):
        for split in splits:
            if split_of(split) == role:
                return split
    raise UsageError(
        f"the {name} data set is to be chosen from {listed(splits)}, which are no splits for it: give the one that you"
        " mean; columns become a data set with Dataset.from_dict"
    )


def has_roles(splits: Mapping[str, Any]) -> bool:
    """Whether any of the splits is called train, validation or test."""
    return any(split_of(split) in SPLIT_WORDS for split in splits)


class _Given:
    """A data set that was given, and what is known about it; the arguments are those of `as_pixel_dataset`."""

    def __init__(
        self,
        dataset: Any,
        processor: BaseImageProcessor | None,
        name: str,
        labels: Sequence[str] | None,
        image_column_name: str | None,
        label_column_name: str | None,
        labelled: bool,
    ) -> None:
        self.dataset, self.processor, self.name, self.labelled = dataset, processor, name, labelled
        self.known = labels
        self.labels = None if labels is None or unnamed(labels) else labels
        self.image, self.label = image_column_name, label_column_name

    def converted(self) -> Any:
        """The data set of pixels."""
        data = self.dataset
        if isinstance(data, Dataset) and not has_transform(data):
            prepared = "pixel_values" in data.features and self.image is None
            return self._prepared(data) if prepared else self._of_columns(data)
        if type(data) is ImageFolder and data.transforms is None and data.loader is default_loader:
            return self._of_rows(data.samples, 0, 1, data.classes)
        image, label = self._keys
        if isinstance(data, list | tuple) and image != "pixel_values" and not isinstance(self.first[image], Tensor):
            return self._of_rows(data, image, label)
        ready = image == "pixel_values" and label in ("labels", None) and self._label_names is None and not self._has_text
        if ready and not isinstance(data, Dataset):
            return data
        return ReadPixels(data, self._reader(image, label), self.name, image)

    def check(self, made: Any) -> None:
        """Look at the first sample of a data set that is read sample by sample, and at all labels of a list."""
        item = self.first if made is self.dataset else made[0]
        pixels = collate([item])["pixel_values"][0]
        PixelMaker(self.processor)(pixels)
        for row, each in enumerate(made if isinstance(made, list | tuple) else [item]):
            needed = {"pixel_values", "labels"} if self.labelled else {"pixel_values"}
            if not isinstance(each, Mapping) or not needed <= each.keys():
                lacking = "pixel_values" if not isinstance(each, Mapping) or "pixel_values" not in each else "labels"
                raise UsageError(f"sample {row} of the {self.name} data set has no {lacking}, as the first one has")
            if self.known is not None and "labels" in each:
                check_label(each["labels"], len(self.known), row)

    # ---- columns and rows ----

    def _of_columns(self, split: Dataset) -> PixelDataset | ReadPixels:
        if not self.labelled and _has_no_label(split, self.label):
            image = image_column(split.features, self.image)
            zeros = Value("int64")
            split = split.select_columns([image]).add_column("no label", [0] * len(split), feature=zeros)
            pixels = PixelDataset(tidy(split, image, "no label"), self._processor, self.name)
            return ReadPixels(pixels, without_label, self.name, "pixel_values")
        return PixelDataset(self._with_labels(tidy(split, self.image, self.label)), self._processor, self.name)

    def _prepared(self, split: Dataset) -> ReadPixels:
        """Of a data set whose pixels are there in a column."""
        leaf = leaf_of(split.features["pixel_values"])
        if leaf is None or not leaf.startswith(("uint", "int", "float")):
            raise UsageError(f"the column 'pixel_values' holds {split.features['pixel_values']}, not arrays of numbers")
        split, label = split.with_format(None), None
        if self.labelled or not _has_no_label(split, self.label):
            label = label_column(split.features, self.label)
            check_label_column(split.features[label], label)
            split = split.rename_columns({label: "label"} if label != "label" else {})
            labels_of(split if is_numbered(split) else (split := self._with_labels(split)), self.name)
        read = partial(read_sample, "pixel_values", label and "label", partial(as_array, leaf), None)
        return ReadPixels(split, read, self.name, "pixel_values")

    def _of_rows(
        self, rows: Sequence[Any], image: str | int, label: str | int | None, names: Sequence[str] | None = None
    ) -> PixelDataset | ReadPixels:
        """Of rows in memory, which name or hold their images."""
        images, numbers = [], []
        for place, row in enumerate(rows):
            try:
                images.append(as_stored(row[image]))
                if label is not None:
                    numbers.append(plain_label(row[label]))
            except (LookupError, TypeError, UsageError) as error:
                what = error if isinstance(error, UsageError) else f"it has no image and label as the first one ({error!r})"
                raise UsageError(f"row {place} of the {self.name} data set: {what}") from error
        columns: dict[str, Any] = {"image": images}
        features: dict[str, Any] = {"image": Image()}
        if label is not None:
            columns["label"], features["label"] = numbers, ClassLabel(names=names) if names else _kind(numbers, self.name)
        table = Dataset.from_dict(columns, features=Features(features))
        return _Given(
            table, self.processor, self.name, self.labels, None, "label" if label is not None else None, self.labelled
        ).converted()

    def _with_labels(self, split: Dataset) -> Dataset:
        if self.labels is not None:
            return as_labels_of(split, self.labels, remedy=None)
        if isinstance(split.features["label"], ClassLabel) or is_numbered(split):
            return split
        raise UsageError(
            f"the labels of the {self.name} data set are {split.features['label'].dtype}, and the model's have no names to"
            f" find them by: load it with load_model(…, id2label=dict(enumerate({with_classes({'': split})[1]!r})))"
        )

    # ---- sample by sample ----

    @cached_property
    def first(self) -> Any:
        """The first sample."""
        try:
            return self.dataset[0]
        except (LookupError, TypeError) as error:
            raise UsageError(
                f"the {self.name} data set is a {type(self.dataset).__name__} that has no sample 0 ({error!r}): give one"
                " that has its samples by number, as datasets.Dataset.from_pandas or from_dict make it"
            ) from error

    @cached_property
    def _keys(self) -> tuple[Any, Any]:
        """Where a sample has its image, and its label: keys, or places in a pair; no label where none is needed."""
        first = self.first
        if isinstance(first, tuple | list) and len(first) == 2 and not isinstance(first[0], int | float):
            return 0, 1
        if not isinstance(first, Mapping):
            raise UsageError(
                f"the {self.name} data set has samples of type {type(first).__name__}, but each must be a dictionary with"
                " an image or pixel_values and a label, or a pair of both"
            )
        if self.image is None and "pixel_values" in first:
            image = "pixel_values"
        else:
            kinds = {key: isinstance(value, PILImage.Image | np.ndarray) for key, value in first.items()}
            try:
                image = choose_column(kinds, self.image, IMAGE_COLUMNS, "image_column_name")
            except UsageError as error:
                raise UsageError(f"{error}; or give pixel_values in [0, 1]") from None
        usual = LABEL_COLUMNS[::-1] if image == "pixel_values" else LABEL_COLUMNS
        if not self.labelled and self.label is None and not set(usual) & set(first):
            return image, None
        return image, choose_column(dict.fromkeys(first, False), self.label, usual, "label_column_name")

    @cached_property
    def _label_names(self) -> list[str] | None:
        """The names of integer labels, where the data set knows them and has not numbered them anew."""
        data, label = self.dataset, self._keys[1]
        if label is None:
            return None
        if isinstance(data, Dataset):
            try:
                column = label_column(data.features, label if label in data.features else None)
            except UsageError:
                return None
            feature = data.features[column]
            same = data.with_format(None).select_columns([column])[0][column] == self.first[label]
            return list(feature.names) if isinstance(feature, ClassLabel) and same else None
        own = getattr(data, "classes", None)
        if not isinstance(own, list | tuple) or getattr(data, "target_transform", None) is not None:
            return None
        return [each if isinstance(each, str) else ", ".join(map(str, each)) for each in own]

    @property
    def _has_text(self) -> bool:
        return self._keys[1] is not None and isinstance(self.first[self._keys[1]], str)

    def _reader(self, image: Any, label: Any) -> Callable[[Any], dict[str, Any]]:
        if image == "pixel_values":
            pixels: Callable[[Any], Any] = torch.as_tensor
            named = self._label_names is not None or self._has_text
            number = LabelNumbers(self._label_names, self.labels) if named else None
            return partial(read_sample, image, label, pixels, number)
        return partial(read_sample, image, label, PixelMaker(self.processor), LabelNumbers(self._label_names, self.labels))

    @property
    def _processor(self) -> BaseImageProcessor:
        if self.processor is None:
            raise UsageError(
                f"the {self.name} data set has images, which need the model's image processor: give a PixelClassifier, or"
                " samples with pixel_values in [0, 1]"
            )
        return self.processor


def _kind(labels: Sequence[Any], name: str) -> Value:
    kinds = {type(label) for label in labels if label is not None}
    if len(kinds) > 1:
        raise UsageError(
            f"the labels of the {name} data set are of several types: {listed(kind.__name__ for kind in kinds)}"
        )
    return Value({str: "string", bool: "bool"}.get(next(iter(kinds), int), "int64"))


def _has_no_label(split: Dataset, given: str | None) -> bool:
    try:
        column = label_column(split.features, given)
    except UsageError:
        if given is not None:
            raise
        return True
    return all(label in (None, "", -1) for label in split.with_format(None)[column])
