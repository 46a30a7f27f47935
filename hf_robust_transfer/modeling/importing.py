"""Checkpoints from outside the Hugging Face ecosystem: a bare PyTorch file becomes a model of ours. Weights only."""

import pickle
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..errors import UsageError
from .creating import create_model
from .heads import classifier_layers, replace_head
from .weights import not_finite

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net")
# What `DataParallel`, MadryLab's AttackerModel and its Attacker, and RobustBench put before the network's own names.
_PREFIXES = re.compile(r"^(?:(?:module|attacker|model)\.)+")
# Where they keep their normalisation: MadryLab's model and attacker, RobustBench's first layer and its network classes.
_MEANS = ("normalizer.new_mean", "normalize.new_mean", "normalize.mean", "mu")
_STDS = ("normalizer.new_std", "normalize.new_std", "normalize.std", "sigma")
_UNUSED = "sub_block1."  # WideResNets of TRADES have these layers, but never apply them
RENAMINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "timm, torchvision": (),
    "ResNet for CIFAR": ((r"\bshortcut\.", "downsample."), (r"^linear\.", "fc.")),
    "WideResNet for CIFAR": (
        (r"^conv1\.", "stem.conv."),
        (r"^block1\.layer\.", "stages.0.blocks."),
        (r"^block2\.layer\.", "stages.1.blocks."),
        (r"^block3\.layer\.", "stages.2.blocks."),
        (r"\.bn([12])\.", r".norm\1."),
        (r"\.convShortcut\.", ".downsample.conv."),
        (r"^bn1\.", "norm."),
        (r"^fc\.", "head.fc."),
    ),
}
"""From the names in a file to timm's: patterns and what replaces them, all of a scheme in their order. One scheme is tried
after the other until a name fits the architecture; a further one is a further row."""


