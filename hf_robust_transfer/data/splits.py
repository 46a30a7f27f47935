"""Choose the splits, classes and subsets of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from datasets import Dataset, DatasetDict
from transformers.utils import logging

from ..errors import UsageError, listed
from .arguments import DataArguments
from .columns import image_column, label_column, refuse_streams, tidy
from .folders import SPLIT_WORDS, split_of
from .labels import (
    UNLABELLED,
    as_labels_of,
    choose_classes,
    is_numbered,
    with_classes,
    with_labels,
    without_format,
)
from .loading import load_splits

logger = logging.get_logger(__name__)


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
        seed: of every subset and, where the arguments have no other, of the validation split.
        load_options: passed on to `datasets.load_dataset` (``token``, ``cache_dir``, …).

    Returns:
        The splits, each with the columns ``image`` and ``label``, the label a `ClassLabel`.

    Raises:
        UsageError: nothing to load, or whatever `choose_splits` raises.
    """
    return choose_splits(load_splits(arguments, load_options), arguments, seed=seed)


def choose_splits(splits: Mapping[str, Dataset] | Dataset, arguments: DataArguments, *, seed: int = 0) -> ImageSplits:
    """Choose columns, classes, splits and subsets of a data set that is loaded already.

    A validation or test split without a label is left out with a warning.

    Args:
        splits: the data set's own splits, ``train`` at least; or the training split alone.
        arguments, seed: as for `load_image_splits`.

    Raises:
        UsageError: a missing split or column, an unknown class, fewer than two, one without a training image, one that only
            another split has, or images without a label.
    """
    splits = splits if isinstance(splits, Mapping) else {"train": splits}
    for split in splits.values():
        refuse_streams(split, "data set")
    splits = DatasetDict({name: without_format(split) for name, split in splits.items()})
    own = {name: splits[found] for name in SPLIT_WORDS if (found := _called(splits, name)) is not None}
    if "train" not in own:
        raise UsageError(f"the data set has no training split, only {listed(splits)}: give --train_dir")
    arguments = _with_columns(arguments, splits)
    usable = {name: split for name, split in own.items() if name == "train" or _has_labels(split, name, arguments)}
    chosen, labels = with_classes({name: _tidy(split, arguments) for name, split in usable.items()}, arguments.label_map)
    if arguments.classes is not None:
        chosen = {name: choose_classes(split, arguments.classes, labels) for name, split in chosen.items()}
        chosen = {name: split for name, split in chosen.items() if name == "train" or _has_labels(split, name)}
        labels = list(arguments.classes)
    _check_labelled(chosen["train"], "train")
    if len(labels) < 2:
        only = f"one class only, {listed(labels)}" if labels else "no training image"
        raise UsageError(f"the data has {only}: a classifier needs two classes or more")
    for name, split in chosen.items():
        _check_labelled(split, name)
        new = split.features["label"].names[len(labels) :]
        if set(split["label"]) & set(range(len(labels), len(labels) + len(new))):
            raise UsageError(
                f"the {name} split has images of the classes {listed(new)}, which the training split does not have, only"
                f" {listed(labels)}: rename them with --label_map, or choose with --classes"
            )
        chosen[name] = split if not new else with_labels(split, split["label"], labels)

    train, validation, test = chosen["train"], chosen.get("validation"), chosen.get("test")
    if validation is None:
        train, validation = _split_off(train, arguments.train_val_split, _seed_of_split(arguments, seed))
    if arguments.samples_per_class is not None:
        train = _per_class(train, arguments.samples_per_class, seed)
    train = _at_most(train, arguments.max_train_samples, seed)
    validation = _at_most(validation, arguments.max_eval_samples, seed)
    test = None if test is None else _at_most(test, arguments.max_test_samples, seed)

    absent = sorted(set(range(len(labels))) - set(train["label"]))
    if absent:
        raise UsageError(
            f"no training image of {listed(labels[label] for label in absent)}: add some, raise --max_train_samples, or"
            " leave the class out with --classes"
        )
    return ImageSplits(train, validation, test, labels)


def load_evaluation_split(
    arguments: DataArguments,
    *,
    labels: Sequence[str] | None,
    split: str | None = None,
    seed: int = 0,
    subset_seed: int | None = None,
    **load_options: Any,
) -> tuple[Dataset, str]:
    """Load the images to evaluate a trained model on.

    Args:
        arguments: which data, columns and classes, and ``max_eval_samples``.
        labels: the model's, in its order, which the data's classes are mapped to by name, as `match_labels` does it; the
            images' labels are the model's then. None for the data's own.
        split: which split; by default the test split, else the validation split, else the part of the training images
            that `choose_splits` sets aside for validation with this seed, which is ``validation``, too. Splits without a
            label are passed over with a warning.
        seed: of that part, where the arguments have no other.
        subset_seed: of the choice of at most ``max_eval_samples``; by default the same.
        load_options: passed on to `datasets.load_dataset`.

    Returns:
        The images, with the columns ``image`` and ``label``, and the split's name.

    Raises:
        UsageError: no such split or column, labels that do not agree with the model's, or images without a label.
    """
    splits = load_splits(arguments, load_options)
    arguments = _with_columns(arguments, splits)
    name = _labelled_split(splits, split, arguments)
    if name is not None:
        chosen = _tidy(splits[name], arguments)
        numbered = is_numbered(chosen) and not arguments.label_map
        if arguments.label_map is not None:
            chosen = _renamed(splits, name, chosen, arguments)
    else:
        name = "validation"
        chosen = _set_aside(splits, arguments, labels, seed)
        numbered = is_numbered(_tidy(splits[str(_called(splits, "train"))], arguments)) and not arguments.label_map
    if labels is None:
        labels = arguments.classes or _own_classes(splits, name, chosen, arguments)
    images = as_labels_of(chosen, labels, classes=arguments.classes, numbered=numbered)
    _check_labelled(images, name)
    if not len(images):
        raise UsageError(f"the {name} split has no image of these classes: choose another with --split")
    return _at_most(images, arguments.max_eval_samples, seed if subset_seed is None else subset_seed), name


