"""Decoded images that are kept on disk: the same ones, found by the next run, and made anew where anything differs."""

import multiprocessing
import pickle
import resource

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tiny_models import DIGITS

from hf_robust_transfer.cache_folder import cached_files, trim
from hf_robust_transfer.data import PixelDataset
from hf_robust_transfer.data.pixel_cache import WORTH_KEEPING, CacheFolder, kept_pixels
from hf_robust_transfer.data.sizes import resizing_of
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.modeling import create_model

COUNT = 1010


def split_of(images, labels):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(DIGITS.values()))})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.fixture(scope="module")
def split():
    """More digits than the fewest that are kept, one of them of another size and in colour."""
    loaded = load_digits()
    images = [Image.fromarray((image * 255 / 16).astype(np.uint8)) for image in loaded.images[:COUNT]]
    images[7] = Image.new("RGB", (12, 30), (200, 10, 60))
    return split_of(images, loaded.target[:COUNT].tolist())


@pytest.fixture(scope="module")
def processor():
    return create_model("cifar_resnet18", id2label=DIGITS, image_size=8)[1]


@pytest.fixture
def read(split, processor, tmp_path):
    """A function (split, processor, **folder) -> the data set after its check, and how many images that decoded."""

    def run(split=split, processor=processor, limit=1e9, **options):
        dataset, decoded = PixelDataset(split, processor, **options), []
        decode = dataset._decode
        dataset._decode = lambda row: (decoded.append(row), decode(row))[1]
        dataset.check(keep_in=CacheFolder(tmp_path / "kept", limit))
        return dataset, len(decoded)

    return run


def same(dataset, other):
    return all(
        torch.equal(dataset[row]["pixel_values"], other[row]["pixel_values"]) and dataset.size(row) == other.size(row)
        for row in range(len(dataset))
    )


def test_the_next_run_finds_the_same_images_and_decodes_none(read, split, processor):
    plain = PixelDataset(split, processor)
    first, decoded = read()
    assert decoded == COUNT >= WORTH_KEEPING
    second, decoded = read()
    assert decoded == 0 and second.in_memory
    assert same(first, plain) and same(second, plain)
    assert second[7]["pixel_values"].dtype == torch.uint8 and second.size(7) == (12, 30)
    assert str(resizing_of(second)) == str(resizing_of(plain)) == "1010 images, 8 – 30 px → 8 × 8 px"
    second[0]["pixel_values"].zero_()  # of a careless caller
    third, decoded = read()
    assert decoded == 0 and same(third, plain)


def test_other_images_labels_or_processors_are_not_taken_for_them(read, split):
    assert read()[1] == COUNT
    larger = create_model("cifar_resnet18", id2label=DIGITS, image_size=10)[1]
    assert read(processor=larger)[1] == COUNT
    assert read(split=split.select(range(COUNT - 1, -1, -1)))[1] == COUNT
    assert read(split=split.select(range(COUNT - 1)))[1] == COUNT - 1
    assert read()[1] == 0


DAMAGE = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "longer": lambda content: content + b"more",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_anew(read, tmp_path, split, processor, damage):
    read()
    (file,) = cached_files(tmp_path / "kept")
    file.path.write_bytes(DAMAGE[damage](whole := file.path.read_bytes()))
    dataset, decoded = read()
    assert decoded == COUNT and same(dataset, PixelDataset(split, processor)) and file.path.read_bytes() == whole


def test_what_is_few_wanted_nowhere_or_too_much_is_decoded_and_no_file_made(read, tmp_path, split):
    for options in ({"split": split.select(range(WORTH_KEEPING - 1))}, {"keep": False}, {"limit": 1000}):
        dataset, _ = read(**options)
        assert dataset[3]["labels"] == split[3]["label"]
    assert not cached_files(tmp_path / "kept")


def test_images_of_several_shapes_are_not_kept(tmp_path):
    parts = [(np.zeros((2, 3, side, side), np.uint8), np.full((2, 2), side)) for side in (4, 5)]
    assert kept_pixels(CacheFolder(tmp_path, 1e9), "f", 4, lambda: iter(parts)) is None
    assert not cached_files(tmp_path) and not list(tmp_path.glob("*.part"))


def test_of_two_processes_one_decodes_and_both_have_the_images(read, split, processor):
    def decoded(queue):
        dataset, count = read()
        queue.put((count, same(dataset, PixelDataset(split, processor))))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=decoded, args=(queue,)) for _ in range(2)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(answers) == [(0, True), (COUNT, True)]


def test_a_disk_that_is_full_is_told_of_and_costs_no_training(read, tmp_path, split, processor, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        dataset, _ = read()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be kept" in caplog.text and "File too large" in caplog.text
    assert same(dataset, PixelDataset(split, processor)) and not cached_files(tmp_path / "kept")


def test_a_damaged_image_is_refused_and_nothing_kept(read, tmp_path, split):
    rows = split.cast_column("image", datasets.Image(decode=False))
    rows = rows.map(
        lambda row, index: {"image": {"bytes": b"no image", "path": None}} if index == 900 else row, with_indices=True
    )
    with pytest.raises(UsageError, match="image in row 900 of the train split cannot be read"):
        read(split=rows.cast_column("image", datasets.Image()))
    assert not cached_files(tmp_path / "kept")


def test_a_file_in_use_is_not_deleted_and_a_pickled_data_set_reads_for_itself(read, tmp_path, split, processor):
    dataset, _ = read()
    trim(tmp_path / "kept", 0)
    assert len(cached_files(tmp_path / "kept")) == 1
    del dataset._decode  # of the fixture, which cannot be pickled
    assert same(pickle.loads(pickle.dumps(dataset)), PixelDataset(split, processor))
    del dataset
    assert len(trim(tmp_path / "kept", 0)) == 1
