"""Labels: any column of them as classes, and the data's classes as a model's labels, by their names."""

import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Sequence as SequenceFeature, Value

from ..errors import UsageError, listed
from .arguments import parsed_label_map

UNLABELLED = -1


def is_numbered(split: Dataset) -> bool:
    """Whether the labels are plain integers, which have no names but count a model's labels."""
    feature = split.features["label"]
    return isinstance(feature, Value) and "int" in feature.dtype


def without_format(split: Dataset) -> Dataset:
    """A data set whose rows come as they are stored, whatever format was set.

    Raises:
        UsageError: it is no `datasets.Dataset`, or has a transform, which would be lost.
    """
    if not isinstance(split, Dataset):
        raise UsageError(
            f"a datasets.Dataset is needed, not a {type(split).__name__}: of several splits give one; others are for"
            " RobustTrainer and evaluate_robustness, or hf_robust_transfer.data.as_pixel_dataset"
        )
    if has_transform(split):
        raise UsageError(
            "the data set has a transform of its own (with_transform, set_transform): take it off with with_format(None),"
            " or give the data set to RobustTrainer or evaluate_robustness as it is"
        )
    return split.with_format(None)


def has_transform(split: Dataset) -> bool:
    """Whether the rows of a data set go through a function of the user's."""
    return split.format["type"] == "custom"


def check_label_column(feature: Any, name: str) -> None:
    """Refuse a column that does not hold one class per image.

    Args:
        feature: the column's type.
        name: what it is called.

    Raises:
        UsageError: it holds lists, fractions or other things.
    """
    if isinstance(feature, ClassLabel):
        return
    if isinstance(feature, SequenceFeature | dict) or not isinstance(feature, Value):
        raise UsageError(f"label_column_name {name}: the column holds {feature}, not one label per image")
    if "int" not in feature.dtype and feature.dtype not in ("string", "large_string", "bool"):
        raise UsageError(
            f"label_column_name {name}: the column holds {feature.dtype}, not classes: make integers or names of them"
        )


def with_classes(splits: Mapping[str, Dataset], label_map: list[str] | None = None) -> tuple[dict[str, Dataset], list[str]]:
    """Make the label columns of all splits one `ClassLabel`.

    Its names are the first split's classes, then those of images that only other splits have. Integers are named after
    themselves and ordered as numbers, texts are ordered as texts. Integers below 0, empty texts and missing values are no
    label, -1.

    Args:
        splits: with a column ``label`` each.
        label_map: other names for classes, as for `parsed_label_map`.

    Returns:
        The splits, and the names of the first one's classes.

    Raises:
        UsageError: what `parsed_label_map` raises.

    Example:
        >>> images = Dataset.from_dict({"image": ["a.png", "b.png", "c.png"], "label": [10, 2, -1]})
        >>> splits, names = with_classes({"train": images})
        >>> names, splits["train"]["label"][:]
        (['2', '10'], [1, 0, -1])
    """
    first, *others = splits.values()
    own = _classes_of(first)
    every = list(dict.fromkeys([*own, *(name for split in others for name in _classes_of(split, present=True))]))
    renamed = parsed_label_map(label_map, every)
    names = list(dict.fromkeys(renamed.get(name, name) for name in every))
    place = {name: index for index, name in enumerate(names)}
    number = {name: place[renamed.get(name, name)] for name in every}
    chosen = {}
    for split_name, split in splits.items():
        feature = split.features["label"]
        if not isinstance(feature, ClassLabel) or feature.names != names:
            read = _reader(split)
            own_names = map(read, split["label"])
            split = with_labels(split, [UNLABELLED if name is None else number[name] for name in own_names], names)
        chosen[split_name] = split
    return chosen, list(dict.fromkeys(renamed.get(name, name) for name in own))


def _classes_of(split: Dataset, *, present: bool = False) -> list[str]:
    """The classes of a split in order; those that there are images of, or all."""
    feature = split.features["label"]
    if isinstance(feature, ClassLabel) and not present:
        return list(feature.names)
    read = _reader(split)
    return [str(read(label)) for label in sorted(label for label in set(split["label"]) if read(label) is not None)]


def _reader(split: Dataset) -> Callable[[Any], str | None]:
    """A function from what the column holds to a class's name, or None for no label."""
    feature = split.features["label"]
    if isinstance(feature, ClassLabel):
        return lambda label: None if label is None or label < 0 else feature.names[label]
    if is_numbered(split):
        return lambda label: None if label is None or label < 0 else str(label)
    return lambda label: None if label is None or label == "" else str(label)


def with_labels(split: Dataset, numbers: Sequence[int], names: Sequence[str]) -> Dataset:
    """The same images with other labels.

    Args:
        split: the images.
        numbers: the new label of each.
        names: of these labels; where two are the same, the column is one of plain integers.
    """
    feature = ClassLabel(names=list(names)) if len(set(names)) == len(names) else Value("int64")
    return split.remove_columns("label").add_column("label", list(numbers), feature=feature)


