"""Load a data set's own splits: from folders of images, or with `datasets`."""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, config, load_dataset, load_from_disk

from ..errors import UsageError
from .arguments import DataArguments
from .folders import check_that_all_is_loaded, image_folders, read_folders, split_of


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
    if Path(name).is_dir() and arguments.dataset_config_name is None and not saved_by_datasets(Path(name)):
        found = image_folders(Path(name))
        if found is not None:
            return read_folders(found, Path(name))
    if saved_by_datasets(Path(name)):
        return _from_disk(Path(name), arguments)
    try:
        loaded = load_dataset(name, arguments.dataset_config_name, **load_options)
    except (OSError, ValueError, RuntimeError) as error:  # each a base class of what `datasets` and the Hub client raise
        first_line = str(error).strip().partition("\n")[0]
        raise UsageError(f"the data set {name} cannot be loaded: {first_line}") from error
    if Path(name).is_dir():
        check_that_all_is_loaded(Path(name), loaded)
    return loaded


def saved_by_datasets(folder: Path) -> bool:
    """Whether a folder is what ``save_to_disk`` of a `Dataset` or a `DatasetDict` writes."""
    names = [[config.DATASETDICT_JSON_FILENAME], [config.DATASET_STATE_JSON_FILENAME, config.DATASET_INFO_FILENAME]]
    return any(all((folder / name).is_file() for name in each) for each in names)


def _from_disk(folder: Path, arguments: DataArguments) -> DatasetDict:
    """What ``save_to_disk`` wrote; a `Dataset` alone is the split that it was of or, of none, training images."""
    if arguments.dataset_config_name is not None:
        raise UsageError(f"--dataset_config_name {arguments.dataset_config_name}: a saved data set has no configurations")
    try:
        loaded: Dataset | DatasetDict = load_from_disk(str(folder))
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:  # also of damaged files
        first_line = str(error).strip().partition("\n")[0]
        raise UsageError(f"the data set {folder} cannot be loaded: {first_line}") from error
    if isinstance(loaded, Dataset):
        name = str(loaded.split or "train")
        loaded = DatasetDict({name if split_of(name) else "train": loaded})
    return loaded.with_format(None)
