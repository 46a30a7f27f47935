import io
import pickle
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.image_utils import load_image

from hf_robust_transfer.data import (
    DataArguments,
    Indexed,
    PixelDataset,
    as_pixels,
    augment,
    collate,
    load_image_splits,
    to_pixels,
)
from hf_robust_transfer.randomness import sample_keys, uniform


@pytest.fixture
def parquet(digits, tmp_path):
    """A function (split name -> data set) -> a folder of parquet files, as a data set on the Hub has them."""

    def write(**splits):
        folder = tmp_path / "parquet"
        folder.mkdir()
        for name, split in splits.items():
            split.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
        return str(folder)

    return write


@pytest.fixture
def folder(digits, tmp_path):
    """A function (name, images per class) -> a folder of PNG files with a subfolder per class."""

    def write(name, counts):
        for label, count in counts.items():
            rows = [row for row, own in enumerate(digits["label"]) if str(own) == label][:count]
            (tmp_path / name / label).mkdir(parents=True)
            for row in rows:
                digits[row]["image"].save(tmp_path / name / label / f"{row}.png")
        return str(tmp_path / name)

    return write


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


def test_splits_with_different_classes_are_refused(digits, parquet):
    train, test = in_words(digits), in_words(digits).filter(lambda row: row["label"] != "one")
    with pytest.raises(ValueError, match=r"test split has the classes \['three', 'two', 'zero'\], the training split"):
        load_image_splits(DataArguments(dataset_name=parquet(train=train, test=test)))


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


# Pixels


def pictures():
    """One image in every mode that people's folders hold, of different sizes."""
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    transparent = Image.fromarray(generator.integers(0, 256, (9, 40, 4), dtype=np.uint8))
    grey = Image.fromarray(generator.integers(0, 256, (50, 11), dtype=np.uint8))
    palette = colour.quantize(16)
    see_through = colour.quantize(16)
    see_through.info["transparency"] = 3
    return [colour, grey, palette, see_through, transparent, grey.convert("LA"), grey.convert("1"), colour.convert("CMYK")]


@pytest.fixture
def mixed_split(tmp_path):
    """The `pictures` as files, in formats that keep their modes."""
    files = []
    for number, picture in enumerate(pictures()):
        files.append(str(tmp_path / f"{number}.{'tiff' if picture.mode == 'CMYK' else 'png'}"))
        picture.save(files[-1])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"image": files, "label": [0, 1] * 4}, features=features), files


def test_images_of_every_mode_and_size_become_rgb_pixels_at_the_models_resolution(tiny, kind, mixed_split):
    split, _ = mixed_split
    dataset = PixelDataset(split, tiny(kind)[1])
    side = 32 if "resnet" in kind else 8
    assert len(dataset) == len(split)
    for row in range(len(dataset)):
        item = dataset[row]
        assert item["pixel_values"].dtype == torch.uint8
        pixels = as_pixels(item["pixel_values"])
        assert pixels.shape == (3, side, side) and pixels.dtype == torch.float32
        assert pixels.min() >= 0 and pixels.max() <= 1 and pixels.std() > 0.01
        assert item["labels"] == split["label"][row]


def test_images_are_decoded_as_a_pipeline_decodes_them(tiny, mixed_split):
    split, files = mixed_split
    _, processor = tiny("hf-vit")
    dataset = PixelDataset(split, processor)
    for row, file in enumerate(files):
        expected = processor(load_image(file), do_normalize=False, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(as_pixels(dataset[row]["pixel_values"]), expected)


def test_a_photograph_taken_sideways_is_turned_upright_as_a_pipeline_does(tiny, tmp_path):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "sideways.png", exif=exif)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    split = datasets.Dataset.from_dict({"image": [str(tmp_path / "sideways.png")], "label": [0]}, features=features)
    _, processor = tiny("hf-vit")
    expected = processor(load_image(str(tmp_path / "sideways.png")), do_normalize=False, return_tensors="pt")
    torch.testing.assert_close(as_pixels(PixelDataset(split, processor)[0]["pixel_values"]), expected["pixel_values"][0])


