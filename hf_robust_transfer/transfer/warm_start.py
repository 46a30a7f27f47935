"""Head warm start: train the new head alone for the first steps, then all that is not frozen."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..attacks.eval_mode import untouched
from ..modeling.classifier import PixelClassifier
from ..modeling.heads import head_parameters


def steps_of(value: float, max_steps: int) -> float:
    """A number of steps that is given as such or, below 1, as a share of all.

    Example:
        >>> steps_of(30, 200), steps_of(0.25, 200)
        (30, 50.0)
    """
    return value * max_steps if value < 1 else value


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
    """Hold the backbone still for the first ``args.warm_start_steps`` steps (Shafahi et al., ICLR 2020, section 4).

    The optimizer and the distributed wrapper are built while everything that will ever train requires a gradient, so both
    know the backbone; this callback then takes its parameters out of the graph until the warm start is over. Which phase
    a step belongs to follows from the step number alone, so that a run resumed in either phase goes on as it would have.

    In the warm start the scheduled learning rate is scaled from ``args.learning_rate`` to
    ``args.warm_start_learning_rate``, if there is one: a head that starts from nothing can bear more than the backbone.
    Over the ``args.unfreeze_warmup_steps`` steps after it the rate grows linearly from zero to the scheduled one, so that
    the first gradients through the head do not throw the features far from where they were.
    """

    def __init__(self) -> None:
        self._held: list[nn.Parameter] = []

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
        warm_steps = steps_of(args.warm_start_steps, state.max_steps)
        ramp_steps = steps_of(args.unfreeze_warmup_steps, state.max_steps)
        warm = state.global_step < warm_steps
        self._hold(warm)
        factor = 1.0
        if warm and args.warm_start_learning_rate is not None:
            factor = args.warm_start_learning_rate / args.learning_rate
        elif not warm and state.global_step < warm_steps + ramp_steps:
            factor = (state.global_step - warm_steps + 1) / (ramp_steps + 1)
        if factor != 1:
            groups, scheduled_rates = kwargs["optimizer"].param_groups, kwargs["lr_scheduler"].get_last_lr()
            for group, scheduled in zip(groups, scheduled_rates, strict=True):
                group["lr"] = scheduled * factor

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