class ExternalCheckpoint(NamedTuple):
    """What a file holds: weights by the network's own names, and the normalisation of [0, 1] pixels if it is in there."""

    file: Path
    weights: dict[str, Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def read_checkpoint(file: str | Path) -> ExternalCheckpoint:
    """Read the weights of an external PyTorch checkpoint. Nothing is unpickled but tensors and plain containers.

    Understood are a bare state dict or one under ``state_dict``, ``model_state_dict``, ``model`` or ``net``, whatever plain
    things lie beside it; the prefixes of `DataParallel`, of MadryLab's ``robustness`` (which keeps a network twice) and of
    RobustBench; and their normalisers. Layers that TRADES' WideResNets have but never apply are left out.

    Args:
        file: a ``.pt``/``.pth`` file or a ``.safetensors`` one.

    Returns:
        The weights, and the file's own normalisation or None.

    Raises:
        ValueError: the file is missing, holds code or is no checkpoint, or it holds two different networks.

    Example:
        >>> read_checkpoint("cifar_linf_8.pt").mean  # doctest: +SKIP
        (0.4914, 0.4822, 0.4465)
    """
    file = Path(file)
    weights: dict[str, Tensor] = {}
    for key, value in _read_tensors(file).items():
        name = _PREFIXES.sub("", key)
        if not name.startswith(_UNUSED):
            _add(weights, name, value, file)
    return ExternalCheckpoint(file, weights, _statistics(weights, _MEANS, file), _statistics(weights, _STDS, file))


def import_checkpoint(
    file: str | Path | ExternalCheckpoint,
    *,
    architecture: str,
    id2label: dict[int, str] | None = None,
    model_args: dict[str, Any] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    image_size: int | None = None,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Turn an external PyTorch checkpoint into a model and image processor that `save_pretrained` can write.

    Besides timm's own names, those of torchvision's ResNets, of the usual ResNets for CIFAR (``shortcut``, ``linear``;
    `cifar_resnet18`) and of TRADES' WideResNets (``block1.layer.0.bn1``, …; `cifar_wrn`) are understood: `RENAMINGS` has a
    row for each. Weights in half precision become float32.

    Args:
        file: a ``.pt``/``.pth`` file or a ``.safetensors`` one, or what `read_checkpoint` made of it.
        architecture: the timm architecture that the weights belong to, such as ``cifar_resnet18``.
        id2label: the names of its classes, by index; by default ``LABEL_0``, … for as many as the weights have.
        model_args: arguments of the architecture's constructor.
        mean, std: the normalisation that the network expects of [0, 1] pixels, by default the file's own, else none.
        image_size: the side of its input in pixels, by default the architecture's own.

    Returns:
        The model in float32 and in eval mode, and its image processor, as `create_model` gives them.

    Raises:
        ValueError: whatever `read_checkpoint` raises, weights that do not fit the architecture or the labels, or a
            normalisation that is not in [0, 1] pixel units.

    Example:
        >>> labels = {0: "cat", 1: "dog"}
        >>> model, processor = import_checkpoint("a.pt", architecture="resnet18", id2label=labels)  # doctest: +SKIP
        >>> model.save_pretrained("source"); processor.save_pretrained("source")  # doctest: +SKIP
    """
    checkpoint = file if isinstance(file, ExternalCheckpoint) else read_checkpoint(file)
    labels = {0: "LABEL_0"} if id2label is None else id2label
    channels = (model_args or {}).get("in_chans", 3)
    mean, std = mean or checkpoint.mean or (0.0,) * channels, std or checkpoint.std or (1.0,) * channels
    model, processor = create_model(
        architecture, id2label=labels, model_args=model_args, mean=mean, std=std, image_size=image_size
    )
    _check_normalisation(mean, std)

    expected = model.timm_model.state_dict()
    weights: dict[str, Tensor] = {}
    for key, value in checkpoint.weights.items():
        _add(weights, _renamed(key, expected), value, checkpoint.file)
    head = weights.get(next(iter(classifier_layers(model))).removeprefix("timm_model.") + ".weight")
    if head is not None and head.ndim and len(head) != len(labels):
        if id2label is not None:
            raise UsageError(f"{checkpoint.file} has weights for {len(head)} classes, but there are {len(labels)} labels")
        replace_head(model, {index: f"LABEL_{index}" for index in range(len(head))})
        expected = model.timm_model.state_dict()
    misfits = _misfits(weights, expected)
    if misfits:
        arguments = f" with {model_args}" if model_args else ""
        raise UsageError(f"{checkpoint.file}: the weights do not fit {architecture}{arguments}: {misfits}")
    fitting = {key: value.to(expected[key].dtype) for key, value in weights.items() if key in expected}
    model.timm_model.load_state_dict(fitting, strict=False)  # batch-norm counters may be missing
    if broken := not_finite(model):
        raise UsageError(f"{checkpoint.file}: {len(broken)} tensors are not finite ({broken[0]}, …)")
    return model, processor


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with file.open("rb") as opened:
            beginning = opened.read(1024)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise what they like: KeyError, struct.error, SafetensorError, …
        raise UsageError(f"{file} {_why_not(beginning, error)}") from error
    for key in _WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = (
        {key: value for key, value in content.items() if isinstance(value, Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise UsageError(f"{file} holds no state dict: expected names with tensors, or those under {_WRAPPINGS[0]!r}")
    return tensors


def _why_not(beginning: bytes, error: Exception) -> str:
    """Why a file that begins like this, and fails to load with this error, is not imported."""
    if beginning.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"html" in beginning.lower():
        return (
            "is not a PyTorch checkpoint but a web page: the download failed, as when a drive first asks for a confirmation"
            " or its quota is exceeded. Open the link in a browser and download the file itself"
        )
    if isinstance(error, pickle.UnpicklingError) and beginning.startswith((b"PK\x03\x04", b"\x80")):
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        return (
            f"holds more than weights{f' ({forbidden[1]})' if forbidden else ''}: loading it would run code from the file,"
            " which is refused. If you trust it, load it in the environment it came from, save the weights alone there with"
            " torch.save(model.state_dict(), 'weights.pt'), and import that file"
        )
    # What the weights-only loader says speaks of how to switch it off.
    reason = "" if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0]
    shown = f"it begins with {beginning[:40]!r}" + (f" ({reason})" if reason else "")
    return f"is not a PyTorch checkpoint, or a damaged one; {shown}"


def _add(weights: dict[str, Tensor], name: str, value: Tensor, file: Path) -> None:
    """Add a tensor; it may be there already, but not with other values."""
    if name in weights and not torch.equal(weights[name], value):
        raise UsageError(f"{file} holds two different tensors for {name}: save the one network's state_dict() alone")
    weights[name] = value


def _statistics(weights: dict[str, Tensor], names: tuple[str, ...], file: Path) -> tuple[float, ...] | None:
    """Take the normaliser's buffers of these names out of the weights."""
    found: dict[str, Tensor] = {}
    for name in names:
        if name in weights:
            _add(found, names[0], weights.pop(name).flatten().float(), file)
    # The shortest decimals that are these float32 numbers: 0.4914, not 0.49140000343322754.
    return tuple(float(str(np.float32(value))) for value in found[names[0]].tolist()) if found else None


def _check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise UsageError(f"mean {mean} and std {std} must be those of pixels in [0, 1]: divide those of 0 … 255 by 255")


def _renamed(key: str, expected: Container[str]) -> str:
    for scheme in RENAMINGS.values():
        name = key
        for pattern, replacement in scheme:
            name = re.sub(pattern, replacement, name)
        if name in expected:
            return name
    return key


def _misfits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], shown: int = 4) -> str:
    """What keeps the weights from fitting, in words; empty if they fit. Batch-norm counters may be missing."""
    kinds = {
        "missing from the file": [key for key in expected if key not in weights],
        "unknown to the architecture": [key for key in weights if key not in expected],
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected
            if key in weights and weights[key].shape != expected[key].shape
        ],
    }
    parts = []
    for kind, names in kinds.items():
        names = [name for name in names if not name.endswith("num_batches_tracked")]
        if names:
            more = ", …" if len(names) > shown else ""
            parts.append(f"{len(names)} {kind} ({', '.join(names[:shown])}{more})")
    return ", ".join(parts)
