"""Untrained models: timm's architectures as `transformers` models, each with an image processor."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn
from transformers import (
    BaseImageProcessor,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from ..errors import UsageError
from . import cifar  # noqa: F401 - registers this package's architectures with timm
from .classifier import takes_channels_last
from .input_size import as_size, check_side, for_channels, refusal, takes_img_size
from .processors import check_processor
from .weights import building_at_most, save_shared_tensors_apart, size_limit

_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct")
# What timm builds otherwise than by default where it loads weights, of which `transformers` knows nothing.
_WITH_WEIGHTS = {"fbnetc_100": {"bn_eps": 1e-3}}
# What timm has to know of an architecture to load its weights with another head, other channels, or at all.
OF_WEIGHTS = ("classifier", "first_conv", "fixed_input_size", "pool_size")


def create_model(
    architecture: str,
    *,
    id2label: dict[int, str],
    model_args: dict[str, Any] | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> tuple[TimmWrapperForImageClassification, BaseImageProcessor]:
    """Build an untrained timm architecture as a `transformers` model, with timm's own initialisation.

    Args:
        architecture: a timm architecture's name; this package adds those of `hf_robust_transfer.modeling.cifar`.
        id2label: the names of the labels, by index.
        model_args: arguments of its constructor, like ``{"depth": 16, "width": 2}``.
        image_size: the side of its input in pixels, by default the architecture's own.
        mean, std: the normalisation, in [0, 1] pixel units, by default the architecture's own; for grey images
            (``model_args={"in_chans": 1}``) the averages of those.

    Returns:
        The model, as `load_model` gives it, and an image processor that resizes, crops and normalises for it.

    Raises:
        ValueError: timm has no such architecture, or it refuses the arguments.

    Example:
        >>> model, processor = create_model("cifar_wrn", id2label={0: "a", 1: "b"}, model_args={"depth": 16, "width": 2})
        >>> sum(parameter.numel() for parameter in model.parameters())
        690642
    """
    if not timm.is_model(architecture):
        close = timm.list_models(f"*{architecture}*")[:5]
        raise UsageError(f"timm has no architecture {architecture!r}" + (f"; near it: {', '.join(close)}" if close else ""))
    if image_size is not None:
        check_side(image_size)
    initialised, model_args = _initialised_at(
        architecture, len(id2label), as_trained(architecture, model_args or {}), image_size
    )
    defaults = resolve_data_config(model=initialised)
    pretrained_cfg = {key: defaults[key] for key in _PREPROCESSING}
    own: Any = initialised.pretrained_cfg
    pretrained_cfg |= {key: own[key] for key in OF_WEIGHTS if key in own}
    pretrained_cfg |= for_channels(defaults, model_args.get("in_chans", defaults["input_size"][0]))
    size = model_args.get("img_size") if image_size is None else image_size
    if size is not None:
        pretrained_cfg |= {"input_size": (pretrained_cfg["input_size"][0], *as_size(size)), "crop_pct": 1.0}
    pretrained_cfg |= _normalisation(pretrained_cfg["input_size"][0], mean=mean, std=std)
    options: dict[str, Any] = {
        "architecture": architecture,
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
        "id2label": dict(id2label),
        "label2id": {label: index for index, label in id2label.items()},
    }
    config = TimmWrapperConfig(**options)
    model = TimmWrapperForImageClassification(config)
    # The wrapper draws every convolution and linear layer anew from N(0, 0.02²); timm's own initialisation is better.
    model.timm_model.load_state_dict(initialised.state_dict())
    made_ready(model)
    processor = TimmWrapperImageProcessor(pretrained_cfg, architecture)
    check_processor(processor)
    if size is not None and (reason := refusal(model, as_size(size))) is not None:
        raise UsageError(f"image_size {size} is not for {architecture}: {reason}")
    return model, processor


def _initialised_at(
    architecture: str, labels: int, model_args: dict[str, Any], image_size: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    """A timm model for images of this size, and the arguments that it was built with."""
    channels = model_args.get("in_chans", 3)
    if type(channels) is not int or channels not in (1, 3):
        raise UsageError(f"model_args in_chans={channels!r}: only RGB images (3) and grey ones (1) can be read")
    initialised = _initialised(architecture, labels, model_args)
    if image_size is None or not takes_img_size(initialised):
        return initialised, model_args
    if "img_size" not in model_args:
        model_args = {**model_args, "img_size": image_size}
        return _initialised(architecture, labels, model_args), model_args
    if as_size(model_args["img_size"]) != as_size(image_size):
        raise UsageError(f"image_size {image_size} and model_args img_size={model_args['img_size']} disagree: drop one")
    return initialised, model_args


def _normalisation(channels: int, **given: Sequence[float] | None) -> dict[str, tuple[float, ...]]:
    for name, values in given.items():
        if values is not None and len(values) != channels:
            raise UsageError(f"{name} {tuple(values)} must have a number for each of the {channels} colour channels")
    return {name: tuple(values) for name, values in given.items() if values is not None}


def _initialised(architecture: str, labels: int, model_args: dict[str, Any]) -> nn.Module:
    refused = f"{architecture} refuses model_args={model_args}"
    limit = size_limit(architecture)
    try:  # first without memory
        with torch.device("meta"), building_at_most(limit):
            timm.create_model(architecture, num_classes=labels, **model_args)
    except UsageError as error:
        raise UsageError(f"{refused}: {error}") from None
    except Exception:  # of some architectures there is none without memory
        pass
    try:
        with building_at_most(limit):
            return timm.create_model(architecture, num_classes=labels, **model_args)
    except (ArithmeticError, AttributeError, TypeError, ValueError, LookupError, AssertionError, RuntimeError) as error:
        raise UsageError(f"{refused}: {error}") from error


def made_ready(model: PreTrainedModel) -> PreTrainedModel:
    """The model in eval mode, its convolutions in the format in which they are fastest, and such that it can be saved."""
    if takes_channels_last(model):
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    save_shared_tensors_apart(model)
    return model.eval()


def as_trained(architecture: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a timm architecture with those that timm adds only where it loads weights, and so does not save."""
    return {**_WITH_WEIGHTS.get(architecture.partition(".")[0], {}), **model_args}