def test_pixels_are_what_the_processor_gives_with_its_normalisation_undone(tiny, kind):
    _, processor = tiny(kind)
    config = getattr(processor, "data_config", None)
    mean, std = (config["mean"], config["std"]) if config else (processor.image_mean, processor.image_std)
    for picture in pictures():
        picture = picture.convert("RGB")
        normalised = processor(picture, return_tensors="pt")["pixel_values"][0]
        expected = normalised * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        torch.testing.assert_close(to_pixels(processor)(picture), expected, rtol=0, atol=1e-6)


def test_an_image_of_the_models_own_size_keeps_its_pixels(tiny, kind):
    side = 32 if "resnet" in kind else 8
    array = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels = to_pixels(tiny(kind)[1])(Image.fromarray(array))
    torch.testing.assert_close(pixels, torch.tensor(array).permute(2, 0, 1) / 255)


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damaged",
    [png()[:2000], b"this is no image", b"", png()[:40] + b"\0" * 200],
    ids=["truncated", "text", "empty", "overwritten"],
)
def test_a_damaged_file_is_named_with_its_row_on_checking_and_on_reading(folder, tiny, damaged, tmp_path):
    source = folder("train", {"0": 3, "1": 3})
    victim = sorted((tmp_path / "train" / "1").iterdir())[1]
    victim.write_bytes(damaged)
    train = datasets.load_dataset("imagefolder", data_dir=source, split="train")
    dataset = PixelDataset(train, tiny("hf-vit")[1], "training")
    files = [image["path"] for image in train.cast_column("image", datasets.Image(decode=False))["image"]]
    row = files.index(str(victim))
    message = rf"row {row} of the training split.*{victim.name}.*cannot be read"
    with pytest.raises(ValueError, match=message):
        dataset.check()
    with pytest.raises(ValueError, match=message):
        dataset[row]
    assert dataset[(row + 1) % 6]["pixel_values"].shape == (3, 8, 8)


def test_a_row_without_an_image_is_named(digits, tiny):
    rows = digits.select(range(3)).map(lambda row, index: {"image": None} if index == 2 else row, with_indices=True)
    dataset = PixelDataset(rows, tiny("hf-vit")[1], "validation")
    with pytest.raises(ValueError, match="row 2 of the validation split"):
        dataset[2]
    with pytest.raises(ValueError, match="row 2 of the validation split"):
        dataset.check()


def test_checking_sound_images_finds_nothing(digits, tiny):
    assert PixelDataset(digits.select(range(5)), tiny("hf-vit")[1]).check() is None


# What is read once


@pytest.fixture
def reads(monkeypatch):
    """The rows that were decoded, in order."""
    rows = []
    original = PixelDataset._decode
    monkeypatch.setattr(PixelDataset, "_decode", lambda self, row: rows.append(row) or original(self, row))
    return rows


def test_an_image_is_decoded_once(digits, tiny, reads):
    dataset = PixelDataset(digits.select(range(6)), tiny("hf-vit")[1])
    first = [dataset[row]["pixel_values"].clone() for row in (3, 1)]
    dataset.check()
    again = [dataset[row]["pixel_values"] for row in (3, 1, 0, 5)]
    assert sorted(reads) == list(range(6))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=False))


def test_images_that_take_too_much_memory_are_decoded_each_time(digits, tiny, reads, monkeypatch):
    monkeypatch.setattr(PixelDataset, "KEEP_BYTES", 6 * 3 * 8 * 8 - 1)
    dataset = PixelDataset(digits.select(range(6)), tiny("hf-vit")[1])
    assert torch.equal(dataset[2]["pixel_values"], dataset[2]["pixel_values"]) and reads == [2, 2]


