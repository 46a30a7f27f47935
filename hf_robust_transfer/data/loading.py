"""Load a data set's own splits: from folders of images, or with `datasets`."""

from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset

from ..errors import UsageError
from .arguments import DataArguments
from .folders import check_that_all_is_loaded, image_folders, read_folders


def load_splits(arguments: DataArguments, load_options: dict[str, Any]) -> DatasetDict:
    """Load a data set with all its splits.

    A local folder of images is read by `read_folders`, whatever way it is given; anything else by `datasets`.

    Args:
        arguments: which data.
        load_options: passed on to `datasets.load_dataset`.

    Raises:
        UsageError: nothing to load or several things at once, or data that cannot be loaded.
    """
    name, folders = arguments.dataset_name, arguments.folders
    for split, folder in folders.items():
        if not folder.is_dir():
            raise UsageError(f"--{split}_dir {folder} is not a folder")
    if (name is None) == (not folders):
        raise UsageError("give either --dataset_name or --train_dir, to say which images to use")
    if name is None:
        return read_folders(folders)
    if Path(name).is_dir() and arguments.dataset_config_name is None:
        found = image_folders(Path(name))
        if found is not None:
            return read_folders(found, Path(name))
    try:
        loaded = load_dataset(name, arguments.dataset_config_name, **load_options)
    except (OSError, ValueError, RuntimeError) as error:  # each a base class of what `datasets` and the Hub client raise
        first_line = str(error).strip().partition("\n")[0]
        raise UsageError(f"the data set {name} cannot be loaded: {first_line}") from error
    if Path(name).is_dir():
        check_that_all_is_loaded(Path(name), loaded)
    return loaded
