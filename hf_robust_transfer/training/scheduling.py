"""A `Trainer` whose head may train before all else, with a schedule of its own."""

import math
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from ..transfer import HeadWarmStart, Phases
from ..transfer.phases import head_steps, shape_of
from .arguments import RobustTrainingArguments


class SchedulingTrainer(Trainer):
    """All of `RobustTrainer` that decides how many steps there are, and at which rate."""

    args: RobustTrainingArguments
    warm_start: HeadWarmStart
    steps_per_epoch: int

    def set_initial_training_values(
        self, args: TrainingArguments, dataloader: DataLoader[Any]
    ) -> tuple[int, int, int, int, int, int | None, int]:
        """The lengths of a training, as of `transformers.Trainer`; the epochs of the head alone come before the others."""
        epochs, per_epoch, examples, samples, size, batches, steps = super().set_initial_training_values(args, dataloader)
        head = head_steps(args, per_epoch)
        if head:
            steps += head
            epochs, samples = math.ceil(steps / per_epoch), samples + head * size
        self.steps_per_epoch = per_epoch
        self.warm_start.phases = Phases.of(args, steps, per_epoch)
        return epochs, per_epoch, examples, samples, size, batches, steps

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the learning rate; with ``warm_start_epochs``, one for the head and one for what follows."""
        own = self.lr_scheduler is None
        super().create_scheduler(num_training_steps, optimizer)
        phases = self.warm_start.phases
        if own and phases.separate:
            rate = phases.schedule(lambda steps: shape_of(self.args, steps))
            self.lr_scheduler: Any = LambdaLR(self.lr_scheduler.optimizer, rate)
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, as `transformers.Trainer` does, the learning rate that was in fact used."""
        if "learning_rate" in logs:
            logs["learning_rate"] *= self.warm_start.factor
        super().log(logs, start_time)
