"""Data sets that `datasets` saved to disk, and columns that are found by what they hold."""

import datasets
import pytest

from hf_robust_transfer.data import DataArguments, choose_splits, load_evaluation_split, load_image_splits
from hf_robust_transfer.errors import UsageError


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_saved_splits_are_loaded(digits, tmp_path, form):
    splits = datasets.DatasetDict(Train=digits.select(range(150)), test=digits.select(range(150, 200)))
    splits.with_format(form).save_to_disk(tmp_path / "saved")
    arguments = DataArguments(dataset_name=str(tmp_path / "saved"))
    loaded = load_image_splits(arguments)
    assert len(loaded.train) + len(loaded.validation) == 150
    assert loaded.labels == digits.features["label"].names
    assert loaded.test["label"][:] == digits["label"][150:]
    images, split = load_evaluation_split(arguments, labels=loaded.labels)
    assert split == "test" and images[0]["image"].tobytes() == digits[150]["image"].tobytes()


def test_a_data_set_that_was_saved_alone_is_the_split_that_it_was(digits, tmp_path):
    digits.save_to_disk(tmp_path / "plain")
    assert len(load_image_splits(DataArguments(dataset_name=str(tmp_path / "plain"))).train) == 170
    digits.to_parquet(tmp_path / "digits.parquet")
    test = datasets.load_dataset("parquet", data_files={"test": str(tmp_path / "digits.parquet")}, split="test[:20]")
    test.save_to_disk(tmp_path / "test")
    assert len(load_evaluation_split(DataArguments(dataset_name=str(tmp_path / "test")), labels=None)[0]) == 20
    with pytest.raises(UsageError, match="no training split"):
        load_image_splits(DataArguments(dataset_name=str(tmp_path / "test")))


def test_what_was_saved_and_is_damaged_is_refused(digits, tmp_path):
    arguments = DataArguments(dataset_name=str(tmp_path / "saved"))
    splits = datasets.DatasetDict(train=digits)
    for name, content in (("data-00000-of-00001.arrow", b"?"), ("state.json", b"{}"), ("dataset_info.json", b"[")):
        splits.save_to_disk(tmp_path / "saved")
        (tmp_path / "saved" / "train" / name).write_bytes(content)
        with pytest.raises(UsageError, match="saved cannot be loaded: "):
            load_image_splits(arguments)
    with pytest.raises(UsageError, match="--dataset_config_name plain: a saved data set has no configurations"):
        load_image_splits(DataArguments(dataset_name=str(tmp_path / "saved"), dataset_config_name="plain"))


def test_columns_of_other_names_are_found_by_what_they_hold(digits, parquet):
    renamed = digits.rename_columns({"image": "img", "label": "fine_label"}).add_column("size", [8] * len(digits))
    data = parquet(train=renamed, test=renamed.select_columns(["fine_label", "img"]))
    loaded = load_image_splits(DataArguments(dataset_name=data))
    assert loaded.train.column_names == ["image", "label"] and loaded.labels == digits.features["label"].names
    images, _ = load_evaluation_split(DataArguments(dataset_name=data), labels=loaded.labels)
    assert images["label"][:] == digits["label"]


def test_several_columns_of_classes_must_be_chosen_from(digits, parquet):
    several = digits.rename_column("label", "fine")
    several = several.add_column("coarse", several["fine"][:], feature=several.features["fine"])
    data = parquet(train=several)
    with pytest.raises(UsageError, match="--label_column_name: any of the columns fine, coarse may be meant"):
        load_image_splits(DataArguments(dataset_name=data))
    assert load_image_splits(DataArguments(dataset_name=data, label_column_name="coarse")).labels


def test_a_data_set_without_splits_or_with_a_format_is_chosen_from(digits):
    expected = choose_splits(datasets.DatasetDict(train=digits), DataArguments())
    for given in (digits, digits.with_format("torch"), datasets.DatasetDict(training=digits.with_format("numpy"))):
        assert choose_splits(given, DataArguments()).train["label"][:] == expected.train["label"][:]
    with pytest.raises(UsageError, match="without streaming=True"):
        choose_splits(datasets.IterableDatasetDict(train=digits.to_iterable_dataset()), DataArguments())
