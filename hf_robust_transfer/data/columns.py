"""Which columns of a data set hold the images and the labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Array3D, ClassLabel, Dataset, Image, IterableDataset, IterableDatasetDict, List, Value
from torch.utils.data import DataLoader, IterableDataset as TorchIterable

from ..errors import UsageError, listed
from .labels import check_label_column, without_format

IMAGE_COLUMNS, LABEL_COLUMNS = ("image",), ("label", "labels")


def choose_column(kinds: Mapping[str, bool], given: str | None, usual: Sequence[str], option: str) -> str:
    """The column that is given or, by default, the one of a usual name, else the only one of its kind.

    Args:
        kinds: all columns, and whether each holds what is looked for.
        given: the column's name, if it is known.
        usual: names that it mostly has.
        option: what the name is given as.

    Raises:
        UsageError: there is no such column, or several may be meant.

    Example:
        >>> choose_column({"img": True, "fine_label": False, "coarse_label": False}, None, ("image",), "image_column_name")
        'img'
    """
    if given is None:
        found = [name for name in usual if name in kinds][:1] or [name for name, right in kinds.items() if right]
        if len(found) > 1:
            raise UsageError(f"{option}: any of the columns {listed(found)} may be meant: name one of them")
        given = found[0] if found else usual[0]
    if given not in kinds:
        folder = "; a folder of images needs a subfolder per class" if usual is LABEL_COLUMNS else ""
        raise UsageError(f"{option} {given}: the data set has no such column, only {listed(kinds)}{folder}")
    return given


def image_column(features: Mapping[str, Any], given: str | None = None) -> str:
    """The column of images, as `choose_column` finds it: ``image``, or the only one of images."""
    return choose_column(
        {name: isinstance(feature, Image) for name, feature in features.items()}, given, IMAGE_COLUMNS, "image_column_name"
    )


def label_column(features: Mapping[str, Any], given: str | None = None) -> str:
    """The column of labels, as `choose_column` finds it: ``label`` or ``labels``, or the only one of classes."""
    return choose_column(
        {name: isinstance(feature, ClassLabel) for name, feature in features.items()},
        given,
        LABEL_COLUMNS,
        "label_column_name",
    )


def tidy(split: Dataset, image_column_name: str | None = None, label_column_name: str | None = None) -> Dataset:
    """Keep the images and the labels of a data set, under the names ``image`` and ``label``.

    Args:
        split: a data set without a transform; files' names or contents, and arrays of uint8, become images.
        image_column_name, label_column_name: where they are, by default as `image_column` and `label_column` find them.

    Raises:
        UsageError: no such columns, or columns of something else.
    """
    split = without_format(split)
    image, label = image_column(split.features, image_column_name), label_column(split.features, label_column_name)
    if image == label:
        raise UsageError(f"label_column_name {label} is the column of the images")
    feature = split.features[image]
    if not isinstance(feature, Image) and not _can_be_images(feature):
        raise UsageError(f"image_column_name {image}: the column holds {feature}, not images")
    check_label_column(split.features[label], label)
    split = split.select_columns([image, label])
    split = split.rename_columns({image: "image", label: "label"} if (image, label) != ("image", "label") else {})
    return split if isinstance(feature, Image) else split.cast_column("image", Image())


def refuse_streams(dataset: Any, name: str) -> None:
    """Refuse what cannot be asked for its n-th image.

    Args:
        dataset: whatever was given.
        name: what it is called.

    Raises:
        UsageError: it is a stream, a loader, the name of a data set, or no data set at all.
    """
    if isinstance(dataset, str | bytes | Path):
        raise UsageError(f"the {name} is {dataset!r}, no data set: load it with datasets.load_dataset or load_from_disk")
    streams = IterableDataset | IterableDatasetDict | TorchIterable
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, streams):
        return
    if not hasattr(dataset, "__iter__"):
        raise UsageError(f"the {name} is a {type(dataset).__name__}, no data set: give one, such as a datasets.Dataset")
    way_out = (
        "load it without streaming=True, or keep a part of it, as in"
        " Dataset.from_list(list(stream.take(1000)), features=stream.features)"
    )
    if isinstance(dataset, DataLoader):
        way_out = "give its dataset, the batches are made here"
    raise UsageError(
        f"the {name} is a {type(dataset).__name__}, but must be a map-style data set, since the randomness of attacks and"
        f" augmentation is keyed by an image's number: {way_out}"
    )


def leaf_of(feature: Any) -> str | None:
    """The type of the numbers in a column of arrays, or of the column itself; None for other columns."""
    while isinstance(feature, List):
        feature = feature.feature
    return feature.dtype if isinstance(feature, Value | Array3D) else None


def _can_be_images(feature: Any) -> bool:
    if isinstance(feature, List | Array3D):
        return leaf_of(feature) == "uint8"
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "binary", "large_binary")
