"""Checkpoints from outside the Hugging Face ecosystem: a bare PyTorch file becomes a model of ours. Weights only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..errors import UsageError, listed
from .cifar import statistics_of
from .creating import create_model
from .heads import classifier_layers, replace_head
from .layouts import MEANS, STDS, add, fitted, own_names
from .pickles import Inert, Stored, read_tensors
from .weights import not_finite

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net")
_IMAGENET_CLASSES = 1000


class ExternalCheckpoint(NamedTuple):
    """What a file holds: weights by the network's own names, and the normalisation of [0, 1] pixels if it is in there.

    ``others`` are the names of the functions and classes whose results or objects lie beside the weights; none was made.
    """

    file: Path
    weights: dict[str, Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    others: tuple[str, ...] = ()


def read_checkpoint(file: str | Path) -> ExternalCheckpoint:
    """Read the weights of an external PyTorch checkpoint. Nothing that is in the file can run.

    Understood are a bare state dict or one under ``state_dict``, ``model_state_dict``, ``model`` or ``net``, whatever lies
    beside it, objects and functions included (`hf_robust_transfer.modeling.pickles`); the prefixes of `DataParallel`, of
    MadryLab's ``robustness`` (which keeps a network twice), of RobustBench and of a `Sequential`; and their normalisers.
    Layers that TRADES' WideResNets have but never apply are left out.

    Args:
        file: a ``.pt``/``.pth``/``.ckpt`` file of any version of PyTorch, or a ``.safetensors`` one.

    Returns:
        The weights, the file's own normalisation or None, and what else it holds.

    Raises:
        UsageError: the file is missing, is no checkpoint, has no weights by name, or it holds two different networks.

    Example:
        >>> read_checkpoint("cifar_linf_8.pt").mean  # doctest: +SKIP
        (0.4914, 0.4822, 0.4465)
    """
    file = Path(file)
    tensors, others = _read_tensors(file)
    weights: dict[str, Tensor] = {}
    try:
        for key, name in own_names(tensors).items():
            add(weights, name, tensors[key])
        mean, std = _statistics(weights, MEANS), _statistics(weights, STDS)
    except UsageError as error:
        raise UsageError(f"{file} {error}") from None
    return ExternalCheckpoint(file, weights, mean, std, tuple(others))


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

    Besides timm's own names, old ones included, `hf_robust_transfer.modeling.layouts` understands those of torchvision's
    ResNets, DenseNets and MobileNetV2, of the usual ResNets for CIFAR (``shortcut``, ``linear``; `cifar_resnet18`), of
    TRADES' WideResNets (``block1.layer.0.bn1``, …; `cifar_wrn`) and of DeepMind's (``layer.0.block.0.batchnorm_0``, …;
    `cifar_wrn_silu`). Weights in half precision become float32.

    Args:
        file: a ``.pt``/``.pth``/``.ckpt`` file or a ``.safetensors`` one, or what `read_checkpoint` made of it.
        architecture: the timm architecture that the weights belong to, such as ``cifar_resnet18``.
        id2label: the names of its classes, by index; by default ImageNet's for 1000 classes of an architecture that timm
            has for ImageNet, else ``LABEL_0``, … for as many as the weights have.
        model_args: arguments of the architecture's constructor.
        mean, std: the normalisation that the network expects of [0, 1] pixels, by default the file's own, else none, or
            for `cifar_wrn_silu` that of the originals for CIFAR-10 or CIFAR-100.
        image_size: the side of its input in pixels, by default the architecture's own.

    Returns:
        The model in float32 and in eval mode, and its image processor, as `create_model` gives them.

    Raises:
        UsageError: whatever `read_checkpoint` raises, weights that do not fit the architecture or the labels, or a
            normalisation that is not in [0, 1] pixel units.

    Example:
        >>> labels = {0: "cat", 1: "dog"}
        >>> model, processor = import_checkpoint("a.pt", architecture="resnet18", id2label=labels)  # doctest: +SKIP
        >>> model.save_pretrained("source"); processor.save_pretrained("source")  # doctest: +SKIP
    """
    checkpoint = file if isinstance(file, ExternalCheckpoint) else read_checkpoint(file)
    labels = {0: "LABEL_0"} if id2label is None else id2label
    channels = (model_args or {}).get("in_chans", 3)
    usual = _usual_normalisation(checkpoint, architecture, channels)
    mean, std = mean or checkpoint.mean or usual[0], std or checkpoint.std or usual[1]
    if not mean or not std:
        raise UsageError(
            f"{checkpoint.file} has no normalisation, and the originals' is known for CIFAR only: give mean and std"
        )
    model, processor = create_model(
        architecture, id2label=labels, model_args=model_args, mean=mean, std=std, image_size=image_size
    )
    _check_normalisation(mean, std)
    try:
        weights = fitted(checkpoint.weights, model.timm_model)
    except UsageError as error:
        raise UsageError(f"{checkpoint.file}: {error}") from None
    head = weights.get(next(iter(classifier_layers(model))).removeprefix("timm_model.") + ".weight")
    if head is not None and head.ndim and len(head) != len(labels):
        if id2label is not None:
            raise UsageError(f"{checkpoint.file} has weights for {len(head)} classes, but there are {len(labels)} labels")
        replace_head(model, _usual_labels(architecture, len(head)))
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


