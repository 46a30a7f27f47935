"""Checkpoints from outside the Hugging Face ecosystem: a bare PyTorch file becomes a model of ours. Weights only."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from .loading import create_model

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net")
_RENAMINGS = ((r"\bshortcut\.", "downsample."), (r"^linear\.", "fc."))


def import_checkpoint(
    file: str | Path,
    *,
    architecture: str,
    id2label: dict[int, str],
    model_args: dict[str, Any] | None = None,
    mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    std: tuple[float, ...] = (1.0, 1.0, 1.0),
    image_size: int | None = None,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Turn an external PyTorch checkpoint into a model and image processor that `save_pretrained` can write.

    Understood are a bare state dict or one wrapped as ``{"state_dict": …}`` or ``{"net": …}``, keys with a ``module.``
    prefix, the names ``shortcut`` and ``linear`` of the usual CIFAR ResNet, and weights in half precision, which become
    float32. Nothing is unpickled but tensors and plain containers.

    Args:
        file: a ``.pt``/``.pth`` file or a ``.safetensors`` one.
        architecture: the timm architecture that the weights belong to, such as ``cifar_resnet18``.
        id2label: the names of its classes, by index.
        model_args: arguments of the architecture's constructor.
        mean, std: the normalisation that the network expects of [0, 1] pixels, by default none.
        image_size: the side of its input in pixels, by default the architecture's own.

    Raises:
        ValueError: the file is missing, holds code or is no checkpoint, or its weights do not fit the architecture.
    """
    file = Path(file)
    state = _read_weights(file)
    model, processor = create_model(
        architecture, id2label=id2label, model_args=model_args, mean=mean, std=std, image_size=image_size
    )
    expected = model.timm_model.state_dict()
    weights = {key if key in expected else _rename(key): value for key, value in state.items()}
    wrong = sorted(
        key
        for key in expected.keys() | weights.keys()
        if not key.endswith("num_batches_tracked")
        and (key not in expected or key not in weights or expected[key].shape != weights[key].shape)
    )
    if wrong:
        raise ValueError(
            f"{file}: the weights do not fit {architecture} with {len(id2label)} labels; {len(wrong)} tensors are missing,"
            f" unknown or of another shape, first {', '.join(wrong[:4])}"
        )
    model.timm_model.load_state_dict({key: value.to(expected[key].dtype) for key, value in weights.items()}, strict=False)
    return model, processor


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"{file} is not a file")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _is_archive_or_pickle(file):
            raise ValueError(f"{file} is not a PyTorch checkpoint; it begins with {_beginning(file)!r}") from error
        raise ValueError(
            f"{file} holds more than weights: loading it would run code from the file, which is refused. Save its"
            " state_dict() alone where you trust the code, and import that"
        ) from error
    except (RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise ValueError(f"{file} is not a PyTorch checkpoint; it begins with {_beginning(file)!r}") from error
    for key in _WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = (
        {key: value for key, value in content.items() if isinstance(value, Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise ValueError(f"{file} holds no state dict: expected names with tensors, or those under {_WRAPPINGS[0]!r}")
    return tensors


def _beginning(file: Path, length: int = 40) -> bytes:
    with file.open("rb") as opened:
        return opened.read(length)


def _is_archive_or_pickle(file: Path) -> bool:
    """Whether this is at all what `torch.save` writes: a zip archive, or in old versions a pickle."""
    return _beginning(file, 4) == b"PK\x03\x04" or _beginning(file, 1) == b"\x80"


def _rename(key: str) -> str:
    key = key.removeprefix("module.")
    for pattern, replacement in _RENAMINGS:
        key = re.sub(pattern, replacement, key)
    return key
