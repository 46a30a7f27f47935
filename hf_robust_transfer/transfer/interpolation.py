"""The straight way between the weights of two models: WiSE-FT (Wortsman et al., CVPR 2022), robust soups (2302.10164)."""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from ..errors import UsageError, listed
from ..modeling.classifier import PixelClassifier


def interpolated(one: PreTrainedModel, other: PreTrainedModel, alpha: float) -> PreTrainedModel:
    """A new model whose weights are (1 − α) · those of one model + α · those of another.

    It is of use where both were trained from the same weights, the head included; accuracies then change smoothly along the
    way, and between the ends both the clean and the robust one may be higher than the mean of theirs. Buffers are
    interpolated, too, which for batch-norm statistics is right only where both models have the same: `differing_statistics`
    tells where `estimate_batch_norm` has to measure them anew.

    Args:
        one: at α = 0, whose configuration the new model has.
        other: at α = 1, of the same architecture.
        alpha: in [0, 1]; at its ends the weights are those of the two, bit for bit.

    Raises:
        UsageError: the two have other weights, or weights of other shapes.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> one, _ = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> other, _ = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> middle = interpolated(one, other, 0.5)
        >>> bias = "timm_model.fc.weight"
        >>> expected = (one.state_dict()[bias] + other.state_dict()[bias]) / 2
        >>> torch.allclose(middle.state_dict()[bias], expected)
        True
    """
    ends = one.state_dict(), other.state_dict()
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in ends]
    if shapes[0] != shapes[1]:
        different = sorted(
            name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        raise UsageError(f"the two models have other weights ({listed(different, 3)}): take two of one architecture")
    model = copy.deepcopy(one)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            first, last = (state[name].to(tensor.device) for state in ends)
            if alpha in (0, 1) or not tensor.is_floating_point():
                tensor.copy_(last if alpha == 1 else first)
            else:
                tensor.copy_(torch.lerp(first.double(), last.double(), alpha))
    return model


def differing_statistics(one: nn.Module, other: nn.Module) -> list[str]:
    """The names of the batch-norm layers whose running statistics are not the same in two models of one architecture."""
    others = dict(other.named_modules())
    return [
        name
        for name, layer in one.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and not _same_statistics(layer, others[name])
    ]


def _same_statistics(layer: nn.Module, other: nn.Module) -> bool:
    pairs = zip(layer.named_buffers(), other.named_buffers(), strict=True)
    return all(torch.equal(one, two.to(one.device)) for (name, one), (_, two) in pairs if name != "num_batches_tracked")


def check_that_they_match(one: PixelClassifier, other: PixelClassifier) -> None:
    """Make sure that two classifiers are of one kind: architecture, labels in one order, pixels normalised alike.

    Raises:
        UsageError: they are not; the message says in what.
    """
    kinds = [_kind(each.model) for each in (one, other)]
    if kinds[0] != kinds[1]:
        raise UsageError(f"the first model is a {kinds[0]}, the second a {kinds[1]}: take two of one architecture")
    if one.labels != other.labels:
        raise UsageError(
            f"the first model has the labels {listed(one.labels, 5)}, the second {listed(other.labels, 5)}: take two whose"
            " heads have the same labels in the same order"
        )
    same = torch.equal(one.mean, other.mean.to(one.mean.device)) and torch.equal(one.std, other.std.to(one.std.device))
    if not same or one.flipped != other.flipped:
        raise UsageError("the two models normalise pixels differently: take two with the same image processor")
    sizes = [_size(each) for each in (one, other)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"the first model takes images of {sizes[0]}, the second of {sizes[1]}: take two of one size")


def _kind(model: PreTrainedModel) -> str:
    config = model.config
    return str(getattr(config, "architecture", None) or type(model).__name__).partition(".")[0]


def _size(classifier: PixelClassifier) -> object:
    processor = classifier.processor
    given = getattr(processor, "data_config", None)
    return (
        tuple(given["input_size"]) if given else getattr(processor, "crop_size", None) or getattr(processor, "size", None)
    )
