"""A `Trainer` that evaluates and saves the average of its weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from ..errors import UsageError
from ..modeling.classifier import PixelClassifier
from ..run_folder import AVERAGE_NAME
from ..transfer import HeadWarmStart
from ..transfer.averaging import WeightAverage, estimate_batch_norm, measuring_layers
from ..transfer.phases import steps_of
from .arguments import RobustTrainingArguments


class AveragingTrainer(Trainer):
    """All of `RobustTrainer` that knows of averaged weights.

    Evaluations, checkpoints and what is left in the end have the average; training goes on from the weights themselves,
    which are in a file of their own in checkpoints. Which steps count follows from their numbers alone, and every process
    measures batch-norm statistics over all images, so that all of them have the same average.
    """

    args: RobustTrainingArguments
    model: PreTrainedModel
    warm_start: HeadWarmStart
    steps_per_epoch: int
    pixel_batches: Callable[[], Iterator[Tensor]]
    average: WeightAverage | None = None

    def check_averaging(self) -> None:
        """Refuse to average weights that no process has whole."""
        if self.args.averaging != "none" and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise UsageError("--averaging needs the whole model in each process, which FSDP and DeepSpeed shard: drop one")

    def begin_average(self, checkpoint: Path | None) -> None:
        """Average nothing yet or, where a checkpoint has an average, go on from it and from the weights beside it."""
        self.average, self._measured = None, (-1, dict[str, Tensor]())
        if self.args.averaging == "none":
            return
        trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.average = WeightAverage(trained, self.args.averaging, self.args.decay)
        if checkpoint is not None and (file := checkpoint / AVERAGE_NAME).is_file():
            state = send_to_device(load_file(file), self.args.device)
            self.average.load(state)
            _fill(self.model, {name.removeprefix("buffer."): state[name] for name in state if name.startswith("buffer.")})

    def update_average(self) -> None:
        """Take in the weights, where a step that ended counts: each for ``ema``, the last of each epoch for ``swa``."""
        if self.average is None:
            return
        step, phases = self.state.global_step, self.warm_start.phases
        before = int(phases.head) if phases.separate else 0
        begun = step > before + steps_of(self.args.averaging_from, phases.total - before)
        at_end = step % self.steps_per_epoch == 0 or step == phases.total
        if begun and (self.args.averaging == "ema" or at_end):
            self.average.update()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the model hold its average, while there is one in training, with batch-norm statistics that fit it."""
        if self.average is None or not self.average.updates:
            yield
            return
        with self.average.in_place():
            own = {name: value.clone() for name, value in self._statistics().items()}
            self._measure()
            try:
                yield
            finally:
                _fill(self.model, own)

    def keep_average(self) -> None:
        """Have the model hold its average for good, when training ends; where the best of all was loaded, that stays."""
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        if self.average is not None and self.average.updates and not best:
            self.average.keep()
            self._measure()
        self.average = None

    def save_average(self, folder: Path) -> None:
        """Save what training goes on from, beside the average that a checkpoint has for a model."""
        if self.average is not None and self.average.updates and self.args.should_save and not self.args.save_only_model:
            folder.mkdir(parents=True, exist_ok=True)
            buffers = {f"buffer.{name}": value for name, value in self._statistics().items()}
            state = {name: value.contiguous().cpu() for name, value in {**self.average.state(), **buffers}.items()}
            save_file(state, folder / AVERAGE_NAME)

    def _statistics(self) -> dict[str, Tensor]:
        layers = measuring_layers(self.model, batch_norm_eval=self.args.keeps_batch_norm_eval)
        return {f"{place}.{name}": value for place, layer in layers.items() for name, value in layer.named_buffers()}

    def _measure(self) -> None:
        """Give the model, with the average in it, batch-norm statistics that fit; they are measured once a step."""
        layers = measuring_layers(self.model, batch_norm_eval=self.args.keeps_batch_norm_eval)
        if not layers:
            return
        if self._measured[0] != self.state.global_step:
            classifier = PixelClassifier(self.model, cast(Any, self.processing_class))
            estimate_batch_norm(classifier, self.pixel_batches(), layers.values())
            self._measured = (self.state.global_step, {name: each.clone() for name, each in self._statistics().items()})
        _fill(self.model, self._measured[1])


def _fill(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    own = dict(model.named_buffers())
    with torch.no_grad():
        for name, value in buffers.items():
            own[name].copy_(value)
