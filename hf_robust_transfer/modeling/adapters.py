"""Models with adapters of peft, such as LoRA: what is inside of them, and the plain model that they amount to.

Nothing here imports peft before there is such a model, which has imported it.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from ..errors import UsageError, listed
from ..run_folder import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME


def is_adapted(model: nn.Module) -> bool:
    """Whether a model is a ``PeftModel``, as ``peft.get_peft_model`` returns it."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def plain(model: Any) -> Any:
    """The `transformers` model inside a ``PeftModel``, whose layers are adapted in place; any other model as it is."""
    return model.get_base_model() if is_adapted(model) else model


def adapted_layer(module: nn.Module) -> nn.Module | None:
    """The original layer inside what peft puts in its place, an adapter or a copy that trains whole; None for any other."""
    if not hasattr(module, "active_adapters"):  # timm's DLA has a base_layer, too
        return None
    inside = dict(module.named_children())
    return inside.get("base_layer", inside.get("original_module"))


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``model.named_modules()`` as it would be without adapters: an adapted layer's name goes with the original layer.

    Example:
        >>> [name for name, _ in named_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
        ['', '0', '1']
    """
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        while (inside := adapted_layer(module)) is not None:
            module = inside
        if module not in seen:
            seen.add(module)
            yield name, module
            for child, each in module.named_children():
                yield from walk(f"{name}.{child}" if name else child, each)

    return walk("", model)


def merged(model: Any, *, needed: bool = True) -> Any:
    """A copy of a model with its adapters merged into the weights; a model without adapters as it is.

    Args:
        model: a ``PeftModel`` or any other; it is not changed.
        needed: refuse adapters that cannot be merged; otherwise the model is then given back as it is.

    Raises:
        UsageError: some of the adapters cannot be merged.
    """
    if not is_adapted(model):
        return model
    try:
        whole = copy.deepcopy(model).merge_and_unload(safe_merge=True)
        for name, module in list(whole.named_modules()):
            if adapted_layer(module) is not None:  # LNTuning leaves the layers that train whole as they are
                options = {"merge": True, "safe_merge": True, "adapter_names": None}
                whole.set_submodule(name, module.unload_and_optionally_merge_module(**options))
        return whole
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if not needed:
            return model
        reason = " ".join(str(error).split())
        raise UsageError(
            f"the adapters ({method(model)}) cannot be merged into the weights: {reason} Choose other target_modules or"
            " another method; or save the adapter alone, without --merge_adapter and --push_to_hub"
        ) from error


def method(model: Any) -> str:
    """The name that peft has for the method of a model's active adapter, like ``LORA``."""
    kind = model.active_peft_config.peft_type
    return str(getattr(kind, "value", kind))


def whole_layers(model: nn.Module) -> set[nn.Module]:
    """The modules of the layers that train whole and are saved whole with an adapter (``modules_to_save``)."""
    kept = (dict(module.named_children()).get("modules_to_save") for module in model.modules() if adapted_layer(module))
    return {module for each in kept if each is not None for module in each.modules()}


def check_saved_adapter(model: Any, folder: str | Path) -> None:
    """Make sure that a trainer's checkpoint is of such a model: with the same adapter, or without one.

    Args:
        model: that is to go on from it.
        folder: the checkpoint.

    Raises:
        UsageError: it is of another kind of model, which would be left as it is, or has another adapter.
    """
    alone = Path(folder, ADAPTER_CONFIG_NAME).is_file()
    if alone != is_adapted(model):
        raise UsageError(
            f"{folder} is of a model {'with' if alone else 'without'} an adapter of peft, but what is to go on from it"
            f" is one {'without' if alone else 'with'} it"
        )
    if not alone:
        return
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    with safe_open(Path(folder, ADAPTER_WEIGHTS_NAME), "pt") as saved:
        shapes = {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118 - no mapping
    other = sorted(name for name, tensor in own.items() if shapes.get(name) != tuple(tensor.shape))
    other += sorted(set(shapes) - set(own))
    if other:
        raise UsageError(f"{folder} has another adapter: other ranks or layers, as in {listed(other, 3)}")


def not_saved(model: Any) -> list[str]:
    """The names of parameters of a ``PeftModel`` that require a gradient, but are no part of what saves its adapter."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    saved = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.untyped_storage().data_ptr() not in saved
    ]
