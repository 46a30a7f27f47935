"""What images a model takes, size and channels, and an image processor that makes such ones."""

from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor
from transformers.utils import logging

from ..data import image_channels
from ..data.processing import check_is_image_processor
from ..errors import UsageError
from .processors import LARGEST_SIDE, changed_processor, check_processor, image_sizes, of_size

logger = logging.get_logger(__name__)
Size = tuple[int, int]  # height and width


def model_channels(model: PreTrainedModel) -> int:
    """How many channels the images have that a model takes."""
    timm_model: Any = getattr(model, "timm_model", None)
    if timm_model is not None:
        own = timm_model.pretrained_cfg.get("input_size") or (3,)
        return int((model.config.model_args or {}).get("in_chans", own[0]))
    counts = [getattr(config, "num_channels", None) for config in configs(model.config)]
    return next((count for count in counts if isinstance(count, int)), 3)


def model_size(model: PreTrainedModel) -> Size | None:
    """The height and width of the images that a model is built for, as far as it says; None where any will do."""
    timm_model: Any = getattr(model, "timm_model", None)
    if timm_model is not None:
        if not takes_img_size(timm_model):
            return None
        own = timm_model.pretrained_cfg.get("input_size") or (3, None)
        side = (model.config.model_args or {}).get("img_size", own[1:])
    else:
        sides = [getattr(config, "image_size", None) for config in configs(model.config)]
        side = next((side for side in sides if side is not None), None)
    return None if not side or side == (None,) else as_size(side)


def input_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """The shape (C, H, W) of the images that a model is made for; where its configuration names no size, of 224 pixels.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> input_shape(create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})[0])
        (3, 32, 32)
    """
    cfg: Any = getattr(model.config, "pretrained_cfg", None) or {}  # of timm
    return model_channels(model), *(model_size(model) or tuple(cfg.get("input_size", (3, 224, 224))[1:]))


def takes_img_size(timm_model: nn.Module) -> bool:
    """Whether a timm model is built for images of one size."""
    return any("img_size" in signature(each).parameters for each in type(timm_model).__mro__)


def as_size(side: Any) -> Size:
    """A side, or height and width, as height and width."""
    return (int(side), int(side)) if isinstance(side, int | float) else (int(side[0]), int(side[1]))


