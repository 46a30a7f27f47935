"""What is told about the sizes of images before a model is trained or judged on them."""

import io
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from transformers import ViTImageProcessor

from hf_robust_transfer.data import PixelDataset, as_pixel_dataset
from hf_robust_transfer.data.decoding import size_of
from hf_robust_transfer.data.sizes import Resizing, resizing_of

LABELLED = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})


def processor(side):
    return ViTImageProcessor(size={"height": side, "width": side})


def as_files(folder, sizes, kind="jpg"):
    """A data set of image files of these widths and heights."""
    files = []
    for number, (width, height) in enumerate(sizes):
        files.append(str(folder / f"{number}.{kind}"))
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(files[-1])
    return datasets.Dataset.from_dict({"image": files, "label": [0] * len(files)}, features=LABELLED)


def test_the_sizes_before_and_after_are_told_in_one_line(tmp_path):
    mixed = as_files(tmp_path, [(64, 70), (480, 100), (90, 200)])
    assert str(resizing_of(PixelDataset(mixed, processor(32)))) == "3 images, 64 – 480 px → 32 × 32 px"
    wide = ViTImageProcessor(size={"height": 8, "width": 16})
    assert str(resizing_of(PixelDataset(mixed, wide))) == "3 images, 64 – 480 px → 8 × 16 px"
    square = as_files(tmp_path, [(64, 64), (64, 64)])
    assert str(resizing_of(PixelDataset(square, processor(32)))) == "2 images, 64 px → 32 × 32 px"
    assert str(resizing_of(PixelDataset(square, processor(64)))) == "2 images, 64 × 64 px, as they are"
    assert resizing_of([]) is None


def test_sizes_come_from_headers_and_only_one_image_is_decoded_for_them(tmp_path, monkeypatch):
    decoded = []
    original = PixelDataset._decode
    monkeypatch.setattr(PixelDataset, "_decode", lambda self, row: decoded.append(row) or original(self, row))
    split = as_files(tmp_path, [(64, 70), (480, 100), (90, 200)])
    dataset = PixelDataset(split, processor(32))
    assert resizing_of(dataset).largest == 480 and decoded == [0]
    dataset.check()
    assert resizing_of(dataset).largest == 480 and sorted(decoded) == [0, 1, 2]
    (tmp_path / "1.jpg").unlink()  # what was decoded is known
    assert resizing_of(dataset).known == 3


def test_damaged_files_and_missing_ones_only_are_not_counted(tmp_path):
    split = as_files(tmp_path, [(64, 70), (480, 100), (90, 200)])
    (tmp_path / "1.jpg").write_bytes(b"no image")
    (tmp_path / "2.jpg").unlink()
    assert str(resizing_of(PixelDataset(split, processor(32)))) == "3 images, 64 – 70 px in 1 of them → 32 × 32 px"


def encoded(width, height, mode="RGB", **options):
    content = io.BytesIO()
    Image.new(mode, (width, height)).save(content, "PNG", **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (Image.new("L", (30, 20)), (30, 20)),
        (np.zeros((20, 30), np.uint8), (30, 20)),
        (np.zeros((20, 30, 3), np.uint8), (30, 20)),
        (encoded(30, 20, "I;16"), (30, 20)),
        ({"path": None, "bytes": encoded(30, 20, "P")}, (30, 20)),
        ({"path": "nowhere.png", "bytes": None}, None),
        ({"path": None, "bytes": None}, None),
        (encoded(30, 20)[:20], None),
        (b"", None),
        (3, None),
        (None, None),
    ],
)
def test_the_size_of_whatever_stands_for_an_image(image, size):
    assert size_of(image) == size


def test_of_many_images_some_headers_are_read(monkeypatch):
    monkeypatch.setattr("hf_robust_transfer.data.sizes._LOOKED_AT", 3)
    rows = [{"image": Image.new("RGB", (40 + row, 40)), "label": 0} for row in range(9)]
    dataset = as_pixel_dataset(rows, processor(8), labels=["a", "b"])
    assert str(resizing_of(dataset)) == "9 images, 40 – 48 px in 3 of them → 8 × 8 px"


def test_all_kinds_of_data_sets_are_told_of():
    photo = Image.new("RGB", (90, 60))
    rows = [{"image": photo, "label": 0}] * 4
    table = datasets.Dataset.from_list(rows, features=LABELLED)
    made = as_pixel_dataset(table, processor(8))
    transformed = table.with_transform(lambda batch: {"image": batch["image"], "label": batch["label"]})
    pixels = [{"pixel_values": torch.rand(3, 8, 8), "labels": 0}] * 4

    class Photos(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, row):
            return np.asarray(photo), 0

    resized = "4 images, 60 – 90 px → 8 × 8 px"
    for given, told in (
        (rows, resized),
        (table, resized),
        (transformed, resized),
        (Photos(), resized),
        (Subset(made, [3, 1, 1, 0]), resized),
        (ConcatDataset([Subset(made, [0]), made]), "5 images, 60 – 90 px → 8 × 8 px"),
        (pixels, "4 images, 8 × 8 px, as they are"),
        (ConcatDataset([pixels, Subset(made, [0])]), "5 images, 8 – 90 px → 8 × 8 px"),
        (datasets.Dataset.from_dict({"pixel_values": [np.zeros((3, 8, 8), "float32")] * 4, "labels": [0] * 4}),
         "4 images, 8 × 8 px, as they are"),
    ):  # fmt: skip
        assert str(resizing_of(as_pixel_dataset(given, processor(8), labels=["a", "b"]))) == told
    unlabelled = as_pixel_dataset(table.remove_columns("label"), processor(8), labels=["a", "b"], labelled=False)
    assert str(resizing_of(unlabelled)) == resized


def made(size, side):
    width, height = size
    return Resizing(9, 9, min(size), max(size), min(size), side * side / (width * height), side, side)


@pytest.mark.parametrize(
    ("size", "side", "words"),
    [
        ((500, 375), 8, r"46.9 times smaller, to 8 × 8 pixels: .*0.034 % .*--image_size 224"),
        ((480, 360), 32, r"11.2 times smaller, to 32 × 32 pixels: .*0.59 % .*--image_size 224"),
        ((64, 64), 32, r"2 times smaller, to 32 × 32 pixels: .*25 % .*--image_size 64"),
        ((4000, 3000), 64, r"46.9 times smaller"),
        ((32, 32), 8, r"4 times smaller.*--image_size 32"),
    ],
)
def test_who_throws_most_of_the_images_away_is_told_how_much_and_what_to_use_instead(size, side, words):
    warning = made(size, side).warning
    assert re.search(words, warning) and "docs/how-to/photographs.md" in warning and "\n" not in warning


@pytest.mark.parametrize(
    ("size", "side"),
    [((500, 375), 224), ((4000, 3000), 224), ((4000, 3000), 384), ((64, 64), 64), ((63, 63), 32), ((8, 8), 224)],
)
def test_what_is_usual_for_photographs_is_no_matter_for_a_warning(size, side):
    assert made(size, side).warning is None
