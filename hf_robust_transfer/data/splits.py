"""Load a data set, choose its splits, classes and subsets."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, Sequence as SequenceFeature, Value, load_dataset

from ..errors import UsageError

_VALIDATION_NAMES = ("validation", "valid", "val", "dev")


@dataclass
class DataArguments:
    """Which images to use; the names follow the image-classification example of `transformers`."""

    group: ClassVar[str] = "parameters that control the data"

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A data set's Hub name, or a local folder that `datasets` can load (parquet, images)."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    train_dir: str | None = field(default=None, metadata={"help": "A folder of training images, a subfolder per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "A folder of validation images, likewise."})
    test_dir: str | None = field(default=None, metadata={"help": "A folder of test images, likewise."})
    image_column_name: str = field(default="image", metadata={"help": "The column with the images."})
    label_column_name: str = field(default="label", metadata={"help": "The column with the labels."})
    classes: list[str] | None = field(default=None, metadata={"help": "Use these classes only, in this order."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training images to validate on where no validation split exists."}
    )
    samples_per_class: int | None = field(
        default=None, metadata={"help": "Use at most so many training images of each class, chosen by the seed."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use at most so many training images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use at most so many validation images."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Use at most so many test images."})

    def __post_init__(self) -> None:
        if not 0 < self.train_val_split < 1:
            raise UsageError(f"--train_val_split {self.train_val_split} must be between 0 and 1")
        for name in ("samples_per_class", "max_train_samples", "max_eval_samples", "max_test_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least 1")

    @property
    def source(self) -> dict[str, Any]:
        """The options that say where evaluation images come from, but for those at their defaults."""
        subset = ("samples_per_class", "max_train_samples", "max_eval_samples", "max_test_samples")
        return {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.name not in subset and getattr(self, option.name) != option.default
        }


class ImageSplits(NamedTuple):
    """The chosen images: train and validation, a test split where the source has one, and the labels' names."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    labels: list[str]

    @property
    def id2label(self) -> dict[int, str]:
        """The labels by index, as model configurations have them."""
        return dict(enumerate(self.labels))


def load_image_splits(arguments: DataArguments, *, seed: int = 0, **load_options: Any) -> ImageSplits:
    """Load a data set and choose its splits and subsets.

    Args:
        arguments: which data, columns, classes and numbers of samples.
        seed: of the validation split and of every subset.
        load_options: passed on to `datasets.load_dataset` (``token``, ``cache_dir``, …).

    Returns:
        The splits, each with the columns ``image`` and ``label``, the label a `ClassLabel`.

    Raises:
        ValueError: nothing to load, or whatever `choose_splits` raises.
    """
    return choose_splits(_load(arguments, load_options), arguments, seed=seed)


def choose_splits(splits: DatasetDict, arguments: DataArguments, *, seed: int = 0) -> ImageSplits:
    """Choose columns, classes, splits and subsets of a data set that is loaded already.

    Args:
        splits: the data set's own splits, ``train`` at least.
        arguments, seed: as for `load_image_splits`.

    Raises:
        ValueError: a missing split or column, an unknown class, or a class without a training image.
    """
    if "train" not in splits:
        raise UsageError(f"the data set has no training split, only {', '.join(splits)}: give --train_dir")
    splits = DatasetDict({name: _tidy(split, arguments) for name, split in splits.items()})
    if arguments.classes is not None:
        splits = _choose_classes(splits, arguments.classes)
    labels: list[str] = splits["train"].features["label"].names
    for name, split in splits.items():
        _check_labelled(split, name)
        if split.features["label"].names != labels:
            raise UsageError(
                f"the {name} split has the classes {split.features['label'].names}, the training split {labels}"
            )

    train, test = splits["train"], splits.get("test")
    validation = next((splits[name] for name in _VALIDATION_NAMES if name in splits), None)
    if validation is None:
        train, validation = _split_off(train, arguments.train_val_split, seed)
    if arguments.samples_per_class is not None:
        train = _per_class(train, arguments.samples_per_class, seed)
    train = _at_most(train, arguments.max_train_samples, seed)
    validation = _at_most(validation, arguments.max_eval_samples, seed)
    test = None if test is None else _at_most(test, arguments.max_test_samples, seed)

    absent = sorted(set(range(len(labels))) - set(train["label"]))
    if absent:
        raise UsageError(
            f"no training image of {', '.join(labels[label] for label in absent)}: add some, raise --max_train_samples, or"
            " leave the class out with --classes"
        )
    return ImageSplits(train, validation, test, labels)


