"""Folders of images with a subfolder per class: which files are images of what. Nothing is left out without a word."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, config
from PIL import Image as PILImage
from transformers.utils import logging

from ..errors import UsageError, listed

logger = logging.get_logger(__name__)
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NO_NAME = {"", "set", "split", "data", "images", "imgs", "folder"}
_SUFFIXES = {suffix for suffix, kind in PILImage.registered_extensions().items() if kind in PILImage.OPEN}
_OTHER_DATA = {".parquet", ".arrow", ".tar", ".zip", ".lance", ".hdf5", ".h5"}  # whose readers in `datasets` give images


def split_of(name: str) -> str | None:
    """The split that a folder, or a data set's split, is called after: train, validation, test or None.

    Example:
        >>> split_of("Train"), split_of("val2017"), split_of("test_images"), split_of("training-set"), split_of("cat")
        ('train', 'validation', 'test', 'train', None)
    """
    words = [word for word in re.split("[^a-z]+", name.casefold()) if word not in _NO_NAME]
    if len(words) != 1:
        return None
    return next((split for split, known in SPLIT_WORDS.items() if words[0].removesuffix("set") in known), None)


def image_folders(folder: Path) -> dict[str, Path] | None:
    """The folders of images that a folder consists of, by split, or None for one that `datasets` has to read.

    Args:
        folder: with train, validation and test folders in it, or with a subfolder per class, which are training images;
            or with nothing but such a folder.

    Raises:
        UsageError: two folders of the same split, or one that cannot be read.
    """
    for _ in range(3):
        within = [path for path in _visible(folder) if path.is_dir()]
        splits = _split_folders(folder)
        if any(_is_for_datasets(path) for each in [folder, *splits.values()] for path in _visible(each)):
            return None
        holds_classes = any(path.suffix.lower() in _SUFFIXES for each in within for path in _visible(each))
        if not splits and holds_classes:
            return {"train": folder}
        if not splits and len(within) != 1:
            return None
        chosen = list(splits.values()) or within
        _say_left_out(folder, [path.name for path in _entries(folder) if path not in chosen], "beside the images")
        if splits:
            return splits
        folder = within[0]
    return None


def read_folders(folders: Mapping[str, Path], data_set: Path | None = None) -> DatasetDict:
    """Read folders of images with a subfolder per class, which may be a symbolic link.

    Args:
        folders: by split.
        data_set: the folder that all of them are in, if they were not given one by one.

    Returns:
        For each split a data set with the columns ``image`` (as files) and ``label``.

    Raises:
        UsageError: a folder that cannot be read, holds splits, folders within a class, images beside the classes or no
            image at all; the same folder in two splits; or a symbolic link that leads nowhere.
    """
    flags = {split: f"--{split}_dir {folder}" for split, folder in folders.items()}
    if data_set is not None:
        flags = {split: f"--dataset_name {data_set}: {folder.name}" for split, folder in folders.items()}
    seen: dict[str, str] = {}
    for split, folder in folders.items():
        for place in [folder, *(path for path in _visible(folder) if path.is_dir())]:
            other = seen.setdefault(os.path.realpath(place), split)
            if other != split:
                raise UsageError(f"{flags[split]}: {place} is a folder of the {other} images as well")
    return DatasetDict({split: _read(folder, split, flags[split]) for split, folder in folders.items()})


def check_that_all_is_loaded(folder: Path, loaded: DatasetDict) -> None:
    """See that `datasets` has pooled no splits, whose names it knows in lower case only; say so if images are missing.

    Args:
        folder: that was loaded.
        loaded: what became of it.

    Raises:
        UsageError: a file or folder is called after another split, while all went into the training split.
    """
    if _is_card_with_files(folder / config.REPOCARD_FILENAME):
        return
    images = 0
    for place, below, files in os.walk(folder, followlinks=False):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in [*below, *(name for name in files if not name.startswith("."))]:
            words = re.split("[^a-z]+", name.partition(".")[0].casefold())
            other = next((split for split in ("validation", "test") if set(SPLIT_WORDS[split]) & set(words)), None)
            if set(loaded) == {"train"} and other is not None:
                raise UsageError(
                    f"--dataset_name {folder}: {Path(place, name)} would be pooled with the training images: begin its name"
                    f" with {other}, in lower case"
                )
            images += Path(name).suffix.lower() in _SUFFIXES
    rows = sum(len(split) for split in loaded.values())
    if images > rows:
        logger.warning(
            f"{folder}: of {images} images only {rows} are in the data set, the others have no place in its metadata"
        )


def _read(folder: Path, split: str, flag: str) -> Dataset:
    splits = _split_folders(folder)
    if splits:
        names = [path.name for path in splits.values()]
        one = splits.get(split, folder / names[0])
        raise UsageError(
            f"{flag} holds folders of several classes each, {listed(names)}, whose images would be pooled: use"
            f" --dataset_name {folder}, which keeps splits apart, or name one of them, as in {one}"
        )
    if any(path.name.startswith("metadata.") for path in _visible(folder)):
        raise UsageError(f"{flag} has its labels in a metadata file, not in folders' names: use --dataset_name {folder}")
    files: list[tuple[str, str]] = []
    names, left_out = [], []
    for path in _entries(folder):
        if path.name.startswith(".") or not path.is_dir():
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
                raise UsageError(f"{flag}: {path.name} lies beside the folders of the classes: move it into one of them")
            left_out.append(path.name)
            continue
        names.append(path.name)
        own = list(_images_of(path, flag, left_out))
        files += own
        if not own:
            logger.warning(f"{flag}: the folder of the class {path.name} holds no image")
    _say_left_out(folder, left_out, "no images by their names, or hidden")
    if not files:
        raise UsageError(
            f"{flag} cannot be loaded: it holds no image in a folder per class, as in {folder}/cat/1.jpg; other data are"
            " loaded with --dataset_name"
        )
    if all(split_of(name) for name in names):
        raise UsageError(
            f"{flag} holds no folder per class, only {listed(names)}, which are called after splits: put the images of each"
            " class into a folder of its own"
        )
    files.sort()
    number = {name: index for index, name in enumerate(names)}
    columns = {"image": [file for file, _ in files], "label": [number[name] for _, name in files]}
    try:
        return Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=names)}))
    except UnicodeEncodeError:
        raise UsageError(f"{flag}: a name of a file or folder in it is not UTF-8: rename it") from None


def _images_of(class_folder: Path, flag: str, left_out: list[str]) -> Iterator[tuple[str, str]]:
    """The image files of a class, with its name; what else is there goes to ``left_out``."""
    for path in _entries(class_folder):
        if path.name.startswith("."):
            left_out.append(f"{class_folder.name}/{path.name}")
        elif path.is_dir():
            raise UsageError(
                f"{flag}: {class_folder.name}/{path.name} is a folder within the folder of a class: move its images up, or"
                " away"
            )
        elif path.suffix.lower() in _SUFFIXES and path.is_file():
            yield os.path.abspath(path), class_folder.name
        else:
            left_out.append(f"{class_folder.name}/{path.name}")


def _entries(folder: Path) -> list[Path]:
    """All that is in a folder, in order."""
    try:
        found = sorted(folder.iterdir(), key=lambda path: path.name)
        gone = [path for path in found if path.is_symlink() and not path.exists()]
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be read: {error.strerror}") from None
    if gone:
        raise UsageError(f"{gone[0]} is a symbolic link that leads nowhere: mend or remove it")
    return found


def _visible(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if not path.name.startswith(".")]


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders that are called after a split and hold folders themselves; one with images in it is a class."""
    found: dict[str, Path] = {}
    for path in _visible(folder):
        split = split_of(path.name) if path.is_dir() else None
        if split is not None and any(each.is_dir() for each in _visible(path)):
            if split in found:
                raise UsageError(f"{folder} holds two folders of the {split} split, {found[split].name} and {path.name}")
            found[split] = path
    return found


def _is_for_datasets(path: Path) -> bool:
    """Whether this file holds images, or says what is what: `datasets` reads these, and a card that names its files."""
    return path.suffix.lower() in _OTHER_DATA or path.name.startswith("metadata.") or _is_card_with_files(path)


def _is_card_with_files(path: Path) -> bool:
    """Whether this is a data set's card that says which files are which split."""
    if path.name != config.REPOCARD_FILENAME or not path.is_file():
        return False
    start = path.read_text(encoding="utf-8", errors="replace")
    return start.startswith("---") and "configs:" in start.split("---")[1]


def _say_left_out(folder: Path, names: list[str], why: str) -> None:
    if names:
        logger.warning(f"{folder}: left out as {why}: {listed(names, 10)}")