def test_worker_processes_share_what_they_decode(digits, tiny, reads):
    dataset = PixelDataset(digits.select(range(40)), tiny("hf-vit")[1])
    expected = torch.stack([dataset[row]["pixel_values"] for row in range(40)])
    fresh = PixelDataset(digits.select(range(40)), tiny("hf-vit")[1])
    fresh[0]  # makes the room for all
    reads.clear()
    loader = DataLoader(fresh, 8, num_workers=2, collate_fn=collate, multiprocessing_context="fork")
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), expected)
    assert torch.equal(torch.stack([fresh[row]["pixel_values"] for row in range(40)]), expected) and reads == []
    pickled = pickle.loads(pickle.dumps(fresh))
    assert torch.equal(pickled[7]["pixel_values"], expected[7]) and reads == [7]


def test_pixels_that_are_no_multiples_of_1_255_stay_floating(digits, tiny):
    dataset = PixelDataset(digits.select(range(3)), tiny("hf-vit")[1])
    whole = as_pixels(dataset[0]["pixel_values"])
    fine = PixelDataset(digits.select(range(3)), tiny("hf-vit")[1])
    to_whole_pixels = fine._to_pixels
    fine._to_pixels = lambda image: to_whole_pixels(image) * 0.7
    item = fine[0]["pixel_values"]
    assert item.dtype == torch.float32 and torch.equal(as_pixels(item), item)
    torch.testing.assert_close(item, whole * 0.7)
    mixed = collate([{"pixel_values": pixels, "indices": 0} for pixels in (item, dataset[1]["pixel_values"])])
    assert mixed["pixel_values"].dtype == torch.float32 and mixed["pixel_values"].max() <= 1


def test_the_fingerprint_tells_data_and_processors_apart(digits, tiny):
    one, same = (PixelDataset(digits.select(range(6)), tiny("hf-vit")[1]).fingerprint for _ in range(2))
    other_rows = PixelDataset(digits.select(range(5)), tiny("hf-vit")[1]).fingerprint
    other_processor = PixelDataset(digits.select(range(6)), tiny("hf-convnext")[1]).fingerprint
    assert one == same and len({one, other_rows, other_processor}) == 3


# Batches


def test_uint8_pixels_stay_so_until_they_are_asked_for_as_pixels():
    values = torch.arange(48, dtype=torch.uint8).view(3, 4, 4) * 5
    batch = collate([{"pixel_values": values, "labels": 1, "indices": 0}] * 2)
    assert batch["pixel_values"].dtype == torch.uint8
    torch.testing.assert_close(as_pixels(batch["pixel_values"])[0], values.float() / 255)


def test_a_batch_knows_the_index_of_each_sample_however_it_is_shuffled(digits, tiny):
    dataset = PixelDataset(digits, tiny("hf-vit")[1])
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(Indexed(dataset, 10), batch_size=8, shuffle=True, collate_fn=collate, generator=generator)
    batch = next(iter(loader))
    assert batch["pixel_values"].shape == (8, 3, 8, 8) and batch["indices"].dtype == batch["labels"].dtype == torch.int64
    assert batch["indices"].tolist() != list(range(8))
    for pixels, label, index in zip(batch["pixel_values"], batch["labels"], batch["indices"].tolist(), strict=True):
        assert torch.equal(pixels, dataset[index]["pixel_values"]) and label == digits["label"][index]


def test_a_batch_without_labels_is_one_to_predict(digits):
    batch = collate([{"pixel_values": torch.rand(3, 4, 4), "indices": index} for index in range(3)])
    assert batch.keys() == {"pixel_values", "indices"}


