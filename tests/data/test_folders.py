"""Folders of images: what is read, what is said, what is refused."""

import os
import shutil

import pytest
from PIL import Image

from hf_robust_transfer.data import DataArguments, load_evaluation_split, load_image_splits
from hf_robust_transfer.data.folders import split_of
from hf_robust_transfer.errors import UsageError


@pytest.fixture
def photos(tmp_path):
    """A function (folder, count) -> a folder with so many images of cats and of dogs, in different shades."""
    shade = iter(range(256))

    def make(name="photos", count=4, classes=("cat", "dog")):
        for each in classes:
            (tmp_path / name / each).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (next(shade), 0, 0)).save(tmp_path / name / each / f"{number}.png")
        return tmp_path / name

    return make


def shades(split):
    return sorted(image.getpixel((0, 0))[0] for image in split["image"])


def trained_on(folder, **options):
    return load_image_splits(DataArguments(train_dir=str(folder), train_val_split=0.25, **options))


# Splits


def test_names_of_splits_are_known_in_any_spelling():
    same = {
        "train": ["train", "Train", "TRAINING", "train_set", "trainset", "training-images", "train2017"],
        "validation": ["val", "valid", "dev", "Validation", "val2017", "VAL_data"],
        "test": ["test", "testing", "Test set", "eval", "evaluation", "test1"],
        None: ["cat", "training wheel", "device", "dev board", "protest", "2017", "", "trainer", "tests_of_time"],
    }
    for split, names in same.items():
        assert {name: split_of(name) for name in names} == dict.fromkeys(names, split)


@pytest.mark.parametrize("names", ["train validation test", "Train Val Test", "training dev testing"])
def test_splits_in_a_folder_are_kept_apart_and_never_pooled(photos, tmp_path, names):
    names = names.split()
    folders = [photos(f"mine/{name}") for name in names]
    with pytest.raises(UsageError, match=f"would be pooled: use --dataset_name {tmp_path}/mine, .*{folders[0]}"):
        trained_on(tmp_path / "mine")
    splits = load_image_splits(DataArguments(dataset_name=str(tmp_path / "mine")))
    assert [shades(split) for split in splits[:3]] == [list(range(start, start + 8)) for start in (0, 8, 16)]
    images, split = load_evaluation_split(DataArguments(dataset_name=str(tmp_path / "mine")), labels=["dog", "cat"])
    assert split == "test" and shades(images) == shades(splits.test) and images["label"][:] == [1] * 4 + [0] * 4
    one, _ = load_evaluation_split(DataArguments(str(tmp_path / "mine")), labels=["cat", "dog"], split=names[1])
    assert shades(one) == shades(splits.validation)


def test_splits_are_found_below_a_folder_that_holds_nothing_else(photos, tmp_path, caplog):
    photos("mine/data/train"), photos("mine/data/test")
    (tmp_path / "mine" / "LICENSE").touch()
    splits = load_image_splits(DataArguments(dataset_name=str(tmp_path / "mine")))
    assert shades(splits.test) == list(range(8, 16)) and "LICENSE" in caplog.text


def test_only_a_training_folder_in_it_is_told_from_classes(photos, tmp_path):
    photos("mine/train")
    with pytest.raises(UsageError, match="holds folders of several classes each, train,"):
        trained_on(tmp_path / "mine")
    assert load_image_splits(DataArguments(dataset_name=str(tmp_path / "mine"))).labels == ["cat", "dog"]


def test_a_class_may_be_called_like_a_split(photos):
    assert trained_on(photos(classes=("car", "train", "test"))).labels == ["car", "test", "train"]


@pytest.mark.parametrize("given", ["train_dir", "dataset_name"])
def test_splits_without_classes_are_no_classes(photos, given):
    with pytest.raises(UsageError, match="no folder per class, only test, train, which are called after splits"):
        load_image_splits(DataArguments(**{given: str(photos(classes=("train", "test")))}))


def test_images_to_test_on_without_classes_are_left_out_with_a_word(photos, tmp_path, caplog):
    photos("mine/train"), photos("mine", classes=("test",))
    splits = load_image_splits(DataArguments(dataset_name=str(tmp_path / "mine")))
    assert splits.test is None and splits.labels == ["cat", "dog"] and "left out as beside the images: test" in caplog.text


def test_two_folders_of_one_split_are_refused(photos, tmp_path):
    photos("mine/val"), photos("mine/validation"), photos("mine/train")
    with pytest.raises(UsageError, match="two folders of the validation split, val and validation"):
        load_image_splits(DataArguments(dataset_name=str(tmp_path / "mine")))


@pytest.mark.parametrize("link", [None, "whole", "class"])
def test_the_same_images_in_two_splits_are_refused(photos, tmp_path, link):
    train = photos("train")
    test = train
    if link == "whole":
        test = tmp_path / "test"
        test.symlink_to(train)
    elif link == "class":
        test = photos("test", classes=("dog",))
        (test / "cat").symlink_to(train / "cat")
    with pytest.raises(UsageError, match="is a folder of the train images as well"):
        trained_on(train, test_dir=str(test))


def test_a_folder_beside_the_splits_does_not_vanish_without_a_word(photos, tmp_path, caplog):
    photos("mine/train"), photos("mine/extra")
    load_image_splits(DataArguments(dataset_name=str(tmp_path / "mine")))
    assert "left out as beside the images: extra" in caplog.text


@pytest.mark.parametrize("given", ["train_dir", "dataset_name"])
def test_a_folder_of_classes_is_the_same_however_it_is_given(photos, given):
    splits = load_image_splits(DataArguments(**{given: str(photos())}, train_val_split=0.25))
    assert shades(splits.train) + shades(splits.validation) != [] and splits.test is None
    assert sorted(shades(splits.train) + shades(splits.validation)) == list(range(8))


