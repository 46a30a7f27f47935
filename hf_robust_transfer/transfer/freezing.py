"""Freezing the feature extractor, whole or by its first blocks, whatever the backbone."""

from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from ..errors import UsageError
from ..modeling.adapters import adapted_layer, is_adapted, plain, whole_layers
from ..modeling.heads import head, is_of_head
from .block_order import Block, blocks

# Where a model notes the names of the parameters that `freeze` froze; its copies take the note along.
_FROZEN_HERE = "_frozen_by_freeze"


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
        model: an image classifier; its head is never frozen here.
        what: ``"none"``; ``"backbone"``, everything but the head; or k, the first k of `blocks`.

    Raises:
        UsageError: an unknown choice, or more blocks than the backbone has.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> model, _ = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> freeze(model, "backbone")
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        1026
    """
    what, model = parse_freeze(what), plain(model)
    names: set[str] = set()
    if what == "backbone":
        names = {name for name, _ in model.named_parameters() if not is_of_head(name, model)}
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
    parameters (dropout, drop path) goes with the parameters registered last before it, in an adapter of peft with the
    adapter's. Batch-norm whose running statistics an adapter does not save does not change them.

    Args:
        model: a model in train mode.
        batch_norm: keep the backbone's batch-norm on its running statistics, as the paper's released code does. A new
            head's has none to keep yet, and goes on measuring.
    """
    in_head = {module for layer in head(model).values() for module in layer.modules()}
    kept = set(model.modules()) - whole_layers(model) if is_adapted(model) else set()
    preceding_frozen = False
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters:
            frozen = not any(parameter.requires_grad for parameter in parameters)
            preceding_frozen = not parameters[-1].requires_grad if not list(module.children()) else preceding_frozen
        else:
            frozen = preceding_frozen
        if frozen or (isinstance(module, _BatchNorm) and (module in kept or (batch_norm and module not in in_head))):
            module.training = False
    for module in model.modules():
        if adapted_layer(module) is not None:
            added = [each for name, each in module.named_children() if name not in ("base_layer", "original_module")]
            trains = any(parameter.requires_grad for each in added for parameter in each.parameters())
            for part in (part for each in added for part in each.modules() if not any(True for _ in part.parameters())):
                part.training = trains


def describe(model: PreTrainedModel) -> str:
    """A table of the model's blocks, their sizes and what trains, to print before training.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> model, _ = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> freeze(model, 8)
        >>> print(describe(model).splitlines()[-1])
        trainable: 4,721,666 of 11,169,858 parameters
    """
    model = plain(model)
    parameters = dict(model.named_parameters())
    layers = [name.removeprefix("timm_model.") for name in head(model)]
    of_head = Block(" + ".join(layers), tuple(name for name in parameters if is_of_head(name, model)))
    try:
        rows = [*blocks(model), of_head]
    except UsageError:  # no blocks to tell apart, but the backbone can still be frozen whole
        rows = [Block("backbone", tuple(name for name in parameters if name not in of_head.parameters)), of_head]
    lines = [f"{'block':>5}  {'name':<40} {'parameters':>12}  state"]
    for number, block in enumerate(rows, 1):
        size = sum(parameters[name].numel() for name in block.parameters)
        flags = {parameters[name].requires_grad for name in block.parameters}
        state = "trains in part" if len(flags) > 1 else "trains" if flags.pop() else "frozen"
        lines.append(f"{'head' if block is of_head else number:>5}  {block.name:<40} {size:>12,}  {state}")
    total = sum(parameter.numel() for parameter in parameters.values())
    trainable = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    lines.append(f"trainable: {trainable:,} of {total:,} parameters")
    return "\n".join(lines)
