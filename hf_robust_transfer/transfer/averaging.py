"""Averages of the weights along a training, and the batch-norm statistics that go with them."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn
from transformers import PreTrainedModel

from ..attacks.eval_mode import untouched
from ..modeling.classifier import PixelClassifier, full_precision
from .freezing import eval_where_frozen

AVERAGES = ("ema", "swa")


class WeightAverage:
    """The average of a model's trained weights over the points of a training at which it is updated.

    The first update takes the weights as they are. Averages are kept in float32, or in the weights' own type if wider.

    Args:
        parameters: the weights, by name; they stay as they are but inside `in_place`.
        kind: ``"ema"``, of which each update makes ``decay`` parts the average and the rest the weights; or ``"swa"``, the
            mean over all updates (Izmailov et al., arXiv 1803.05407).
        decay: of ``"ema"``, in [0, 1).

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0]))
        >>> average = WeightAverage({"weight": weight}, "swa")
        >>> average.update(); weight.data += 2; average.update()
        >>> with average.in_place():
        ...     print(weight.item())
        2.0
        >>> weight.item()
        3.0
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], kind: str, decay: float = 0.995) -> None:
        self._parameters = dict(parameters)
        self._function = get_ema_multi_avg_fn(decay) if kind == "ema" else get_swa_multi_avg_fn()
        self._averaged: dict[str, Tensor] = {}
        self.updates = 0

    def update(self) -> None:
        """Take in the weights as they are now."""
        wide = {
            name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
            for name, parameter in self._parameters.items()
        }
        if self.updates == 0:
            self._averaged = {name: tensor.clone() for name, tensor in wide.items()}
        else:
            self._function(list(self._averaged.values()), list(wide.values()), self.updates)
        self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the model hold the average, as long as there is one, and its own weights again on leaving."""
        own = {name: self._parameters[name].detach().clone() for name in self._averaged}
        self._fill(self._averaged)
        try:
            yield
        finally:
            self._fill(own)

    def keep(self) -> None:
        """Have the model hold the average for good."""
        self._fill(self._averaged)

    def state(self) -> dict[str, Tensor]:
        """The average and the weights, to go on from."""
        own = {f"own.{name}": parameter.detach().clone() for name, parameter in self._parameters.items()}
        averaged = {f"averaged.{name}": tensor for name, tensor in self._averaged.items()}
        return {**own, **averaged, "updates": torch.tensor(self.updates)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`, the weights included."""
        self.updates = int(state["updates"])
        for name, parameter in self._parameters.items():
            if f"averaged.{name}" in state:
                self._averaged[name] = state[f"averaged.{name}"].to(parameter.device, copy=True)
        self._fill({name: state[f"own.{name}"] for name in self._parameters})

    def _fill(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._parameters[name].copy_(value)


def measuring_layers(model: PreTrainedModel, *, batch_norm_eval: bool) -> dict[str, _BatchNorm]:
    """The batch-norm layers whose running statistics change in training, by name.

    Args:
        model: frozen as it trains; the modes of its modules stay as they are.
        batch_norm_eval: whether the backbone's are kept as they are, as for `eval_where_frozen`.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        eval_where_frozen(model, batch_norm=batch_norm_eval)
        return {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        }
    finally:
        for module, mode in modes:
            module.training = mode


def estimate_batch_norm(classifier: PixelClassifier, batches: Iterable[Tensor], layers: Collection[_BatchNorm]) -> None:
    """Measure the running statistics of batch-norm layers anew, as the mean over batches.

    Averaged weights have other activations than any of those that were averaged, so that statistics of these do not fit.
    Unlike `torch.optim.swa_utils.update_bn` it leaves the statistics of frozen layers alone, and dropout off; pixels are
    normalised inside the classifier.

    Args:
        classifier: with the weights that the statistics are for; modes and flags stay as they are.
        batches: images in [0, 1], each (B, C, H, W), on the classifier's device.
        layers: whose statistics they are; others are in eval mode.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> classifier = PixelClassifier(*create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"}))
        >>> first = next(module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d))
        >>> estimate_batch_norm(classifier, [torch.zeros(2, 3, 32, 32)], [first])
        >>> first.num_batches_tracked.item(), first.running_var.abs().max().item()
        (1, 0.0)
    """
    momenta = [(layer, layer.momentum) for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over batches
        with torch.no_grad(), untouched(classifier), full_precision(classifier):
            for layer in layers:
                layer.train()
            for images in batches:
                classifier(images)
    finally:
        for layer, momentum in momenta:
            layer.momentum = momentum
