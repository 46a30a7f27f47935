"""The layers that map features to logits, whatever the architecture calls them, and how many there are; new ones."""

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UsageError
from .adapters import is_adapted, named_layers, plain

_ONLY_OWN = (
    "head_args {} need an architecture of this package, such as cifar_resnet18 or cifar_wrn: with a head of several layers,"
    " a checkpoint of another one would no longer load with from_pretrained alone"
)
# Of models that were asked before: how many labels they had then, and the names of their head's layers.
_known: WeakKeyDictionary[nn.Module, tuple[int, tuple[str, ...], tuple[str, ...]]] = WeakKeyDictionary()


def classifier_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose logits are a model's, or their mean where there are several, by name.

    One linear layer as a rule, maybe as a 1×1 convolution; several in a distilled DeiT, or where an image is looked at in
    several scales; several linear ones in a row count as one layer. What each is applied to are the penultimate features.

    Args:
        model: a `transformers` image classifier, timm's inside `TimmWrapperForImageClassification` included.

    Raises:
        UsageError: it has none.

    Example:
        >>> from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher
        >>> config = DeiTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> list(classifier_layers(DeiTForImageClassificationWithTeacher(config)))
        ['cls_classifier', 'distillation_classifier']
    """
    return {name: model.get_submodule(name) for name in _layer_names(model)[0]}


def head(model: nn.Module) -> dict[str, nn.Module]:
    """All that is drawn anew for new labels, by name: the `classifier_layers`, and those that have an effect beside them.

    Such another layer, as VOLO has one over all tokens, takes part in the logits in its own way.
    """
    return {name: model.get_submodule(name) for names in _layer_names(model) for name in names}


def head_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of a model's `head`."""
    return {parameter for layer in head(model).values() for parameter in layer.parameters()}


def is_of_head(name: str, model: nn.Module) -> bool:
    """Whether a parameter or buffer of this name belongs to a model's `head`."""
    return any(name.startswith(f"{layer}.") for names in _layer_names(model) for layer in names)


