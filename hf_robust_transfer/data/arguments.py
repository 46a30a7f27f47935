"""Which images to use: the options, and what of them can be refused before anything is read."""

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from datasets import packaged_modules

from ..errors import UsageError, listed

READERS = frozenset(module.name for module in pkgutil.iter_modules(packaged_modules.__path__))
_PLACES = ("dataset_name", "train_dir", "validation_dir", "test_dir")


@dataclass
class DataArguments:
    """Which images to use; the names follow the image-classification example of `transformers`."""

    group: ClassVar[str] = "parameters that control the data"

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A data set's Hub name, or a local folder: of images (a subfolder per class, or first train, validation"
            " and test), or whatever else `datasets` can load (parquet, …)."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    train_dir: str | None = field(default=None, metadata={"help": "A folder of training images, a subfolder per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "A folder of validation images, likewise."})
    test_dir: str | None = field(default=None, metadata={"help": "A folder of test images, likewise."})
    image_column_name: str | None = field(
        default=None, metadata={"help": "The column with the images: by default image, else the only one of images."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "The column with the labels: by default label, else the only one of classes."}
    )
    label_map: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other names for classes of the data, as in 'tabby cat=cat' hund=dog: those that the model's labels"
            " have. Classes that get the same name become one."
        },
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Use these classes only, in this order."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training images to validate on where no validation split exists."}
    )
    split_seed: int | None = field(
        default=None, metadata={"help": "The seed which those are chosen by; by default the training's."}
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
        if self.split_seed is not None and not 0 <= self.split_seed < 2**32:
            raise UsageError(f"--split_seed {self.split_seed} must be between 0 and 2³² - 1")
        for name in _PLACES:
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise UsageError(f"--{name} is empty: name a folder" + ("" if "dir" in name else " or a Hub data set"))
        if self.dataset_name is not None:
            check_data_set_name(self.dataset_name)

    @property
    def places(self) -> dict[str, str]:
        """The options that say where the images lie, but for those that are not given."""
        return {name: getattr(self, name) for name in _PLACES if getattr(self, name) is not None}

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of images that are given, by split."""
        return {name.removesuffix("_dir"): Path(place) for name, place in self.places.items() if name.endswith("_dir")}

    @property
    def hub_id(self) -> str | None:
        """The name of the data set, where that is one on the Hub."""
        return self.dataset_name if self.dataset_name is not None and not Path(self.dataset_name).exists() else None

    @property
    def source(self) -> dict[str, Any]:
        """The options that say where evaluation images come from, but for those at their defaults."""
        subset = ("samples_per_class", "max_train_samples", "max_eval_samples", "max_test_samples")
        return {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.name not in subset and getattr(self, option.name) != option.default
        }


def check_data_set_name(name: str, flag: str = "--dataset_name") -> None:
    """Refuse what is no data set's name: one of `datasets`' readers, which would read the working directory, or a file.

    Args:
        name: of a data set, or a folder.
        flag: what the name was given as.

    Raises:
        UsageError: it is none.

    Example:
        >>> check_data_set_name("csv")
        Traceback (most recent call last):
            ...
        hf_robust_transfer.errors.UsageError: --dataset_name csv is a format, not a data set: name the folder that the ...
    """
    if name in READERS:
        raise UsageError(
            f"{flag} {name} is a format, not a data set: name the folder that the files are in, as in {flag} my_images"
            + (f" or, for the folder of that name here, {flag} ./{name}" if Path(name).is_dir() else "")
            + ("; for a folder with a subfolder per class, --train_dir my_images" if name.endswith("folder") else "")
        )
    if Path(name).is_file():
        raise UsageError(f"{flag} {name} is a file: name the folder that it is in, {flag} {Path(name).parent}")


def parsed_label_map(pairs: list[str] | None, names: list[str]) -> Mapping[str, str]:
    """What ``--label_map`` says: new names by the data's own.

    Args:
        pairs: each ``old=new``; names may hold equals signs themselves.
        names: the data's classes.

    Raises:
        UsageError: a pair without a class of the data before an equals sign, or one that can be read in two ways.

    Example:
        >>> parsed_label_map(["hund=dog", "a=b=c"], ["hund", "a=b"])
        {'hund': 'dog', 'a=b': 'c'}
    """
    renamed: dict[str, str] = {}
    for pair in pairs or ():
        cuts = [place for place, character in enumerate(pair) if character == "=" and pair[:place] in names]
        if len(cuts) != 1 or not pair[cuts[0] + 1 :] or pair[: cuts[0]] in renamed:
            raise UsageError(
                f"--label_map {pair}: write each of the data's classes once, as in 'old=new', where old is one of"
                f" {listed(names)}"
            )
        renamed[pair[: cuts[0]]] = pair[cuts[0] + 1 :]
    return renamed