@pytest.mark.parametrize(
    "pixels",
    [
        (torch.rand(3, 4, 4) - 0.5) / 0.25,
        torch.rand(3, 4, 4) * 255,
        torch.ones(3, 4, 4, dtype=torch.int64),
        torch.full((3, 4, 4), 1.01),
        torch.full((3, 4, 4), float("nan")),
    ],
    ids=["normalised", "0…255", "int64", "a little too bright", "not a number"],
)
def test_pixels_outside_0_to_1_are_refused(pixels):
    sound = {"pixel_values": torch.rand(3, 4, 4).to(torch.as_tensor(pixels).dtype), "labels": 0, "indices": 0}
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        collate([sound, {"pixel_values": pixels, "labels": 1, "indices": 1}])


# Augmentation


def test_a_sample_is_augmented_alike_in_whatever_batch_it_comes():
    images, indices = torch.rand(6, 3, 8, 9), torch.tensor([4, 100, 0, 17, 9, 1])
    options = {"seed": 5, "crop_padding": 2, "flip": True}
    whole = augment(images, indices=indices, **options)
    for rows in ([5, 4, 3, 2, 1, 0], [3], [0, 2]):
        assert torch.equal(augment(images[rows], indices=indices[rows], **options), whole[rows])
    assert not torch.equal(augment(images, indices=indices, **{**options, "seed": 6}), whole)
    assert not torch.equal(augment(images, indices=indices + 1, **options), whole)


@pytest.mark.parametrize("padding", [1, 3])
def test_a_crop_is_the_one_made_by_hand_from_the_same_draws(padding):
    images, indices = torch.rand(40, 3, 6, 7), torch.arange(40)
    cropped = augment(images, seed=2, indices=indices, crop_padding=padding).numpy()
    places = set()
    for image, draw, result in zip(
        images.numpy(), uniform(sample_keys(2, indices), (3,), torch.float64).tolist(), cropped, strict=True
    ):
        top, left = (int(value * (2 * padding + 1)) for value in draw[:2])
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        np.testing.assert_array_equal(result, padded[:, top : top + 6, left : left + 7])
        places.add((top, left))
    assert {top for top, _ in places} == {left for _, left in places} == set(range(2 * padding + 1))


def test_about_half_of_the_samples_are_mirrored_left_to_right():
    images = torch.rand(2_000, 1, 2, 3)
    flipped = augment(images, seed=0, indices=torch.arange(2_000), flip=True)
    mirrored = [torch.equal(after, before.flip(-1)) for after, before in zip(flipped, images, strict=True)]
    kept = [torch.equal(after, before) for after, before in zip(flipped, images, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 900 < sum(mirrored) < 1100


def test_whether_a_sample_is_mirrored_does_not_depend_on_where_it_is_cropped():
    images, indices = torch.rand(1_000, 1, 5, 5), torch.arange(1_000)
    both = augment(images, seed=0, indices=indices, crop_padding=1, flip=True)
    cropped = augment(images, seed=0, indices=indices, crop_padding=1)
    kept = torch.tensor([torch.equal(one, other) for one, other in zip(both, cropped, strict=True)])
    empty_top, empty_left = (cropped[:, 0, 0] == 0).all(1), (cropped[:, 0, :, 0] == 0).all(1)
    for place in (empty_top, ~empty_top, empty_left, ~empty_left):
        assert 0.4 < kept[place].float().mean() < 0.6


def test_without_augmentation_nothing_changes():
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(augment(images, seed=0, indices=torch.arange(4)), images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_augmentation_keeps_dtype_shape_and_the_pixel_range(dtype):
    images = torch.rand(4, 3, 8, 5).to(dtype)
    augmented = augment(images, seed=0, indices=torch.arange(4), crop_padding=2, flip=True)
    assert augmented.dtype == dtype and augmented.shape == images.shape
    assert augmented.min() >= 0 and augmented.max() <= 1


def test_augmentation_leaves_the_global_random_state_alone():
    images = torch.rand(4, 3, 8, 8)
    before = torch.get_rng_state()
    augment(images, seed=0, indices=torch.arange(4), crop_padding=2, flip=True)
    assert torch.equal(before, torch.get_rng_state())