# What is in them


def test_upper_case_extensions_and_linked_classes_and_files_are_read(photos, tmp_path):
    folder = photos()
    elsewhere = shutil.move(folder / "dog", tmp_path / "elsewhere")
    (folder / "dog").symlink_to(elsewhere)
    os.rename(folder / "cat" / "0.png", folder / "cat" / "0.PNG")
    shutil.move(folder / "cat" / "1.png", tmp_path / "one.png")
    (folder / "cat" / "1.png").symlink_to(tmp_path / "one.png")
    splits = trained_on(folder)
    assert sorted(shades(splits.train) + shades(splits.validation)) == list(range(8))
    assert splits.labels == ["cat", "dog"]


def test_what_is_no_image_by_its_name_is_left_out_with_a_word(photos, caplog):
    folder = photos()
    for name in (".DS_Store", "notes.txt", "cat/.hidden.png", "cat/raw.heic", "dog/Thumbs.db", "dog/IMG_1"):
        (folder / name).touch()
    (folder / ".git").mkdir()
    splits = trained_on(folder)
    assert len(splits.train) + len(splits.validation) == 8
    for name in (".DS_Store", "notes.txt", "cat/.hidden.png", ".git", "dog/IMG_1", "cat/raw.heic"):
        assert name in caplog.text


def test_an_empty_class_is_refused_in_training_and_said_elsewhere(photos, tmp_path, caplog):
    (photos() / "emu").mkdir()
    with pytest.raises(UsageError, match="no training image of emu: add some"):
        trained_on(tmp_path / "photos")
    images, _ = load_evaluation_split(DataArguments(test_dir=str(tmp_path / "photos")), labels=["dog", "cat"])
    assert len(images) == 8 and "the folder of the class emu holds no image" in caplog.text


@pytest.mark.parametrize("given", ["train_dir", "dataset_name"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "cat" / "small").mkdir(), "cat/small is a folder within the folder of a class"),
        (lambda folder: shutil.copy(folder / "cat" / "0.png", folder), "0.png lies beside the folders of the classes"),
        (lambda folder: (folder / "emu").symlink_to("gone"), "emu is a symbolic link that leads nowhere"),
        (lambda folder: (folder / "cat" / "9.png").symlink_to("gone"), "cat/9.png is a symbolic link that leads nowhere"),
        (lambda folder: (folder / "cat" / "loop").symlink_to(folder), "cat/loop is a folder within the folder of a class"),
        (lambda folder: shutil.rmtree(folder / "dog"), "one class only, cat"),
        (lambda folder: os.rename(folder / "dog", os.fsencode(folder) + b"/d\xffg"), "not UTF-8"),
    ],
)
def test_what_would_vanish_or_be_misread_is_refused(photos, given, change, message):
    folder = photos()
    change(folder)
    with pytest.raises(UsageError, match=message):
        load_image_splits(DataArguments(**{given: str(folder)}))


def test_labels_in_a_metadata_file_are_left_to_datasets(photos):
    folder = photos()
    rows = "\n".join(f"{kind}/{number}.png,{kind}s" for kind in ("cat", "dog") for number in range(4))
    (folder / "metadata.csv").write_text(f"file_name,label\n{rows}\n")
    with pytest.raises(UsageError, match="labels in a metadata file, not in folders' names: use --dataset_name"):
        trained_on(folder)
    assert load_image_splits(DataArguments(dataset_name=str(folder))).labels == ["cats", "dogs"]


def test_an_image_that_metadata_do_not_mention_does_not_vanish_without_a_word(photos, caplog):
    folder = photos()
    (folder / "metadata.csv").write_text("file_name,label\n" + "".join(f"cat/{row}.png,{row % 2}\n" for row in range(4)))
    load_image_splits(DataArguments(dataset_name=str(folder), train_val_split=0.5))
    assert "of 8 images only 4 are in the data set" in caplog.text


def test_files_called_after_another_split_are_not_pooled(digits, tmp_path):
    digits.select(range(40)).to_parquet(tmp_path / "Train.parquet")
    digits.select(range(40, 80)).to_parquet(tmp_path / "Test.parquet")
    with pytest.raises(UsageError, match=r"Test.parquet would be pooled .*: begin its name with test, in lower case"):
        load_image_splits(DataArguments(dataset_name=str(tmp_path)))
    for name in ("Train", "Test"):
        os.rename(tmp_path / f"{name}.parquet", tmp_path / f"{name.lower()}.parquet")
    assert len(load_image_splits(DataArguments(dataset_name=str(tmp_path))).test) == 40


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(UsageError, match="cannot be loaded: it holds no image in a folder per class"):
        trained_on(tmp_path)


# Names that are none


@pytest.mark.parametrize(
    "name", ["imagefolder", "csv", "json", "parquet", "webdataset", "audiofolder", "text", "arrow", "sql"]
)
def test_a_format_is_no_data_set(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"--dataset_name {name} is a format, not a data set: name the folder"):
        DataArguments(dataset_name=name)
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=f"--dataset_name ./{name}"):
        DataArguments(dataset_name=name)
    DataArguments(dataset_name=f"./{name}")


@pytest.mark.parametrize("option", ["dataset_name", "train_dir", "validation_dir", "test_dir"])
@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_refused(option, name):
    with pytest.raises(UsageError, match=f"--{option} is empty"):
        DataArguments(**{option: name})


def test_a_file_is_no_data_set(photos):
    with pytest.raises(UsageError, match="is a file: name the folder that it is in"):
        DataArguments(dataset_name=str(photos() / "cat" / "0.png"))