def configs(config: Any) -> Iterator[Any]:
    """A model's configuration and those inside it, of a vision tower, say."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from configs(value)


def processor_for(
    model: PreTrainedModel, name: str, given: str | BaseImageProcessor | None = None, **from_pretrained: Any
) -> BaseImageProcessor:
    """The image processor of a model, or the one that is given in its place.

    Args:
        model: the model.
        name: the folder or Hub id that it came from.
        given: an image processor, or the folder or Hub id of one; of a timm model for a timm model.
        from_pretrained: passed on to `from_pretrained`; the ``revision`` is that of ``name``.

    Raises:
        UsageError: there is none, or one that cannot be saved with the model.
    """
    cfg = getattr(model.config, "pretrained_cfg", None) or {}
    if given is None and "mean" in cfg and "input_size" in cfg and len(cfg["mean"]) != cfg["input_size"][0]:
        return timm_processor(model, for_channels(cfg, model_channels(model)))  # of older folders for grey images
    processor = given
    if not isinstance(given, BaseImageProcessor):
        options = from_pretrained if given is None else {**from_pretrained, "revision": None}
        try:
            processor = AutoImageProcessor.from_pretrained(name if given is None else given, **options)
        except Exception as error:  # damaged files make libraries raise what they like
            reason = " ".join(str(error).split())
            raise UsageError(
                f"the image processor of {name if given is None else given!r} cannot be loaded: name a folder or Hub id"
                f" that has one with --processor_name_or_path, in Python load_model(…, processor=…) ({reason})"
            ) from error
    of_timm: Any = getattr(processor, "data_config", None)
    if given is not None and hasattr(model, "timm_model") != (of_timm is not None):
        raise UsageError(
            f"{type(processor).__name__} cannot be saved with {type(model).__name__}: a timm model, and no other, needs the"
            " image processor of a timm model"
        )
    return processor if given is None or of_timm is None else timm_processor(model, of_timm)  # type: ignore[return-value]


def check_input_size(model: PreTrainedModel, processor: BaseImageProcessor) -> BaseImageProcessor:
    """Make sure that the images that a processor makes are of the channels and of the one size that the model takes.

    What differs is repaired in a copy of the processor, and told once; of a timm model also in its configuration, which is
    where its processor comes from.

    Args:
        model: in eval mode.
        processor: its image processor.

    Returns:
        The processor to use and to save with the model: the given one, where nothing was wrong with it.

    Raises:
        UsageError: the model takes neither RGB nor grey images, no images of any size that it or the processor knows, or
            `hf_robust_transfer.modeling.processors.normalisation` raises.

    Example:
        >>> from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
        >>> config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32)
        >>> check_input_size(ViTForImageClassification(config).eval(), ViTImageProcessor()).size["height"]
        32
    """
    processor = of_channels(model, processor)
    check_processor(processor)
    wanted, made = model_size(model), image_sizes(processor)
    if len(made) > 1:
        edge = dict(getattr(processor, "size", None) or {}).get("shortest_edge")
        size = wanted or (None if edge is None else (edge, edge))
        if size is None:
            raise UsageError(
                f"its {type(processor).__name__} leaves images at different sizes: name one with --image_size, in Python"
                " load_model(…, image_size=…)"
            )
        processor, made = of_size(processor, *size), {size}
        logger.warning(
            f"The image processor makes images of different sizes: from now on the centre, {_times(size)} pixels"
        )
    (size,) = made
    if size == wanted or (refused := refusal(model, size)) is None:
        return processor
    if wanted is None or refusal(model, wanted) is not None:
        raise UsageError(f"its image processor makes images of {_times(size)} pixels, which are not for it: {refused}")
    logger.warning(
        f"The image processor made images of {_times(size)} pixels: from now on the model's own {_times(wanted)}"
    )
    return processor_of_size(model, processor, wanted)


def check_side(side: int) -> None:
    """Make sure that an image may have such a side.

    Raises:
        UsageError: it may not.
    """
    if not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE:
        raise UsageError(f"image_size {side} must be a side of 1 to {LARGEST_SIDE} pixels")


def of_channels(model: PreTrainedModel, processor: BaseImageProcessor) -> BaseImageProcessor:
    """The image processor, or a copy of it that makes images of the channels that a model takes.

    Raises:
        UsageError: these are neither 3 nor 1.
    """
    check_is_image_processor(processor)
    channels = model_channels(model)
    if channels not in (1, 3):
        raise UsageError(f"it takes images of {channels} channels: only those of RGB (3) and grey (1) images can be read")
    data_config = getattr(processor, "data_config", None)
    if data_config is not None:  # timm
        if data_config["input_size"][0] == channels:
            return processor
        return timm_processor(model, for_channels(data_config, channels))
    mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
    if channels == 3:
        if image_channels(processor) == 3:
            return processor
        return changed_processor(processor, image_mean=_average(mean), image_std=_average(std))
    of_colours = [name for name in ("do_convert_rgb", "do_flip_channel_order") if getattr(processor, name, False)]
    if image_channels(processor) == 1 and not of_colours:
        return processor
    values = [0.0, 1.0] if mean is None or std is None else [_average(mean), _average(std)]
    if any(isinstance(given, list | tuple) and len(set(given)) > 1 for given in (mean, std)):
        logger.warning(f"The image processor has statistics of three channels: from now on their average {values}")
    changes: dict[str, Any] = {"image_mean": [values[0]], "image_std": [values[1]]}
    return changed_processor(processor, **changes, **dict.fromkeys(of_colours, False))


def for_channels(cfg: dict[str, Any], channels: int) -> dict[str, Any]:
    """The entries of a timm ``pretrained_cfg`` for images of so many channels: of several means and stds their average."""
    size = (channels, *tuple(cfg["input_size"])[1:])
    if channels == len(cfg["mean"]):
        return {"input_size": size}
    return {"input_size": size, **{name: (_average(cfg[name]),) * channels for name in ("mean", "std")}}


def _average(values: Any) -> float:
    if isinstance(values, int | float):
        return float(values)
    return values[0] if len(set(values)) == 1 else round(sum(values) / len(values), 6)


def timm_processor(model: PreTrainedModel, changes: dict[str, Any]) -> TimmWrapperImageProcessor:
    """The image processor of a timm model whose configuration gets these entries of ``pretrained_cfg``."""
    tested = {"test_input_size", "test_crop_pct"} if "input_size" in changes else set()  # sizes of another evaluation
    cfg = {name: value for name, value in (model.config.pretrained_cfg or {}).items() if name not in tested} | changes
    model.config.pretrained_cfg = cfg
    return TimmWrapperImageProcessor(cfg, model.config.architecture)


def processor_of_size(model: PreTrainedModel, processor: BaseImageProcessor, size: Size) -> BaseImageProcessor:
    """A model's image processor, or a copy of it that makes images of a size."""
    if hasattr(processor, "data_config"):  # timm
        return timm_processor(model, {"input_size": (image_channels(processor), *size)})
    return processor if image_sizes(processor) == {size} else of_size(processor, *size)


def refusal(model: PreTrainedModel, size: Size) -> str | None:
    """Why a model takes no images of a size, observed on two; None if it does."""
    images = torch.zeros(2, model_channels(model), *size, dtype=model.dtype, device=model.device)
    try:
        with torch.no_grad():
            model(pixel_values=images)
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError, ArithmeticError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _times(size: Size) -> str:
    return "×".join(map(str, size))
