"""Freezing the feature extractor, whole or by its first blocks, whatever the backbone."""

import re
from typing import NamedTuple

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from ..errors import UsageError
from ..modeling.classifier import classifier_layer

# Where a model notes the names of the parameters that `freeze` froze; its copies take the note along.
_FROZEN_HERE = "_frozen_by_freeze"


class Block(NamedTuple):
    """One block of a backbone: a name to print, and the names of its parameters in ``model.named_parameters()``."""

    name: str
    parameters: tuple[str, ...]


def blocks(model: PreTrainedModel) -> list[Block]:
    """The backbone's blocks in forward order, from the stem to the last before the classifier layer.

    For a timm model they follow its own ``group_matcher``; what that leaves to the head, other than the classifier layer
    itself, is a block of its own at the end. Otherwise, and for `transformers` models, they are the modules
    of its longest sequence (an ``nn.ModuleList`` or ``nn.Sequential``), together with the sequences of the same place in
    other stages; parameters before the first of them form the stem, parameters between two belong to the later one, and
    parameters after the last to the last.

    Raises:
        UsageError: the model has neither.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> model, _ = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> [block.name for block in blocks(model)][:3]
        ['conv1', 'layer1.0', 'layer1.1']
    """
    head_name, _ = classifier_layer(model)
    names = [name for name, _ in model.named_parameters() if not name.startswith(f"{head_name}.")]
    timm_model = getattr(model, "timm_model", None)
    if timm_model is not None and hasattr(timm_model, "group_matcher"):
        grouped = group_parameters(timm_model, timm_model.group_matcher(coarse=False))
        groups = [[f"timm_model.{name}" for name in grouped[layer]] for layer in sorted(grouped)]
        groups = [[name for name in group if name in names] for group in groups]
        return [Block(_common_name(group), tuple(group)) for group in groups if group]
    return _blocks_by_longest_sequence(model, names)


def _blocks_by_longest_sequence(model: nn.Module, names: list[str]) -> list[Block]:
    sequences = {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and any(parameter.startswith(f"{name}.") for parameter in names)
    }
    longest = max(sequences, key=lambda name: sequences[name], default=None)
    if longest is None or sequences[longest] < 2:
        raise UsageError(
            f"{type(model).__name__} has neither timm's group_matcher nor a sequence of modules, so it cannot be frozen"
            " block by block: use freeze='backbone' or 'none'"
        )
    # The same place in another stage differs only in its numbers: encoder.stages.0.layers, encoder.stages.1.layers, …
    pattern = re.compile(re.sub(r"\\?\.\d+\\?\.", r"\\.\\d+\\.", re.escape(longest)) + r"\.\d+(?=\.)")
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
    last = list(groups)[-1]
    groups[last].extend(waiting)
    return [Block(_common_name(group), tuple(group)) for group in groups.values() if group]


def _common_name(names: list[str]) -> str:
    """The longest dotted prefix that a block's parameters share, leaving out a norm or a pool from elsewhere."""
    paths = [name.removeprefix("timm_model.").split(".") for name in names]
    paths = [path[:-1] for path in paths if path[0] == paths[0][0]]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return ".".join(shared) or names[0].removeprefix("timm_model.")


def parse_freeze(value: str | int) -> str | int:
    """Read a ``freeze`` option: ``"none"``, ``"backbone"`` or a number of blocks.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(value, str) and value in ("none", "backbone"):
        return value
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = -1
    if count < 0 or isinstance(value, float):
        raise UsageError(f"freeze={value!r} must be 'none', 'backbone' or the number of first blocks to freeze")
    return count


def freeze(model: PreTrainedModel, what: str | int) -> None:
    """Freeze parameters, in place: they do not require a gradient afterwards.

    A freeze only freezes. What others froze (you, or an adapter such as LoRA) stays so, whatever is asked for here; of
    what an earlier call on this model froze, what is not asked for any more is released.

    Args:
        model: a model with one classifier layer, which this never freezes.
        what: ``"none"``; ``"backbone"``, everything but the classifier layer; or k, the first k of `blocks`.

    Raises:
        UsageError: an unknown choice, or more blocks than the backbone has.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> model, _ = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> freeze(model, "backbone")
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        1026
    """
    what = parse_freeze(what)
    head_name, _ = classifier_layer(model)
    names: set[str] = set()
    if what == "backbone":
        names = {name for name, _ in model.named_parameters() if not name.startswith(f"{head_name}.")}
    elif what not in ("none", 0):
        found = blocks(model)
        if int(what) > len(found):
            raise UsageError(f"freeze={what}, but this backbone has {len(found)} blocks: use at most that, or 'backbone'")
        names = {name for block in found[: int(what)] for name in block.parameters}
    frozen_here: set[str] = getattr(model, _FROZEN_HERE, set())
    for name, parameter in model.named_parameters():
        if name in frozen_here:
            parameter.requires_grad_(True)
    now = {name for name, parameter in model.named_parameters() if name in names and parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in now:
            parameter.requires_grad_(False)
    setattr(model, _FROZEN_HERE, now)


def eval_where_frozen(model: PreTrainedModel, *, batch_norm: bool = False) -> None:
    """Put every frozen module in eval mode, and the backbone's batch-norm that trains as well if asked.

    Call it after ``model.train()``. A module is frozen if none of its parameters requires a gradient; one without
    parameters (dropout, drop path) goes with the parameters registered last before it.

    Args:
        model: a model in train mode.
        batch_norm: keep the backbone's batch-norm on its running statistics, as the paper's released code does. A new
            head's has none to keep yet, and goes on measuring.
    """
    in_head = set(classifier_layer(model)[1].modules())
    preceding_frozen = False
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters:
            frozen = not any(parameter.requires_grad for parameter in parameters)
            preceding_frozen = not parameters[-1].requires_grad if not list(module.children()) else preceding_frozen
        else:
            frozen = preceding_frozen
        if frozen or (batch_norm and isinstance(module, _BatchNorm) and module not in in_head):
            module.training = False


def describe(model: PreTrainedModel) -> str:
    """A table of the model's blocks, their sizes and what trains, to print before training.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> model, _ = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> freeze(model, 8)
        >>> print(describe(model).splitlines()[-1])
        trainable: 4,721,666 of 11,169,858 parameters
    """
    parameters = dict(model.named_parameters())
    head_name, _ = classifier_layer(model)
    head = Block(
        head_name.removeprefix("timm_model."), tuple(name for name in parameters if name.startswith(f"{head_name}."))
    )
    try:
        rows = [*blocks(model), head]
    except ValueError:  # no blocks to tell apart, but the backbone can still be frozen whole
        rows = [Block("backbone", tuple(name for name in parameters if name not in head.parameters)), head]
    lines = [f"{'block':>5}  {'name':<40} {'parameters':>12}  state"]
    for number, block in enumerate(rows, 1):
        size = sum(parameters[name].numel() for name in block.parameters)
        flags = {parameters[name].requires_grad for name in block.parameters}
        state = "trains in part" if len(flags) > 1 else "trains" if flags.pop() else "frozen"
        lines.append(f"{'head' if block is head else number:>5}  {block.name:<40} {size:>12,}  {state}")
    total = sum(parameter.numel() for parameter in parameters.values())
    trainable = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    lines.append(f"trainable: {trainable:,} of {total:,} parameters")
    return "\n".join(lines)
