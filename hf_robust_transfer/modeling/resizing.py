"""Trained models for images of another size, and images of another size for trained models."""

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from ..errors import UsageError
from .input_size import Size, check_side, configs, model_channels, model_size, of_channels, processor_of_size, refusal


def at_size(model: PreTrainedModel, processor: BaseImageProcessor, side: int) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A trained model and its image processor for images of another size.

    A model with learned positions is built anew, with those that its library interpolates between the trained ones; of
    another only the processor changes. Both save as a stand-alone checkpoint.

    Args:
        model: in eval mode.
        processor: its image processor.
        side: of the square images, in pixels.

    Raises:
        UsageError: the model cannot take such images.
    """
    check_side(side)
    processor = of_channels(model, processor)
    size = (side, side)
    if model_size(model) not in (None, size):
        model = _timm_at(model, side) if hasattr(model, "timm_model") else _built_at(model, side)
    if (refused := refusal(model, size)) is not None:
        raise UsageError(f"image_size {side} is not for it: {refused}")
    return model, processor_of_size(model, processor, size)


def resized(images: Tensor, size: Size) -> Tensor:
    """Images of another size, bilinearly and with antialiasing; gradients flow through it to the pixels.

    A new pixel is a mean of old ones, weighted by what is never negative and adds up to one. So pixels stay in [0, 1], and
    two images that differ by at most ε in each pixel still do; in l2 a difference grows at most by the linear factor of
    the enlargement (and 1 % that comes of grids that do not meet). Bicubic interpolation keeps neither.

    Args:
        images: (B, C, H, W) of any floating type; those of float32 or better stay in it, others become float32.
        size: the new height and width; images that have them come back as they are.

    Example:
        >>> resized(torch.tensor([[[[0.0, 1.0]]]]), (1, 4))
        tensor([[[[0.0000, 0.2500, 0.7500, 1.0000]]]])
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return nn.functional.interpolate(images, size=tuple(size), mode="bilinear", antialias=True)


def _logits(model: PreTrainedModel, images: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(pixel_values=images, **options).logits
    return logits


def _timm_at(model: PreTrainedModel, side: int) -> PreTrainedModel:
    """A timm model that is built for images of another size, with the weights as timm resamples them on loading."""
    config = copy.deepcopy(model.config)
    config.model_args = {**(config.model_args or {}), "img_size": side}
    trained: Any = model.timm_model
    resample = getattr(sys.modules[type(trained).__module__], "checkpoint_filter_fn", None)
    try:
        built: Any = type(model)(config)
        weights = trained.state_dict()
        built.timm_model.load_state_dict(weights if resample is None else resample(weights, built.timm_model))
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"image_size {side} is not for it, nor can timm resample its weights: {reason}") from error
    return _like(built, model)


def _built_at(model: PreTrainedModel, side: int) -> PreTrainedModel:
    """A `transformers` model that is built for images of another size; the given one where that cannot be done.

    Whether it can is seen from the logits, where the given model can interpolate its positions on its way.
    """
    config = copy.deepcopy(model.config)
    for each in configs(config):
        if getattr(each, "image_size", None) is not None:
            each.image_size = side if isinstance(each.image_size, int) else [side, side]
    weights = model.state_dict()
    try:
        built = type(model)(config)
        resized = [name for name, wanted in built.state_dict().items() if wanted.shape != weights[name].shape]
        for name in resized:
            weights[name] = _interpolated(model, name, built.state_dict()[name].shape, side)
        built.load_state_dict(weights)
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError, AttributeError):
        return model
    built = _like(built, model)
    images = torch.rand(1, model_channels(model), side, side, dtype=model.dtype, device=model.device)
    for options in ({"interpolate_pos_encoding": True}, {}):
        try:
            expected = _logits(model, images, **options)
        except (RuntimeError, ValueError, AssertionError, LookupError, TypeError):
            continue
        return built if torch.allclose(_logits(built, images), expected, rtol=1e-3, atol=1e-4) else model
    return model if resized else built


def _interpolated(model: nn.Module, name: str, shape: torch.Size, side: int) -> Tensor:
    """Learned positions for images of another size, by the method of the module that holds them."""
    holder = name.rpartition(".")[0]
    while holder and not hasattr(model.get_submodule(holder), "interpolate_pos_encoding"):
        holder = holder.rpartition(".")[0]
    holding: Any = model.get_submodule(holder)
    tokens = model.get_parameter(name).new_zeros(1, *shape[-2:])
    positions: Tensor = holding.interpolate_pos_encoding(tokens, side, side)
    return positions.detach().reshape(shape)


def _like(built: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    moved: Any = built  # its type lacks `to`
    return moved.to(device=model.device, dtype=model.dtype).eval()
