from collections import Counter

import datasets
import numpy as np
import pytest

from hf_robust_transfer.data import DataArguments, load_image_splits
from hf_robust_transfer.errors import UsageError


def contents(split):
    """The images of a split as bytes, to compare whatever order they are in."""
    return [np.asarray(image).tobytes() for image in split["image"]]


# Loading


def test_a_parquet_folder_gives_its_own_splits(digits, parquet):
    parts = {"train": digits.select(range(100)), "validation": digits.select(range(100, 140))}
    splits = load_image_splits(DataArguments(dataset_name=parquet(**parts, test=digits.select(range(140, 200)))))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (100, 40, 60)
    assert contents(splits.train) == contents(parts["train"]) and splits.train["label"][:] == digits["label"][:100]
    assert splits.labels == [str(digit) for digit in range(10)]
    assert splits.id2label == {digit: str(digit) for digit in range(10)}
    assert set(splits.train.column_names) == {"image", "label"}


def test_folders_of_images_give_the_splits_they_are_given_as(folder):
    arguments = DataArguments(
        train_dir=folder("a", {"1": 5, "4": 6}),
        validation_dir=folder("b", {"1": 2, "4": 3}),
        test_dir=folder("c", {"4": 1, "1": 1}),
    )
    splits = load_image_splits(arguments)
    assert splits.labels == ["1", "4"]
    assert Counter(splits.train["label"]) == {0: 5, 1: 6}
    assert Counter(splits.validation["label"]) == {0: 2, 1: 3}
    assert Counter(splits.test["label"]) == {0: 1, 1: 1}


def test_there_need_be_no_test_split(folder):
    assert load_image_splits(DataArguments(train_dir=folder("train", {"0": 10, "1": 10}))).test is None


def test_other_column_names_and_text_labels_are_understood(digits, parquet):
    train = (
        digits.select(range(40))
        .cast_column("label", datasets.Value("string"))
        .rename_columns({"image": "img", "label": "y"})
    )
    train = train.map(lambda row: {"y": f"digit {row['y']}"}).add_column("source", ["sklearn"] * 40)
    splits = load_image_splits(
        DataArguments(dataset_name=parquet(train=train), image_column_name="img", label_column_name="y")
    )
    assert splits.labels == [f"digit {digit}" for digit in range(10)]
    assert set(splits.train.column_names) == {"image", "label"}


def test_a_swap_of_column_names_is_understood(digits, parquet):
    swapped = digits.select(range(60)).rename_columns({"image": "label", "label": "image"})
    arguments = DataArguments(dataset_name=parquet(train=swapped), image_column_name="label", label_column_name="image")
    assert isinstance(load_image_splits(arguments).train.features["image"], datasets.Image)


# Splits and subsets


@pytest.mark.parametrize("name", ["validation", "val", "dev", "valid"])
def test_a_validation_split_is_taken_where_there_is_one(digits, parquet, name):
    loaded = datasets.DatasetDict({"train": digits.select(range(100)), name: digits.select(range(100, 130))})
    splits = load_image_splits(DataArguments(dataset_name=parquet(**loaded)))
    assert contents(splits.validation) == contents(loaded[name])
    assert len(splits.train) == 100


def test_where_no_validation_split_exists_one_is_split_off_with_its_share_of_every_class(folder):
    source = folder("train", {"0": 10, "3": 15, "7": 5})
    splits = load_image_splits(DataArguments(train_dir=source, train_val_split=0.2), seed=3)
    assert Counter(splits.validation["label"]) == {0: 2, 1: 3, 2: 1}
    assert Counter(splits.train["label"]) == {0: 8, 1: 12, 2: 4}
    assert not set(contents(splits.train)) & set(contents(splits.validation))
    again = load_image_splits(DataArguments(train_dir=source, train_val_split=0.2), seed=3)
    other = load_image_splits(DataArguments(train_dir=source, train_val_split=0.2), seed=4)
    assert contents(again.validation) == contents(splits.validation) != contents(other.validation)


