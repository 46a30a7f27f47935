"""Augmentation of pixel batches, each sample's by its own address."""

import torch
from torch import Tensor

from ..randomness import sample_keys, uniform


def mirrored(seed: int, indices: Tensor) -> Tensor:
    """Which samples `augment` mirrors with this seed, bool (B,)."""
    return _draws(seed, indices)[:, 2] < 0.5


def _draws(seed: int, indices: Tensor) -> Tensor:
    return uniform(sample_keys(seed, indices), (3,))


def augment(images: Tensor, *, seed: int, indices: Tensor, crop_padding: int = 0, flip: bool = False) -> Tensor:
    """Random crop and horizontal flip, each sample's by its own address.

    Args:
        images: (B, C, H, W).
        seed: the address of the epoch.
        indices: sample indices, int64 (B,).
        crop_padding: pad by so many black pixels on each side, then crop back to (H, W) at a random place.
        flip: mirror a sample left to right with probability one half.

    Returns:
        Images of the same shape and dtype.

    Example:
        >>> images = torch.rand(4, 3, 8, 8)
        >>> a = augment(images, seed=1, indices=torch.arange(4), crop_padding=2, flip=True)
        >>> b = augment(images[2:], seed=1, indices=torch.tensor([2, 3]), crop_padding=2, flip=True)
        >>> torch.equal(a[2:], b)
        True
    """
    if not crop_padding and not flip:
        return images
    height, width = images.shape[2:]
    if crop_padding:
        top, left = (_draws(seed, indices)[:, :2] * (2 * crop_padding + 1)).long().unbind(1)
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = left[:, None] + torch.arange(width, device=images.device)
        padded = torch.nn.functional.pad(images, (crop_padding,) * 4)
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        images = torch.where(mirrored(seed, indices).view(-1, 1, 1, 1), images.flip(-1), images)
    return images