def match_labels(
    names: Sequence[str],
    labels: Sequence[str],
    *,
    present: Collection[int] | None = None,
    numbered: bool = False,
    remedy: str | None = "--label_map",
) -> dict[int, int]:
    """Which of a model's labels each of the data's classes is: the one of its name.

    The same name in another way of writing (``Tabby_cat`` for ``tabby cat``) is proposed in the error, and not taken: two
    classes may differ by nothing else.

    Args:
        names: the data's classes.
        labels: the model's, in the order of its logits.
        present: the classes that there are images of, which are all that matter; by default all.
        numbered: the data's classes are plain integers. If they are no names of the model's labels, and none of these is a
            number, they count them from 0.
        remedy: what the error tells to map them with; None in Python, where a head for the data's classes is told of.

    Returns:
        The model's label by the data's, both as numbers.

    Raises:
        UsageError: a class that no label of the model, or more than one, is named after; the message has both lists.

    Example:
        >>> match_labels(["bee", "cow"], ["ant", "bee", "cow", "dog"])
        {0: 1, 1: 2}
        >>> match_labels(["2", "0"], ["ant", "bee", "cow"], numbered=True)
        {0: 2, 1: 0}
    """
    classes = range(len(names)) if present is None else sorted(present)
    if list(names) == list(labels):
        return {index: index for index in classes}
    unknown = [names[index] for index in classes if names[index] not in labels]
    if unknown and numbered and not any(_is_number(label) for label in labels):
        beyond = [names[index] for index in classes if int(names[index]) >= len(labels)]
        if beyond:
            raise UsageError(
                f"the data's label numbers {listed(beyond)} are none of the model's {len(labels)} labels, numbered from 0:"
                f" {listed(labels)}"
            )
        return {index: int(names[index]) for index in classes}
    both = f"the model has the {len(labels)} labels {listed(labels)}, but the data the {len(names)} classes {listed(names)}"
    if unknown and remedy is None:
        raise UsageError(
            f"{both}: no label is named {listed(unknown)}; rename the data's classes, leave their images out, or give the"
            " model a head for them with load_model(…, id2label=…)"
        )
    if unknown:
        pair = f"'{listed(unknown[:1])}={listed(labels[:1])}'"
        example = " ".join(_proposals(unknown, labels)) or f"{pair}, if they are the same"
        raise UsageError(
            f"{both}: no label is named {listed(unknown)}; say which they are with {remedy}, as in {remedy} {example}, or"
            " leave their images out with --classes and the names of the others"
        )
    times = Counter(labels)
    twice = [names[index] for index in classes if times[names[index]] > 1]
    if twice:
        raise UsageError(f"{both}: more than one label is named {listed(twice)}; give the data's labels as numbers")
    return {index: labels.index(names[index]) for index in classes}


def _proposals(unknown: Iterable[str], labels: Sequence[str]) -> list[str]:
    """For each class that is a label in another way of writing, and of one label only, the pair that maps it."""
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(_letters(label), []).append(label)
    pairs = [(name, alike.get(_letters(name), [])) for name in unknown]
    proposed = [f"{name}={found[0]}" for name, found in pairs if len(found) == 1]
    return [shlex.quote(pair) for pair in proposed if pair.isprintable()]


def _letters(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def as_labels_of(
    split: Dataset,
    labels: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    numbered: bool | None = None,
    remedy: str | None = "--label_map",
) -> Dataset:
    """The images of a split with a model's labels.

    Args:
        split: with a column ``label`` of any type that `with_classes` reads.
        labels: the model's.
        classes: leave out the images of all others.
        numbered: whether the labels are plain integers, by default as the column says.
        remedy: as for `match_labels`.

    Raises:
        UsageError: what `match_labels` and `without_format` raise, or classes that the data or the model do not have.
    """
    split = without_format(split)
    numbered = is_numbered(split) if numbered is None else numbered
    read, names = with_classes({"": split})
    split = read[""]
    if classes is not None:
        split = choose_classes(split, classes, names)
        lacking = [name for name in classes if name not in labels] if not numbered else []
        if lacking:
            raise UsageError(
                f"--classes {' '.join(classes)}: the model has no label named {listed(lacking)}, only {listed(labels)}; if"
                f" one of them means the same, say so with {remedy}"
            )
        names = list(classes)
    own = split["label"][:]
    found = match_labels(names, labels, present=set(own) - {UNLABELLED}, numbered=numbered, remedy=remedy)
    if names == list(labels):
        return split
    return with_labels(split, [found.get(label, UNLABELLED) for label in own], labels)


def choose_classes(split: Dataset, classes: Sequence[str], known: Sequence[str]) -> Dataset:
    """The images of some classes, which are numbered in this order.

    Args:
        split: as `with_classes` gives it.
        classes: two or more of them.
        known: those that may be chosen.

    Raises:
        UsageError: an unknown class, one that comes twice, or fewer than two.
    """
    if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(known):
        raise UsageError(f"--classes {' '.join(classes)}: use two or more different ones of {listed(known)}")
    names = split.features["label"].names
    number = {name: index for index, name in enumerate(classes)}
    numbers = [UNLABELLED if label < 0 else number.get(names[label]) for label in split["label"]]
    rows = [row for row, label in enumerate(numbers) if label is not None]
    relabelled = with_labels(split, [UNLABELLED if label is None else label for label in numbers], classes)
    return relabelled if len(rows) == len(relabelled) else relabelled.select(rows)
