"""What a checkpoint's weights have to be: all there, of the right shapes, finite, and as many as the file holds."""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..errors import UsageError
from ..run_folder import CONFIG_NAME

_MOST_TENSORS = 6000  # the largest classifiers have some three thousand
_LARGEST = 10**6  # of the numbers in a configuration
# Constants that some versions of some architectures keep with their weights, and others compute.
_CONSTANTS = re.compile(
    r"(^|\.)(num_batches_tracked|position_ids|relative_position_index|relative_coords_table|attn_mask)$"
)


def not_finite(model: nn.Module) -> list[str]:
    """The names of a model's parameters and buffers that have a NaN or an infinity in them; of its own part, if sharded.

    An infinity in a buffer counts in a norm's statistics alone: others may be bounds that bound nothing.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.bias.data[0] = float("nan")
        >>> not_finite(layer)
        ['bias']
    """
    local = {name: getattr(tensor, "to_local", lambda whole=tensor: whole)() for name, tensor in model.state_dict().items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    def broken(name: str, tensor: Tensor) -> bool:
        counts = name in parameters or "running_" in name
        return bool((~torch.isfinite(tensor) if counts else tensor.isnan()).any())

    return [name for name, tensor in local.items() if tensor.is_floating_point() and broken(name, tensor)]


def check_weights(model: nn.Module, loading: Mapping[str, Any], *, head: Collection[str], new_head: bool) -> bool:
    """Make sure that a checkpoint's weights are those of its architecture.

    Args:
        model: as it was loaded.
        loading: what `from_pretrained` tells about that: ``missing_keys``, ``unexpected_keys``, ``mismatched_keys``.
        head: the names of the layers of its head.
        new_head: a head that is missing is drawn anew; what the file then has in its place may be unknown.

    Returns:
        Whether the head is missing.

    Raises:
        UsageError: tensors are missing, unknown, of another shape, or not finite; the message counts and names them.
    """
    missing = [name for name in loading["missing_keys"] if not _CONSTANTS.search(name)]
    backbone = [name for name in missing if not name.startswith(tuple(f"{layer}." for layer in head))]
    headless = len(missing) > len(backbone)
    unknown = [name for name in loading["unexpected_keys"] if not _CONSTANTS.search(name)]
    if headless and new_head:  # of another task; but a block like those of the model belongs to a deeper one
        base = f"{getattr(model, 'base_model_prefix', '')}."  # which a file of the backbone alone leaves out
        kinds = {_kind(name.removeprefix(prefix)) for name in model.state_dict() for prefix in ("", base)}
        unknown = [name for name in unknown if _kind(name) in kinds]
    shapes = [f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in loading["mismatched_keys"]]
    faults = {
        "missing": backbone if new_head else missing,
        "unknown to the architecture": unknown,
        "of another shape": shapes,
        "not finite": not_finite(model),
    }
    if any(faults.values()):
        raise UsageError("its weights are damaged or of another architecture: " + _counted(faults))
    return headless


def save_shared_tensors_apart(model: nn.Module) -> None:
    """Let tensors that a model has under several names be saved under each of them, as timm expects them (CoaT)."""
    if len({id(tensor) for tensor in model.state_dict(keep_vars=True).values()}) < len(model.state_dict()):
        model.register_state_dict_post_hook(_apart)


def _apart(model: nn.Module, tensors: dict[str, Any], *_: Any) -> None:
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def _kind(name: str) -> str:
    """A tensor's name without the numbers of the blocks that it is in."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _counted(faults: Mapping[str, Collection[str]], shown: int = 3) -> str:
    parts = []
    for fault, names in faults.items():
        if names:
            some = ", ".join(sorted(names)[:shown]) + (", …" if len(names) > shown else "")
            parts.append(f"{len(names)} tensors are {fault} ({some})" if len(names) > 1 else f"{some} is {fault}")
    return "; ".join(parts)


def size_limit(folder: str | Path) -> int:
    """How many numbers a model may have that is built by a folder's configuration: at most a byte each in its files.

    For what is no folder with weights, as many as the machine's memory can hold in float32.
    """
    weights = [*Path(folder).glob("*.safetensors"), *Path(folder).glob("*.bin")] if Path(folder).is_dir() else []
    if weights:
        return sum(file.stat().st_size for file in weights) + 2**16
    return _memory() // 4


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 2**40


def check_config(folder: str | Path) -> None:
    """Make sure that a folder's ``config.json``, if there is one, is an object without sizes that no classifier has.

    Raises:
        UsageError: naming the entry.
    """
    file = Path(folder, CONFIG_NAME)
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"its config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UsageError("its config.json is not a JSON object")
    for name, value in config.items():
        if name not in ("id2label", "label2id", "robust_training"):
            for number in _numbers(value):
                if not abs(number) <= _LARGEST:
                    raise UsageError(f"its config.json says {name} {number:g}, which no image classifier has")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)
    elif isinstance(value, int | float):
        yield value


@contextmanager
def building_at_most(numbers: int) -> Iterator[None]:
    """Stop building modules as soon as their parameters are more than this, or more than any classifier has.

    Raises:
        UsageError: within; nothing that large was allocated yet, if it is built on the meta device.

    Example:
        >>> with building_at_most(10):
        ...     nn.Linear(5, 5)
        Traceback (most recent call last):
            ...
        hf_robust_transfer.errors.UsageError: its sizes make more than 10 numbers, which is more than there can be
    """
    seen: set[tuple[int, str]] = set()  # loading registers once more what was built
    built = 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal built
        if parameter is None or (id(module), name) in seen:
            return
        seen.add((id(module), name))
        built += parameter.numel()
        if built > numbers or len(seen) > _MOST_TENSORS:
            most = f"{numbers:,} numbers" if built > numbers else f"{_MOST_TENSORS:,} tensors"
            raise UsageError(f"its sizes make more than {most}, which is more than there can be")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
