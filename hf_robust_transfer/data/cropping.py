"""Random crops of photographs as they lie in their files, each sample's by its own address."""

import math

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, resized_crop
from transformers import BaseImageProcessor

from ..randomness import fold_in, sample_keys, uniform
from .decoding import to_grey
from .processing import to_pixels

_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_PURPOSE = 1  # what is drawn here, as a part of the address


class RandomCrops:
    """Parts of images at random, resized to a model's input: torchvision's `RandomResizedCrop`, but drawn by address.

    A part has a share of the image's area between ``least`` and 1, and an aspect ratio between 3/4 and 4/3; where ten
    draws give none that lies inside, it is the largest one in the centre. It is resized bilinearly, with antialiasing.
    What is drawn depends on the seed, the epoch and the sample's index alone.

    Args:
        processor: the model's image processor, which knows the size and the channels of its images.
        least: the least share, above 0 and at most 1.
        seed: of all epochs.
        shared: let worker processes see the epoch that `begin` sets here.

    Example:
        >>> from transformers import ViTImageProcessor
        >>> crops = RandomCrops(ViTImageProcessor(size={"height": 8, "width": 8}), 0.35, seed=0)
        >>> crops(Image.new("RGB", (40, 30)), index=3).shape
        torch.Size([3, 8, 8])
    """

    def __init__(self, processor: BaseImageProcessor, least: float, *, seed: int, shared: bool = False) -> None:
        self.least, self.seed = least, seed
        self.options = (least, seed, shared)
        self.channels, *self.size = to_pixels(processor)(Image.new("RGB", (64, 64))).shape
        self._epoch = torch.zeros((), dtype=torch.int64)
        if shared:
            self._epoch.share_memory_()

    def begin(self, epoch: int) -> None:
        """Draw other parts from now on."""
        self._epoch.fill_(epoch)

    def box(self, width: int, height: int, index: int) -> tuple[int, int, int, int]:
        """The part of an image of this size: its top, left, height and width.

        Args:
            width, height: of the image.
            index: of the sample.
        """
        keys = sample_keys(fold_in(self.seed, int(self._epoch), _PURPOSE), torch.tensor([index]))
        draws = uniform(keys, (_ATTEMPTS, 4), torch.float64)[0]
        lowest, highest = (math.log(ratio) for ratio in _RATIOS)
        for share, shape, down, right in draws.tolist():
            area = width * height * (self.least + (1 - self.least) * share)
            ratio = math.exp(lowest + (highest - lowest) * shape)
            own_width, own_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < own_width <= width and 0 < own_height <= height:
                top, left = int(down * (height - own_height + 1)), int(right * (width - own_width + 1))
                return top, left, own_height, own_width
        ratio = min(max(width / height, _RATIOS[0]), _RATIOS[1])
        own_width, own_height = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        return (height - own_height) // 2, (width - own_width) // 2, own_height, own_width

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        """The pixels of a part of an RGB image, uint8 (C, H, W) at the model's size."""
        image = to_grey(image) if self.channels == 1 else image
        part: Image.Image = resized_crop(image, *self.box(*image.size, index), size=list(self.size))
        return pil_to_tensor(part)
