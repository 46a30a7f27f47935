"""Head warm start: train the new head alone for the first steps, then all that is not frozen."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..attacks.eval_mode import untouched
from ..modeling.classifier import PixelClassifier
from ..modeling.heads import head_parameters
from .phases import Phases


def head_learning_rate(classifier: PixelClassifier, images: Tensor) -> float:
    """A learning rate for a new linear head, to train with SGD and momentum 0.9: 10 / (1 + mean ‖z‖²).

    The loss of a softmax regression on features z curves by at most λ/2, λ the largest eigenvalue of E[z zᵀ] with a
    constant feature for the bias, and SGD with momentum β is stable for rates below 2 (1 + β) / curvature, here 7.6 / λ.
    The trace, 1 + E‖z‖², is cheap to measure, and λ is some part of it: where it is at most three quarters the rate is
    stable, and where features are small a head learns faster for it.

    Args:
        classifier: the model, in any mode; it runs in eval mode.
        images: some training images in [0, 1], (B, C, H, W).

    Returns:
        The rate, rounded to two digits, so that it comes out the same wherever a run goes on.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> classifier = PixelClassifier(*create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"}))
        >>> head_learning_rate(classifier, torch.zeros(2, 3, 32, 32))  # no features but the bias
        10.0
    """
    with torch.no_grad(), untouched(classifier):
        features = classifier.outputs(images).features.double()
    return float(f"{10 / (1 + features.square().sum(1).mean().item()):.2g}")


class HeadWarmStart(TrainerCallback):
    """Hold the backbone still while the head trains alone (Shafahi et al., ICLR 2020, section 4), and set the rate.

    The optimizer and the distributed wrapper are built while everything that will ever train requires a gradient, so both
    know the backbone; this callback then takes its parameters out of the graph until the warm start is over.

    The scheduled rate is multiplied by what the phase makes of it, as `Phases` says, but where the schedule does so itself:
    a head that starts from nothing can bear more than the backbone.

    Attributes:
        phases: of the training that begins; to be set before its first step.
        scale: by which all rates are multiplied, too.
        factor: what the scheduled rate was multiplied by in the last step.
    """

    def __init__(self) -> None:
        self._held: list[nn.Parameter] = []
        self.phases, self.scale, self.factor = Phases(0, 0, 0), 1.0, 1.0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Note which parameters of the backbone are to train after the warm start."""
        self.release()  # what an interrupted run may have left
        of_head = head_parameters(kwargs["model"])
        self._held = [
            parameter for parameter in kwargs["model"].parameters() if parameter.requires_grad and parameter not in of_head
        ]

    def on_step_begin(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Hold or release the backbone and set the learning rate, as the number of the step tells."""
        self._hold(state.global_step < self.phases.head)
        self.factor = self.scale * (1.0 if self.phases.separate else self.phases.factor(state.global_step))
        if self.factor != 1:
            groups, scheduled_rates = kwargs["optimizer"].param_groups, kwargs["lr_scheduler"].get_last_lr()
            for group, scheduled in zip(groups, scheduled_rates, strict=True):
                group["lr"] = scheduled * self.factor

    def on_train_end(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Leave the model with the flags it had."""
        self.release()

    def release(self) -> None:
        """Let everything train that this holds still, as after the warm start."""
        self._hold(False)

    def _hold(self, still: bool) -> None:
        for parameter in self._held:
            parameter.requires_grad_(not still)