def _labelled_split(splits: DatasetDict, wanted: str | None, arguments: DataArguments) -> str | None:
    """The split to evaluate on, or None for a part of the training images."""
    if wanted is None:
        found = [_called(splits, "test"), _called(splits, "validation")]
    else:
        role = split_of(wanted)
        found = [wanted if wanted in splits else role and _called(splits, role)]
    may_be_set_aside = wanted in (None, "validation")
    for name in found:
        if name is not None and (not may_be_set_aside or _has_labels(splits[name], name, arguments)):
            return name
    if wanted is not None and not (may_be_set_aside and _called(splits, "train")):
        raise UsageError(f"--split {wanted}: the data set has no such split, only {listed(splits)}")
    return None


def _renamed(splits: DatasetDict, name: str, chosen: Dataset, arguments: DataArguments) -> Dataset:
    """A split with its classes renamed, some of which only the training split may have."""
    train = _called(splits, "train")
    others = {} if train in (None, name) else {"train": _tidy(splits[train], arguments)}
    return with_classes({"chosen": chosen, **others}, arguments.label_map)[0]["chosen"]


def _set_aside(splits: DatasetDict, arguments: DataArguments, labels: Sequence[str] | None, seed: int) -> Dataset:
    """The part of the training images that training with these labels does not see."""
    train = _called(splits, "train")
    whole = replace(arguments, samples_per_class=None, max_train_samples=None, max_eval_samples=None)
    if train is not None and labels is not None:
        _, own = with_classes({"train": _tidy(splits[train], arguments)}, arguments.label_map)
        # Those that training chose of them, whatever is to be evaluated.
        if set(labels) == set(own) or (arguments.classes is not None and set(labels) <= set(own)):
            whole = replace(whole, classes=None if own == list(labels) else list(labels))
    alone = splits if train is None else DatasetDict({"train": splits[train]})
    return choose_splits(alone, whole, seed=seed).validation


def _own_classes(splits: DatasetDict, name: str, chosen: Dataset, arguments: DataArguments) -> list[str]:
    """The classes of the data set as training numbers them."""
    first = _called(splits, "train")
    train = {} if first is None else {"train": _tidy(splits[first], arguments)}
    return with_classes(train or {name: chosen}, arguments.label_map)[1]


def _called(splits: DatasetDict, role: str) -> str | None:
    """The split that is called train, validation or test, in this or another way of writing."""
    named = [name for name in splits if split_of(name) == role]
    return min(named, key=lambda name: name != role, default=None)


def _seed_of_split(arguments: DataArguments, seed: int) -> int:
    return seed if arguments.split_seed is None else arguments.split_seed


def _has_labels(split: Dataset, name: str, arguments: DataArguments | None = None) -> bool:
    """Whether any image of a split has a label; says so where none has.

    Args:
        split: a data set's own, or with ``arguments`` None one that is tidy.
        name: of it.
        arguments: with the name of the label's column.
    """
    column = "label" if arguments is None else arguments.label_column_name
    labels = split[column] if column in split.column_names else ()
    known = any(label not in (None, "") and not (isinstance(label, int) and label < 0) for label in labels)
    if not known:
        lacking = "a label" if arguments is not None else "one of these classes"
        logger.warning(f"the {name} split is left out: none of its {len(split)} images has {lacking}")
    return known


def _check_labelled(split: Dataset, name: str) -> None:
    unlabelled = sum(label == UNLABELLED for label in split["label"])
    if unlabelled:
        raise UsageError(
            f"{unlabelled} of {len(split)} images of the {name} split have no label: remove them, or the split"
        )


def _tidy(split: Dataset, arguments: DataArguments) -> Dataset:
    """Keep the image and the label, under those names."""
    split = without_format(split)
    try:
        return tidy(split, arguments.image_column_name, arguments.label_column_name)
    except UsageError as error:
        raise UsageError(f"--{error}") from None


def _with_columns(arguments: DataArguments, splits: DatasetDict) -> DataArguments:
    """The arguments with the names of the columns: those of the training split, or else of the split that has the most."""
    train = _called(splits, "train")
    features = (
        max(splits.values(), key=lambda split: len(split.features)).features if train is None else splits[train].features
    )
    try:
        image = image_column(features, arguments.image_column_name)
        label = label_column(features, arguments.label_column_name)
    except UsageError as error:
        raise UsageError(f"--{error}") from None
    return replace(arguments, image_column_name=image, label_column_name=label)


def _split_off(train: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    try:
        parts = train.train_test_split(share, seed=seed, stratify_by_column="label")
    except ValueError:  # too few images of some class to stratify by
        try:
            parts = train.train_test_split(share, seed=seed)
        except ValueError:
            raise UsageError(
                f"--train_val_split {share} leaves nothing of {len(train)} training images on one side: give another share,"
                " or --validation_dir"
            ) from None
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
