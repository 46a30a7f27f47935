"""The data of an evaluation."""

import pytest
from data_folders import write_splits

from hf_robust_transfer.data import DataArguments, load_evaluation_split


@pytest.fixture
def folder(tmp_path, digits):
    write_splits(tmp_path / "data", digits, train=range(100), validation=range(100, 150), test=range(150, 200))
    return tmp_path / "data"


def test_the_test_split_is_evaluated_where_there_is_one(folder):
    names = [str(digit) for digit in range(10)]
    images, split = load_evaluation_split(DataArguments(str(folder)), labels=names)
    assert (split, len(images)) == ("test", 50)
    images, split = load_evaluation_split(DataArguments(str(folder)), labels=names, split="train")
    assert (split, len(images)) == ("train", 100)
    (folder / "test-00000-of-00001.parquet").unlink()
    images, split = load_evaluation_split(DataArguments(str(folder), max_eval_samples=7), labels=names)
    assert (split, len(images)) == ("validation", 7)
    with pytest.raises(ValueError, match="--split test: the data set has no such split, only train, validation"):
        load_evaluation_split(DataArguments(str(folder)), labels=names, split="test")


def test_without_any_other_split_the_training_images_are_not_evaluated(folder):
    names = [str(digit) for digit in range(10)]
    for other in ("test", "validation"):
        (folder / f"{other}-00000-of-00001.parquet").unlink()
    images, split = load_evaluation_split(DataArguments(str(folder)), labels=names, seed=4)
    assert (split, len(images)) == ("validation", 15)


def test_labels_are_matched_by_name(folder, digits):
    images, _ = load_evaluation_split(DataArguments(str(folder), classes=["3", "7"]), labels=["7", "3"])
    expected = [["7", "3"].index(str(label)) for label in digits.select(range(150, 200))["label"] if label in (3, 7)]
    assert list(images["label"]) == expected
    with pytest.raises(ValueError, match="the model has the 2 labels cat, dog, but the data the 10 classes"):
        load_evaluation_split(DataArguments(str(folder)), labels=["cat", "dog"])
