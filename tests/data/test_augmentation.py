import numpy as np
import pytest
import torch

from hf_robust_transfer.data import (
    augment,
)
from hf_robust_transfer.randomness import sample_keys, uniform

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
