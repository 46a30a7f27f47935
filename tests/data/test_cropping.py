"""Random crops of photographs, against torchvision's and by their address."""

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor, resized_crop
from transformers import ViTImageProcessor

from hf_robust_transfer.data import Indexed, PixelDataset, collate
from hf_robust_transfer.data.cropping import RandomCrops
from hf_robust_transfer.errors import UsageError

COLOUR = ViTImageProcessor(size={"height": 8, "width": 10})
GREY = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
LABELLED = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})


def crops(least=0.35, seed=0, processor=COLOUR, **options):
    return RandomCrops(processor, least, seed=seed, **options)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1), st.integers(0, 2**40))
def test_every_part_lies_inside_and_has_the_area_and_shape_that_were_asked_for(width, height, least, index):
    top, left, own_height, own_width = crops(least).box(width, height, index)
    assert 0 <= top <= top + own_height <= height and 0 <= left <= left + own_width <= width
    assert own_height > 0 and own_width > 0
    if min(width, height) > 60 and 0.8 < width / height < 1.2 and least < 0.5:
        # sides are rounded to pixels
        assert least * width * height * 0.93 < own_width * own_height
        assert 0.72 < own_width / own_height < 1.39


def test_parts_are_distributed_as_torchvision_draws_them():
    torch.manual_seed(0)
    width, height, least = 150, 100, 0.2
    theirs = np.array([RandomResizedCrop.get_params(torch.zeros(1, height, width), (least, 1), (3 / 4, 4 / 3))
                       for _ in range(1500)], dtype=float)  # fmt: skip
    own = crops(least)
    ours = np.array([own.box(width, height, index) for index in range(1500)], dtype=float)
    for one, other in ((theirs, ours), (theirs**2, ours**2)):
        error = np.sqrt((one.var(0) + other.var(0)) / 1500)
        assert (abs(one.mean(0) - other.mean(0)) < 4 * error).all()
    area = [each[:, 2] * each[:, 3] for each in (theirs, ours)]
    assert abs(np.quantile(area[0], [0.1, 0.5, 0.9]) - np.quantile(area[1], [0.1, 0.5, 0.9])).max() < 0.05 * width * height


def test_too_long_an_image_gives_its_centre_as_torchvision_does():
    assert crops(1).box(1000, 10, 3) == RandomResizedCrop.get_params(torch.zeros(1, 10, 1000), (1, 1), (3 / 4, 4 / 3))


def test_the_address_decides_alone():
    own = crops()
    boxes = [own.box(90, 70, index) for index in range(50)]
    assert len(set(boxes)) > 40
    assert boxes == [crops(shared=True).box(90, 70, index) for index in range(50)]
    assert boxes != [crops(seed=1).box(90, 70, index) for index in range(50)]
    own.begin(1)
    assert boxes != [own.box(90, 70, index) for index in range(50)]
    own.begin(0)
    state = torch.get_rng_state()
    assert boxes[::-1] == [own.box(90, 70, index) for index in reversed(range(50))]
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture(scope="module")
def photos():
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (40 + row, 60 - row, 3), dtype=np.uint8)) for row in range(12)]
    return images, datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 6}, features=LABELLED)


def test_pixels_are_those_of_the_file_cut_and_resized_by_hand(photos):
    images, split = photos
    for processor, mode, side in ((COLOUR, "RGB", [8, 10]), (GREY, "L", [8, 8])):
        own = crops(processor=processor)
        samples = Indexed(PixelDataset(split, processor), 2, ["a", "b"], own)
        for row, image in enumerate(images):
            expected = resized_crop(image.convert(mode), *own.box(*image.size, row), size=side)
            assert torch.equal(samples[row]["pixel_values"], pil_to_tensor(expected))
            assert samples[row]["labels"] == row % 2 and samples[row]["indices"] == row


def test_processes_threads_and_order_do_not_change_a_crop_and_workers_see_the_epoch(photos):
    own = crops(shared=True)
    samples = Indexed(PixelDataset(photos[1], COLOUR, keep=False), 2, ["a", "b"], own)
    options = {"batch_size": 4, "collate_fn": collate, "num_workers": 2, "persistent_workers": True}
    loader = DataLoader(samples, multiprocessing_context="fork", **options)
    epochs = []
    for epoch in range(2):
        own.begin(epoch)
        alone = torch.stack([samples[row]["pixel_values"] for row in reversed(range(12))]).flip(0)
        torch.set_num_threads(2)
        try:
            together = torch.stack([item["pixel_values"] for item in samples.__getitems__(range(12))])
        finally:
            torch.set_num_threads(1)
        assert torch.equal(together, alone)
        assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), alone)
        epochs.append(alone)
    assert not torch.equal(*epochs)


def test_a_sample_of_a_subset_or_concatenation_has_a_crop_of_its_own(photos):
    dataset = PixelDataset(photos[1], COLOUR)
    samples = Indexed(ConcatDataset([Subset(dataset, [3]), dataset]), 2, ["a", "b"], crops())
    same = [samples[0]["pixel_values"], samples[4]["pixel_values"]]  # the same image under two indices
    assert samples[4]["labels"] == samples[0]["labels"] and not torch.equal(*same)


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, [0]), lambda data: ConcatDataset([data])])
def test_what_comes_as_pixels_cannot_be_cropped(wrap):
    pixels = [{"pixel_values": torch.rand(3, 8, 8), "labels": 0}]
    with pytest.raises(UsageError, match="--random_resized_crop cuts parts out of images as they lie in their files"):
        Indexed(wrap(pixels), 2, None, crops())