def linear_layers(classifier_layer: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The linear layers of a classifier layer in forward order, 1×1 convolutions among them: one, but in a deep head."""
    return [module for module in classifier_layer.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def feature_sizes(model: nn.Module) -> list[int]:
    """How many features each of the `classifier_layers` is applied to."""
    first = [linear_layers(layer)[0] for layer in classifier_layers(model).values()]
    return [layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels for layer in first]


def logits_of_features(model: nn.Module, features: Tensor) -> Tensor:
    """The mean logits (B, classes) of the `classifier_layers`, each applied to its part of the features (B, D).

    Raises:
        UsageError: the features are not as many as these layers take.
    """
    layers, sizes = classifier_layers(model).values(), feature_sizes(model)
    if features.shape[1] != sum(sizes):
        raise UsageError(f"{type(model).__name__} has {features.shape[1]} features, but its head takes {sum(sizes)}")
    logits = []
    for layer, part in zip(layers, features.split(sizes, dim=1), strict=True):
        is_convolution = isinstance(linear_layers(layer)[0], nn.Conv2d)
        logits.append(layer(part[:, :, None, None] if is_convolution else part).flatten(1))
    return logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)


def replace_head(model: PreTrainedModel, id2label: dict[int, str], head_args: dict[str, Any] | None = None) -> None:
    """Give the model a freshly drawn head for new labels, in place, and note both in its config.

    The model becomes what its architecture is with so many labels; all but the head keeps its weights.

    Args:
        model: an image classifier, or timm's model without a head.
        id2label: the new labels, by index.
        head_args: for a head of several layers, arguments of `hf_robust_transfer.modeling.cifar.mlp_head`, like
            ``{"layers": 2, "norm": True, "dropout": 0.5}``; by default the head is one linear layer. Only this package's
            own architectures take it: the checkpoint of a stock one would no longer load with `from_pretrained` alone.

    Raises:
        UsageError: the model has no classifier layer, cannot have the head that is asked for, or has an adapter of peft.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> model, _ = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> replace_head(model, {0: "red", 1: "green", 2: "blue"}, {"layers": 2})
        >>> classifier_layers(model)["timm_model.fc"]
        Sequential(
          (0): Linear(in_features=512, out_features=512, bias=True)
          (1): ReLU()
          (2): Linear(in_features=512, out_features=3, bias=True)
        )
    """
    if is_adapted(model):
        raise UsageError("the model has an adapter of peft already: replace its head before get_peft_model")
    config = _with_labels(model.config, id2label)
    if config.model_type == "timm_wrapper":
        others = {key: value for key, value in (config.model_args or {}).items() if key != "head_args"}
        config.model_args = {**others, "head_args": head_args} if head_args else others
    elif head_args:
        raise UsageError(_ONLY_OWN.format(head_args))
    with torch.random.fork_rng(devices=()):  # what is drawn here for all of it is not used
        made = _made(type(model), config, head_args)
    kept = {name: value for name, value in model.state_dict().items() if not is_of_head(name, made)}
    module: nn.Module = made
    module.to(device=model.device, dtype=model.dtype).train(model.training)
    made.load_state_dict(kept, strict=False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(is_of_head(name, made) or flags.get(name, True))
    for layer in head(made).values():
        _draw(layer)
    for name, child in made.named_children():
        setattr(model, name, child)
    model.config, model.num_labels = config, len(id2label)  # type: ignore[assignment]


def _made(kind: type[PreTrainedModel], config: Any, head_args: dict[str, Any] | None) -> PreTrainedModel:
    try:
        made: PreTrainedModel = kind(config)
    except TypeError as error:
        if not head_args:
            raise
        if "'head_args'" in str(error):
            raise UsageError(_ONLY_OWN.format(head_args)) from None
        raise UsageError(f"head_args {head_args} are refused: {error}") from None
    return made


def _draw(layer: nn.Module) -> None:
    for module in layer.modules():
        if isinstance(reset := getattr(module, "reset_parameters", None), type(layer.forward)):
            reset()
    last = linear_layers(layer)[-1]
    nn.init.normal_(last.weight, std=0.02)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def _with_labels(config: Any, id2label: dict[int, str]) -> Any:
    config = copy.deepcopy(config)
    config.id2label = dict(id2label)
    config.label2id = {label: index for index, label in id2label.items()}
    config.num_labels = len(id2label)  # of some architectures a number of its own
    if config.model_type == "timm_wrapper":
        config.label_names = list(id2label.values())
        vars(config).pop("label_descriptions", None)  # timm's own, of the labels before
    return config


def _layer_names(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the classifier layers, and of what else depends on the number of labels."""
    inside = plain(model)
    labels = getattr(inside, "num_labels", None) or 0
    if inside not in _known or _known[inside][0] != labels:
        _known[inside] = (labels, *_found(inside, labels))
    _, layers, others = _known[inside]
    if inside is model:
        return layers, others
    place = next(name for name, module in model.named_modules() if module is inside)
    return tuple(f"{place}.{name}" for name in layers), tuple(f"{place}.{name}" for name in others)


def _found(model: nn.Module, labels: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    timm_model: Any = getattr(model, "timm_model", None)
    given = [] if timm_model is None else _flat(timm_model.get_classifier())
    layers = tuple(name for name, module in model.named_modules() if any(module is layer for layer in given))
    candidates = [
        name
        for name, module in named_layers(model)
        if (isinstance(module, nn.Linear) and module.out_features == labels)
        or (isinstance(module, nn.Conv2d) and module.out_channels == labels and module.kernel_size == (1, 1))
    ]
    candidates = [name for name in candidates if not any(f"{name}.".startswith(f"{layer}.") for layer in layers)]
    if candidates and (layers or len(candidates) > 1):
        dependent = _dependent_on_labels(model)  # the others have that many outputs by chance
        candidates = [name for name in candidates if name in dependent]
    if timm_model is not None:
        if not layers:
            raise UsageError("the timm model has no classifier layer: give it labels with load_model(…, id2label=…)")
        return layers, tuple(candidates)
    if not candidates:
        raise UsageError(
            f"{type(model).__name__} has no linear layer whose outputs are its {labels} labels, so that there is nothing to"
            " retrain or to take features from"
        )
    return tuple(candidates), ()


def _flat(given: Any) -> list[nn.Module]:
    """The layers with parameters that timm's ``get_classifier()`` gives: one, a tuple or a list of them."""
    if isinstance(given, tuple | list | nn.ModuleList):
        return [layer for part in given for layer in _flat(part)]
    return [given] if list(given.parameters()) else []


def _dependent_on_labels(model: Any) -> set[str]:
    """The names of modules that have parameters of another shape in the same model with one label more."""
    labels = model.num_labels
    config = _with_labels(model.config, {index: str(index) for index in range(labels + 1)})
    with torch.device("meta"):
        other = _shapes(type(model)(config))
    return {layer for (layer, name), shape in _shapes(model).items() if other.get((layer, name)) != shape}


def _shapes(model: nn.Module) -> dict[tuple[str, str], torch.Size]:
    """The shapes of a model's parameters, by their layer's name and their own."""
    return {
        (layer, name): parameter.shape
        for layer, module in named_layers(model)
        for name, parameter in module.named_parameters(recurse=False)
    }
