"""What a checkpoint's image processor does to an image, but for the normalisation."""

from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize
from transformers import BaseImageProcessor
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor

from ..errors import UsageError
from .decoding import is_coloured, to_grey, to_rgb

logger = logging.get_logger(__name__)

# Arguments with which an image processor resizes and crops, and gives pixels in [0, 1].
_UNNORMALISED = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "do_normalize": False,
    "include_top": False,
    "do_flip_channel_order": False,
}


def check_is_image_processor(processor: Any) -> None:
    """Make sure that something is an image processor.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(processor, BaseImageProcessor) or isinstance(processor, BaseVideoProcessor):
        within = isinstance(getattr(processor, "image_processor", None), BaseImageProcessor)
        raise UsageError(
            "the model's image processor is needed, whose normalisation happens inside, but there is"
            f" {'none' if processor is None else f'a {type(processor).__name__}'}: give"
            + (" its image_processor" if within else " what load_model returns beside the model, or AutoImageProcessor's")
        )


def image_channels(processor: BaseImageProcessor) -> int:
    """How many channels the images have that a processor makes: 1 where it has one mean for its one channel, else 3.

    A mean that is no list goes for each of three channels.

    Example:
        >>> from transformers import ViTImageProcessor
        >>> image_channels(ViTImageProcessor()), image_channels(ViTImageProcessor(image_mean=[0.5], image_std=[0.5]))
        (3, 1)
    """
    data_config = getattr(processor, "data_config", None)
    if data_config is not None:  # timm
        return int(data_config["input_size"][0])
    mean = getattr(processor, "image_mean", None)
    return 1 if isinstance(mean, list | tuple) and len(mean) == 1 else 3


def to_pixels(processor: BaseImageProcessor) -> Callable[[Image.Image], Tensor]:
    """What a checkpoint's image processor does to an image, but for the normalisation.

    Args:
        processor: the checkpoint's image processor.

    Returns:
        A function from an image of any mode and size to float32 pixels in [0, 1] at the model's resolution: (3, H, W) in
        the order red, green, blue, in whichever order the model takes them, or (1, H, W) of grey.

    Raises:
        UsageError: what `check_is_image_processor` raises.
    """
    check_is_image_processor(processor)
    grey = image_channels(processor) == 1
    decode = _Grey() if grey else _rgb
    transforms = getattr(processor, "val_transforms", None)
    if transforms is not None:  # timm
        return Compose([decode, *(step for step in transforms.transforms if not isinstance(step, Normalize))])
    known = processor.valid_kwargs.__annotations__
    options = {name: value for name, value in _UNNORMALISED.items() if name in known}
    if grey and "do_convert_rgb" in known:
        options["do_convert_rgb"] = False
    process = partial(_processed, processor, options)
    if not grey:
        seen = process(Image.new("RGB", (32, 32), (192, 128, 64)))
        order = seen[:, seen.shape[1] // 2, seen.shape[2] // 2].argsort(descending=True) if seen.ndim == 3 else None
        if order is not None and order.tolist() != [0, 1, 2]:  # some always give blue first
            return Compose([decode, process, partial(_ordered, order)])
    return Compose([decode, process])


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else to_rgb(image)


class _Grey:
    """Makes images grey, and says so once where they were not."""

    said = False

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.mode == "L":
            return image
        if not self.said and is_coloured(image):
            logger.warning("There are colour images: for this model, which takes one channel, they become grey")
            self.said = True
        return to_grey(image)


def _processed(processor: Any, options: dict[str, Any], image: Image.Image) -> Tensor:
    pixels: Tensor = processor(image, **options, return_tensors="pt")["pixel_values"][0]
    return pixels


def _ordered(order: Tensor, pixels: Tensor) -> Tensor:
    return pixels[order]
