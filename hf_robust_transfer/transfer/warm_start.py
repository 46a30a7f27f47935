"""Head warm start: train the new head alone for the first steps, then all that is not frozen."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..modeling.classifier import classifier_layer


class HeadWarmStart(TrainerCallback):
    """Hold the backbone still for the first ``warm_start_steps`` optimizer steps (Shafahi et al., ICLR 2020, section 4).

    The optimizer and the distributed wrapper are built while everything that will ever train requires a gradient, so both
    know the backbone; this callback then takes its parameters out of the graph until the warm start is over. Which phase
    a step belongs to follows from the step number alone, so that a run resumed in either phase goes on as it would have.

    Args:
        warm_start_steps: optimizer steps with the head alone; below 1, a share of all steps.
    """

    def __init__(self, warm_start_steps: float) -> None:
        self.warm_start_steps = warm_start_steps
        self._held: list[nn.Parameter] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Note which parameters of the backbone are to train after the warm start."""
        assert model is not None
        _, head = classifier_layer(model)
        of_head = set(head.parameters())
        self._held = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in of_head]

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hold or release the backbone, as the number of the step tells."""
        share = self.warm_start_steps < 1
        steps = round(self.warm_start_steps * state.max_steps) if share else int(self.warm_start_steps)
        self._release(state.global_step >= steps)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the model with the flags it had."""
        self._release(True)

    def _release(self, trains: bool) -> None:
        for parameter in self._held:
            parameter.requires_grad_(trains)