def test_a_validation_split_can_be_made_of_too_few_images_to_stratify(folder):
    splits = load_image_splits(DataArguments(train_dir=folder("train", {"0": 19, "1": 2}), train_val_split=0.05))
    assert len(splits.train) + len(splits.validation) == 21 and len(splits.validation) >= 1


def test_so_many_samples_of_each_class_are_chosen_by_the_seed(digits, parquet):
    source = parquet(train=digits.select(range(150)), validation=digits.select(range(150, 200)))
    arguments = DataArguments(dataset_name=source, samples_per_class=4)
    splits = load_image_splits(arguments, seed=1)
    assert Counter(splits.train["label"]) == dict.fromkeys(range(10), 4)
    assert len(splits.validation) == 50
    assert set(contents(splits.train)) <= set(contents(digits.select(range(150))))
    assert len(set(contents(splits.train))) == 40
    assert contents(load_image_splits(arguments, seed=1).train) == contents(splits.train)
    assert contents(load_image_splits(arguments, seed=2).train) != contents(splits.train)


def test_a_class_with_fewer_samples_gives_all_it_has(folder):
    arguments = DataArguments(
        train_dir=folder("train", {"0": 3, "1": 9}), validation_dir=folder("val", {"0": 2, "1": 2}), samples_per_class=5
    )
    assert Counter(load_image_splits(arguments).train["label"]) == {0: 3, 1: 5}


def test_each_split_is_cut_to_its_own_number_of_samples(digits, parquet):
    third = {"train": digits.select(range(100)), "validation": digits.select(range(100, 150))}
    source = parquet(**third, test=digits.select(range(150, 200)))
    arguments = DataArguments(dataset_name=source, max_train_samples=80, max_eval_samples=7, max_test_samples=9)
    splits = load_image_splits(arguments, seed=1)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (80, 7, 9)
    assert contents(load_image_splits(arguments, seed=1).test) == contents(splits.test)
    assert contents(load_image_splits(arguments, seed=2).test) != contents(splits.test)
    more = DataArguments(dataset_name=source, max_train_samples=1000)
    assert len(load_image_splits(more).train) == 100


def test_chosen_classes_are_numbered_in_the_order_they_are_given(digits, parquet):
    source = parquet(train=digits.select(range(150)), validation=digits.select(range(150, 200)))
    splits = load_image_splits(DataArguments(dataset_name=source, classes=["7", "2", "9"]))
    assert splits.labels == ["7", "2", "9"]
    original = dict(zip(contents(digits), digits["label"], strict=True))
    for split in (splits.train, splits.validation):
        assert [{7: 0, 2: 1, 9: 2}[original[image]] for image in contents(split)] == split["label"][:]
    assert len(splits.train) == sum(label in (7, 2, 9) for label in digits["label"][:150])


# Errors


def test_something_to_load_must_be_given_and_only_one_thing(folder):
    with pytest.raises(ValueError, match="--dataset_name or --train_dir"):
        load_image_splits(DataArguments())
    with pytest.raises(ValueError, match="--dataset_name or --train_dir"):
        load_image_splits(DataArguments(dataset_name="beans", train_dir=folder("train", {"0": 2, "1": 2})))


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--train_dir .*nowhere is not a folder"):
        load_image_splits(DataArguments(train_dir=str(tmp_path / "nowhere")))


