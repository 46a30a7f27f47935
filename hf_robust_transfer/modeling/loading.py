"""Models by Hub id, folder or timm name, each with its image processor; new heads for new labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from ..errors import UsageError
from ..run_folder import ADAPTER_CONFIG_NAME
from . import cifar  # noqa: F401 - registers this package's architectures with timm
from .classifier import takes_channels_last
from .heads import head, replace_head
from .input_size import (
    as_size,
    check_input_size,
    check_side,
    for_channels,
    processor_for,
    refusal,
    takes_img_size,
)
from .processors import check_processor
from .resizing import at_size
from .weights import building_at_most, check_config, check_weights, save_shared_tensors_apart, size_limit

_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct")
# What timm builds otherwise than by default where it loads weights, of which `transformers` knows nothing.
_WITH_WEIGHTS = {"fbnetc_100": {"bn_eps": 1e-3}}
# What timm has to know of an architecture to load its weights with another head, other channels, or at all.
OF_WEIGHTS = ("classifier", "first_conv", "fixed_input_size", "pool_size")


def load_model(
    name_or_path: str,
    *,
    id2label: dict[int, str] | None = None,
    head_args: dict[str, Any] | None = None,
    model_args: dict[str, Any] | None = None,
    image_size: int | None = None,
    processor: str | BaseImageProcessor | None = None,
    **from_pretrained: Any,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load an image classifier and its image processor, with a new head where the labels are new.

    Args:
        name_or_path: a local checkpoint folder; a timm architecture's name, which gives untrained weights; or else a Hub
            id. timm's trained weights are Hub ids too (``timm/resnet50.a1_in1k``).
        id2label: the target's labels. The head is kept where they are the checkpoint's own, and replaced otherwise, or
            where the checkpoint has none.
        head_args: for a new head of several layers, as for `replace_head`.
        model_args: for a timm architecture, arguments of its constructor, like ``{"patch_size": 2}``.
        image_size: the side of the images that it takes, in pixels, by default its own. A trained model's learned positions
            are interpolated.
        processor: for a checkpoint, the image processor, or the folder or Hub id to take it from; by default its own.
        from_pretrained: passed on to `from_pretrained` (``revision``, ``token``, ``cache_dir``, …).

    Returns:
        The model in float32, in eval mode and in the channels-last memory format, with which convolutions are fastest, and
        an image processor that makes images of its size and channels, as `check_input_size` sees to.

    Raises:
        UsageError: the name is nothing of these; the folder holds no readable image classifier, or one whose weights are
            not all there (but for its head, where ``id2label`` is given), of other shapes, more than its architecture
            has, or not finite; or ``model_args`` with a checkpoint, whose architecture is settled; or images of this
            size or channels are not for it; or whatever `replace_head` raises.

    Example:
        >>> model, processor = load_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> model.config.id2label
        {0: 'cat', 1: 'dog'}
    """
    if not Path(name_or_path).is_dir() and timm.is_model(name_or_path):
        if id2label is None:
            raise UsageError(f"model {name_or_path!r} is untrained and has no labels of its own: give it id2label")
        if processor is not None:
            raise UsageError(f"{name_or_path!r} is an untrained timm architecture, so leave out the image processor")
        if head_args:
            model_args = {**(model_args or {}), "head_args": head_args}
        return create_model(name_or_path, id2label=id2label, model_args=model_args, image_size=image_size)
    if model_args:
        raise UsageError(
            f"model_args build an untrained timm architecture, but {name_or_path!r} is none: leave them out to load it as a"
            " checkpoint folder or a Hub id"
        )
    if Path(name_or_path, ADAPTER_CONFIG_NAME).is_file():
        raise UsageError(
            f"model {name_or_path!r} is an adapter of peft and no whole model: load it onto its base, with"
            " PeftModel.from_pretrained(load_model(base, id2label=…)[0], …), or save it anew with merge_adapter=True"
        )
    if image_size is not None:
        check_side(image_size)
    try:
        check_config(name_or_path)
        config = _config(name_or_path, id2label, **from_pretrained)
        with building_at_most(size_limit(name_or_path)):
            model, loading = AutoModelForImageClassification.from_pretrained(
                name_or_path,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **from_pretrained,
            )
        own = processor_for(model, name_or_path, processor, **from_pretrained)
        headless = check_weights(model, loading, head=head(model), new_head=id2label is not None)
        _check_labels(model)
        model = model.eval()
        if image_size is not None:
            model, own = at_size(model, own, image_size)
        own = check_input_size(model, own)
    except Exception as error:  # damaged files make libraries raise what they like: KeyError, ZeroDivisionError, …
        raise UsageError(f"model {name_or_path!r} cannot be loaded: {_why_not(name_or_path, error)}") from error
    labels = dict(model.config.id2label if id2label is None else id2label)
    if head_args or headless or labels != dict(model.config.id2label):
        replace_head(model, labels, head_args)
    return _made_ready(model), own


def _made_ready(model: PreTrainedModel) -> PreTrainedModel:
    """The model in eval mode, its convolutions in the format in which they are fastest, and such that it can be saved."""
    if takes_channels_last(model):
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    save_shared_tensors_apart(model)
    return model.eval()


def _config(name_or_path: str, id2label: dict[int, str] | None, **from_pretrained: Any) -> Any:
    """The configuration of a checkpoint, such that `transformers` builds its model from it."""
    config = AutoConfig.from_pretrained(name_or_path, **from_pretrained)
    if id2label is not None and not config.num_labels:  # a backbone alone, as timm has them
        config = AutoConfig.from_pretrained(name_or_path, num_labels=len(id2label), **from_pretrained)
    if config.model_type == "timm_wrapper":
        model_args = {key: value for key, value in (config.model_args or {}).items() if key != "num_classes"}
        config.model_args = _as_trained(config.architecture, model_args)  # timm notes the number of classes there
    return config


def _as_trained(architecture: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a timm architecture with those that timm adds only where it loads weights, and so does not save."""
    return {**_WITH_WEIGHTS.get(architecture.partition(".")[0], {}), **model_args}


def _why_not(name: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    if not isinstance(error, UsageError | OSError | ImportError):
        reason = f"{type(error).__name__}: {reason}"
    if Path(name).is_dir():
        return reason
    return f"it is neither a folder with an image classifier, nor a timm architecture, nor a reachable Hub id ({reason})"


def _check_labels(model: PreTrainedModel) -> None:
    id2label = dict(model.config.id2label or {})
    if sorted(id2label) != list(range(len(id2label))) or not all(isinstance(name, str) for name in id2label.values()):
        raise UsageError("its config.json must give each of the labels 0, 1, 2, … a name, in id2label")


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
        architecture: a timm architecture's name; this package adds ``cifar_resnet18`` and ``cifar_wrn``.
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
        architecture, len(id2label), _as_trained(architecture, model_args or {}), image_size
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
    _made_ready(model)
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