def _usual_normalisation(
    checkpoint: ExternalCheckpoint, architecture: str, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What a network of this architecture is taken to expect whose file does not say."""
    logits = checkpoint.weights.get("logits.bias")
    if architecture.partition(".")[0] != "cifar_wrn_silu" or logits is None:
        return (0.0,) * channels, (1.0,) * channels
    return statistics_of(logits.numel()) or ((), ())


def is_of_imagenet(architecture: str, classes: int = _IMAGENET_CLASSES) -> bool:
    """Whether so many classes of a timm architecture are ImageNet's, whose names timm knows."""
    usual = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    return usual is not None and classes == usual.num_classes == _IMAGENET_CLASSES


def _usual_labels(architecture: str, classes: int) -> dict[int, str]:
    """ImageNet's names, the second class of a name with its number in WordNet (cranes are birds and machines), or none."""
    if not is_of_imagenet(architecture, classes):
        return {index: f"LABEL_{index}" for index in range(classes)}
    known = ImageNetInfo("imagenet-1k")
    names: dict[str, None] = {}
    for synset in known.label_names():
        name = known.label_name_to_description(synset)
        names[f"{name} ({synset})" if name in names else name] = None
    return dict(enumerate(names))


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors by name, and what else is in there."""
    try:
        with file.open("rb") as opened:
            beginning = opened.read(1024)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    found: list[str] = []

    def chosen(content: Any, others: list[str]) -> Mapping[str, Stored]:
        for key in _WRAPPINGS:
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
        stored = (
            {key: each for key, each in content.items() if isinstance(each, Stored)} if isinstance(content, dict) else {}
        )
        if not stored or not all(isinstance(key, str) for key in stored):
            raise UsageError(_no_weights(content, others))
        found.extend(others)
        return stored

    try:
        return (load_file(file), []) if file.suffix == ".safetensors" else (read_tensors(file, chosen), found)
    except UsageError as error:
        raise UsageError(f"{file} {error}") from None
    except Exception as error:  # damaged files raise what they like: KeyError, struct.error, SafetensorError, …
        raise UsageError(f"{file} {_why_not(beginning, error)}") from error


def _no_weights(content: Any, others: list[str]) -> str:
    """Why this content is not that of a checkpoint, where these things are not made."""
    objects = others or ([content.name] if isinstance(content, Inert) else [])
    if not objects:
        return f"holds no state dict: expected names with tensors, or those under {_WRAPPINGS[0]!r}"
    return (
        f"holds no weights by name, but {listed((name[:80] for name in objects), 5)}: to make that would run code from the"
        " file, which is refused. If you trust it, load it in the environment it came from, save the weights alone there"
        " with torch.save(model.state_dict(), 'weights.pt'), and import that file"
    )


def _why_not(beginning: bytes, error: Exception) -> str:
    """Why a file that begins like this, and fails to load with this error, is not imported."""
    if beginning.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"html" in beginning.lower():
        return (
            "is not a PyTorch checkpoint but a web page: the download failed, as when a drive first asks for a confirmation"
            " or its quota is exceeded. Open the link in a browser and download the file itself"
        )
    reason = str(error).partition("\n")[0][:200]
    shown = f"it begins with {beginning[:40]!r}" + (f" ({reason})" if reason else "")
    return f"is not a PyTorch checkpoint, or a damaged one; {shown}"


def _statistics(weights: dict[str, Tensor], names: tuple[str, ...]) -> tuple[float, ...] | None:
    """Take the normaliser's buffers of these names out of the weights."""
    found: dict[str, Tensor] = {}
    for name in names:
        if name in weights:
            add(found, names[0], weights.pop(name).flatten().float())
    # The shortest decimals that are these float32 numbers: 0.4914, not 0.49140000343322754.
    return tuple(float(str(np.float32(value))) for value in found[names[0]].tolist()) if found else None


def _check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise UsageError(f"mean {mean} and std {std} must be those of pixels in [0, 1]: divide those of 0 … 255 by 255")


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
