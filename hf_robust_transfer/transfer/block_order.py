"""The blocks of a backbone, in the order in which they run."""

import re
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models import group_parameters
from torch import nn
from transformers import PreTrainedModel

from ..attacks.eval_mode import untouched
from ..errors import UsageError
from ..modeling.adapters import plain
from ..modeling.classifier import device_of
from ..modeling.heads import is_of_head
from ..modeling.input_size import input_shape


class Block(NamedTuple):
    """One block of a backbone: a name to print, and the names of its parameters in ``model.named_parameters()``.

    Of a model with an adapter of peft, in those of the model inside.
    """

    name: str
    parameters: tuple[str, ...]


def blocks(model: PreTrainedModel) -> list[Block]:
    """The backbone's blocks in the order in which they run, from the stem to the last before the head.

    The order is observed on a forward pass. For a timm model blocks follow its own ``group_matcher``; what that leaves to
    the head, other than the classifier layers themselves, is a block of its own at the end. Otherwise they are the modules
    of the longest sequence (an ``nn.ModuleList`` or ``nn.Sequential``), together with the sequences of the same place in
    other stages; what runs before the first of them forms the stem, what runs between two belongs to the later one, and
    what runs after the last to the last.

    Raises:
        UsageError: the model has neither, or takes no image of the size that its configuration names.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> model, _ = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> [block.name for block in blocks(model)][:3]
        ['conv1', 'layer1.0', 'layer1.1']
    """
    model = plain(model)
    names = [name for name, _ in model.named_parameters() if not is_of_head(name, model)]
    entered = _entered(model)
    when = {name: _when(name, entered) for name in names}
    timm_model: Any = getattr(model, "timm_model", None)
    if timm_model is not None and hasattr(timm_model, "group_matcher"):
        grouped = group_parameters(timm_model, timm_model.group_matcher(coarse=False))
        groups = [[f"timm_model.{name}" for name in grouped[layer]] for layer in sorted(grouped)]
        groups = [[name for name in group if name in when] for group in groups]
        groups.sort(key=lambda group: _first(group, when))
    else:
        groups = _by_longest_sequence(model, sorted(names, key=when.__getitem__))
    return [Block(_common_name(group), tuple(group)) for group in groups if group]


def _entered(model: PreTrainedModel) -> dict[str, int]:
    """The order in which modules first run, by name."""
    entered: dict[str, int] = {}

    def enter(name: str, *_: Any) -> None:
        entered.setdefault(name, len(entered))

    images = torch.zeros(2, *input_shape(model), device=device_of(model), dtype=model.dtype)
    with ExitStack() as undo:
        undo.enter_context(torch.no_grad())
        undo.enter_context(untouched(model))
        for name, module in model.named_modules():
            undo.callback(module.register_forward_pre_hook(partial(enter, name)).remove)
        try:
            model(pixel_values=images)
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(
                f"{type(model).__name__} cannot be frozen block by block: it takes no image of {tuple(images.shape[1:])},"
                f" which its configuration names ({' '.join(str(error).split())}): use --freeze backbone or none"
            ) from error
    return entered


def _when(name: str, entered: dict[str, int]) -> int:
    """When a parameter is first used: when its module runs, or what that is part of, for a module that is not called."""
    owner = name.rpartition(".")[0]
    while owner and owner not in entered:
        owner = owner.rpartition(".")[0]
    return entered.get(owner, 0)


def _first(names: list[str], when: dict[str, int]) -> int:
    """When a block begins; parameters of the whole model, like a class token, say nothing about that."""
    return min((when[name] for name in names if when[name] > 1), default=0)


def _by_longest_sequence(model: nn.Module, names: list[str]) -> list[list[str]]:
    sizes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and any(each.startswith(f"{name}.") for each in names):
            sizes[name] = len(module), sum(parameter.numel() for parameter in module.parameters())
    longest = max(sizes, key=sizes.__getitem__, default="")
    if not longest or sizes[longest][0] < 2:
        raise UsageError(
            f"{type(model).__name__} has neither timm's group_matcher nor a sequence of modules, so it cannot be frozen"
            " block by block: use freeze='backbone' or 'none'"
        )
    # The same place in another stage differs only in its numbers: encoder.stages.0.layers, encoder.stages.1.layers, …
    place = r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in longest.split("."))
    pattern = re.compile(place + r"\.\d+(?=\.)")
    groups: dict[str, list[str]] = {"": []}
    waiting: list[str] = []
    for name in names:
        match = pattern.match(name)
        if match is None:
            waiting.append(name)
            continue
        block = match.group()
        if block not in groups and len(groups) == 1:
            groups[""], waiting = waiting, []
        groups.setdefault(block, []).extend(waiting)
        groups[block].append(name)
        waiting = []
    groups[list(groups)[-1]].extend(waiting)
    return list(groups.values())


def _common_name(names: list[str]) -> str:
    """The longest dotted prefix that a block's parameters share, leaving out a norm or a pool from elsewhere."""
    paths = [name.removeprefix("timm_model.").split(".") for name in names]
    paths = [path[:-1] for path in paths if path[0] == paths[0][0]]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return ".".join(shared) or names[0].removeprefix("timm_model.")