def test_a_data_set_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ValueError, match="someone/nothing cannot be loaded"):
        load_image_splits(DataArguments(dataset_name="someone/nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty cannot be loaded"):
        load_image_splits(DataArguments(dataset_name=str(tmp_path / "empty")))
    with pytest.raises(ValueError, match=r"empty.* cannot be loaded"):
        load_image_splits(DataArguments(train_dir=str(tmp_path / "empty")))


def test_a_training_split_is_needed(folder):
    with pytest.raises(ValueError, match="--train_dir"):
        load_image_splits(DataArguments(test_dir=folder("test", {"0": 2, "1": 2})))


@pytest.mark.parametrize("flag", ["image_column_name", "label_column_name"])
def test_a_missing_column_is_reported_with_its_flag_and_the_columns_there_are(digits, parquet, flag):
    with pytest.raises(ValueError, match=f"--{flag} picture: .*only image, label"):
        load_image_splits(DataArguments(dataset_name=parquet(train=digits), **{flag: "picture"}))


def test_a_column_of_something_else_than_images_is_refused(digits, parquet):
    train = digits.add_column("size", [8] * len(digits))
    with pytest.raises(ValueError, match=r"--image_column_name size: .*not images"):
        load_image_splits(DataArguments(dataset_name=parquet(train=train), image_column_name="size"))


def test_a_column_of_several_labels_per_image_is_refused(digits, parquet):
    train = digits.add_column("tags", [[1, 2]] * len(digits))
    with pytest.raises(ValueError, match="--label_column_name tags"):
        load_image_splits(DataArguments(dataset_name=parquet(train=train), label_column_name="tags"))


@pytest.mark.parametrize("classes", [["0", "cat"], ["0"], ["3", "3"], ["0", "1", "0"]])
def test_unknown_repeated_or_too_few_classes_are_refused(digits, parquet, classes):
    with pytest.raises(ValueError, match=f"--classes {' '.join(classes)}"):
        load_image_splits(DataArguments(dataset_name=parquet(train=digits), classes=classes))


def test_a_class_without_a_training_image_is_named(digits, parquet):
    without = digits.filter(lambda row: row["label"] not in (2, 5))
    with pytest.raises(ValueError, match="no training image of 2, 5"):
        load_image_splits(DataArguments(dataset_name=parquet(train=without)))


def in_words(split):
    words = {0: "zero", 1: "one", 2: "two", 3: "three"}
    chosen = split.filter(lambda row: row["label"] in words)
    return chosen.cast_column("label", datasets.Value("string")).map(lambda row: {"label": words[int(row["label"])]})


def test_a_split_may_lack_a_class_and_its_labels_mean_the_same(digits, parquet):
    train, test = in_words(digits), in_words(digits).filter(lambda row: row["label"] != "one")
    splits = load_image_splits(DataArguments(dataset_name=parquet(train=train, test=test)))
    assert splits.labels == splits.test.features["label"].names == ["one", "three", "two", "zero"]
    assert [splits.labels[label] for label in splits.test["label"]] == test["label"][:]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_is_not_among_the_training_images_is_refused(digits, parquet, split):
    train, other = in_words(digits).filter(lambda row: row["label"] != "one"), in_words(digits)
    message = f"the {split} split has images of the classes one, .*only three, two, zero: rename them with --label_map"
    with pytest.raises(UsageError, match=message):
        load_image_splits(DataArguments(dataset_name=parquet(train=train, **{split: other})))


def test_chosen_classes_mean_the_same_in_every_split_also_where_one_lacks_some_of_the_others(digits, parquet):
    train, test = in_words(digits), in_words(digits).filter(lambda row: row["label"] != "one")
    source = parquet(train=train, validation=train, test=test)
    splits = load_image_splits(DataArguments(dataset_name=source, classes=["zero", "two"]))
    original = dict(zip(contents(digits), digits["label"], strict=True))
    assert splits.labels == ["zero", "two"]
    for split in splits[:3]:
        assert [{0: 0, 2: 1}[original[image]] for image in contents(split)] == split["label"][:]
    assert len(splits.test) == sum(label in (0, 2) for label in digits["label"])


@pytest.mark.parametrize(
    "options",
    [
        {"train_val_split": 0.0},
        {"train_val_split": 1.0},
        {"samples_per_class": 0},
        {"max_train_samples": 0},
        {"max_eval_samples": -1},
        {"max_test_samples": 0},
    ],
)
def test_numbers_that_make_no_sense_are_refused_with_their_flag(options):
    with pytest.raises(ValueError, match=f"--{next(iter(options))}"):
        DataArguments(**options)
