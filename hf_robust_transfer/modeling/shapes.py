"""The images that a model takes, as far as its configuration says."""

from typing import Any

import timm
from transformers import PreTrainedModel

_SIDE = 224  # of architectures that take any


def input_shape(model: PreTrainedModel) -> tuple[int, ...]:
    """The shape (C, H, W) of the images that a model is made for; where its configuration names no size, of 224 pixels.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> input_shape(create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})[0])
        (3, 32, 32)
    """
    config: Any = model.config
    if config.model_type == "timm_wrapper":
        known = getattr(config, "pretrained_cfg", None) or {}
        size: Any = known.get("input_size") or timm.get_pretrained_cfg_value(config.architecture, "input_size")
        return tuple(size)
    of_images = getattr(config, "vision_config", config)
    side = getattr(of_images, "image_size", None) or _SIDE
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return getattr(of_images, "num_channels", None) or 3, height, width