def load_evaluation_split(
    arguments: DataArguments,
    *,
    labels: Sequence[str],
    split: str | None = None,
    seed: int = 0,
    subset_seed: int | None = None,
    **load_options: Any,
) -> tuple[Dataset, str]:
    """Load the images to evaluate a trained model on.

    Args:
        arguments: which data, columns and classes, and ``max_eval_samples``.
        labels: the model's, in its order. Where the data has them all by name it is reduced to these classes, in this
            order; else it must have as many classes, which are taken to be the model's in their order.
        split: which split; by default the test split, else the validation split, else the part of the training images
            that `choose_splits` sets aside for validation with this seed, which is ``validation``, too.
        seed: of that part.
        subset_seed: of the choice of at most ``max_eval_samples``; by default the same.
        load_options: passed on to `datasets.load_dataset`.

    Returns:
        The images, with the columns ``image`` and ``label``, and the split's name.

    Raises:
        ValueError: no such split or column, labels that do not agree with the model's, or images without a label.
    """
    splits = _load(arguments, load_options)
    set_aside = split == "validation" and "train" in splits and not splits.keys() & {"test", *_VALIDATION_NAMES}
    if split is not None and split not in splits and not set_aside:
        raise UsageError(f"--split {split}: the data set has no such split, only {', '.join(splits)}")
    name = split or next((name for name in ("test", *_VALIDATION_NAMES) if name in splits), None)
    if name is None or set_aside:
        name, chosen = "validation", choose_splits(splits, replace(arguments, max_eval_samples=None), seed=seed).validation
    else:
        chosen = _tidy(splits[name], arguments)
    wanted = list(arguments.classes or labels)
    names = chosen.features["label"].names
    if set(wanted) <= set(names) and wanted != names:
        chosen = _choose_classes(DatasetDict({name: chosen}), wanted)[name]
    elif len(names) != len(labels):
        raise UsageError(
            f"the model has the {len(labels)} labels {', '.join(labels)}, but the data the {len(names)} classes"
            f" {', '.join(names)}: choose with --classes, in the model's order"
        )
    _check_labelled(chosen, name)
    return _at_most(chosen, arguments.max_eval_samples, seed if subset_seed is None else subset_seed), name


def _check_labelled(split: Dataset, name: str) -> None:
    unlabelled = sum(label is None or label < 0 for label in split["label"])
    if unlabelled:
        raise UsageError(
            f"{unlabelled} of {len(split)} images of the {name} split have no label: remove them, or the split"
        )


def _load(arguments: DataArguments, options: dict[str, Any]) -> DatasetDict:
    folders = {"train": arguments.train_dir, "validation": arguments.validation_dir, "test": arguments.test_dir}
    given = {split: folder for split, folder in folders.items() if folder is not None}
    for split, folder in given.items():
        if not Path(folder).is_dir():
            raise UsageError(f"--{split}_dir {folder} is not a folder")
    if (arguments.dataset_name is None) == (not given):
        raise UsageError("give either --dataset_name or --train_dir, to say which images to use")
    try:
        if given:
            return load_dataset(
                "imagefolder", data_files={split: f"{glob.escape(folder)}/**" for split, folder in given.items()}
            )
        loaded = load_dataset(arguments.dataset_name, arguments.dataset_config_name, **options)
    except (OSError, ValueError, RuntimeError) as error:  # each a base class of what `datasets` and the Hub client raise
        raise UsageError(
            f"the data set {arguments.dataset_name or given} cannot be loaded: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    return loaded


def _tidy(split: Dataset, arguments: DataArguments) -> Dataset:
    """Keep the image and the label, under those names, the label as a ClassLabel."""
    for flag, column in (("image", arguments.image_column_name), ("label", arguments.label_column_name)):
        if column not in split.column_names:
            raise UsageError(
                f"--{flag}_column_name {column}: the data set has no such column, only {', '.join(split.column_names)}"
                + ("; a folder of images needs a subfolder per class" if arguments.train_dir and flag == "label" else "")
            )
    split = split.select_columns([arguments.image_column_name, arguments.label_column_name])
    split = split.rename_columns(
        {arguments.image_column_name: "image", arguments.label_column_name: "label"}
        if (arguments.image_column_name, arguments.label_column_name) != ("image", "label")
        else {}
    )
    if not isinstance(split.features["image"], Image):
        raise UsageError(
            f"--image_column_name {arguments.image_column_name}: the column holds {split.features['image']}, not images"
        )
    label = split.features["label"]
    if isinstance(label, ClassLabel):
        return split
    if isinstance(label, SequenceFeature | dict) or not isinstance(label, Value):
        raise UsageError(
            f"--label_column_name {arguments.label_column_name}: the column holds {label}, not one label per image"
        )
    return split.class_encode_column("label")


def _choose_classes(splits: DatasetDict, classes: Sequence[str]) -> DatasetDict:
    known = splits["train" if "train" in splits else next(iter(splits))].features["label"].names
    if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(known):
        raise UsageError(f"--classes {' '.join(classes)}: use two or more different ones of {', '.join(known)}")
    chosen = {}
    for split_name, split in splits.items():
        names = split.features["label"].names  # labels that were text are numbered anew in each split
        new_labels = [classes.index(names[label]) if names[label] in classes else None for label in split["label"]]
        rows = [row for row, label in enumerate(new_labels) if label is not None]
        chosen[split_name] = (
            split.select(rows)
            .remove_columns("label")
            .add_column("label", [new_labels[row] for row in rows])
            .cast_column("label", ClassLabel(names=list(classes)))
        )
    return DatasetDict(chosen)


def _split_off(train: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    try:
        parts = train.train_test_split(share, seed=seed, stratify_by_column="label")
    except ValueError:  # too few images of some class to stratify by
        parts = train.train_test_split(share, seed=seed)
    return parts["train"], parts["test"]


def _per_class(split: Dataset, samples: int, seed: int) -> Dataset:
    labels = torch.tensor(list(split["label"]))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rows = [order[labels[order] == label][:samples] for label in labels.unique()]
    return split.select(torch.cat(rows).sort().values.tolist())


def _at_most(split: Dataset, samples: int | None, seed: int) -> Dataset:
    if samples is None or samples >= len(split):
        return split
    return split.shuffle(seed=seed).select(range(samples))
