"""The phases of a training: the head alone, a ramp of the learning rate, the rest; and the rate in each of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from ..errors import UsageError

Shape = Callable[[int], float]


def steps_of(value: float, steps: int) -> float:
    """A number of steps that is given as such or, below 1, as a share of all.

    Example:
        >>> steps_of(30, 200), steps_of(0.25, 200)
        (30, 50.0)
    """
    return value * steps if value < 1 else value


@dataclass(frozen=True)
class Phases:
    """Which phase a step belongs to, by its number alone, so that a run resumed in any phase goes on as it would have.

    Args:
        head: so many first steps train the head alone.
        ramp: over so many steps after them the rate grows linearly from zero, so that the first gradients through the head
            do not throw the features far from where they were.
        total: all steps.
        head_rate: the rate of the head while it trains alone, as a multiple of ``args.learning_rate``.
        separate: the head's steps come before the others and have a schedule of their own (``args.warm_start_epochs``);
            otherwise they are the first part of all (``args.warm_start_steps``), and one schedule goes over both.

    Example:
        >>> phases = Phases(head=10, ramp=4, total=30, head_rate=5.0)
        >>> phases.factor(3), phases.factor(11), phases.factor(20)
        (5.0, 0.4, 1.0)
    """

    head: float
    ramp: float
    total: int
    head_rate: float = 1.0
    separate: bool = False

    @classmethod
    def of(cls, args: Any, total: int, steps_per_epoch: int) -> "Phases":
        """The phases of a training with these `RobustTrainingArguments`, of so many steps in all."""
        separate = args.warm_start_epochs > 0
        head = head_steps(args, steps_per_epoch) if separate else steps_of(args.warm_start_steps, total)
        ramp = steps_of(args.unfreeze_warmup_steps, total - int(head) if separate else total)
        given = args.warm_start_learning_rate
        return cls(head, ramp, total, 1.0 if given is None else given / args.learning_rate, separate)

    def factor(self, step: int) -> float:
        """What the phase of a step makes of the scheduled rate."""
        if step < self.head:
            return self.head_rate
        if step < self.head + self.ramp:
            return (step - self.head + 1) / (self.ramp + 1)
        return 1.0

    def schedule(self, shape: Callable[[int], Shape]) -> Shape:
        """The rate at each step, as a multiple of ``args.learning_rate``, where the head has a schedule of its own.

        Args:
            shape: from a number of steps to a schedule over them, as multiples of the highest rate.
        """
        first, then = shape(math.ceil(self.head)), shape(max(1, math.ceil(self.total - self.head - self.ramp)))

        def rate(step: int) -> float:
            scheduled = first(step) if step < self.head else then(max(0, math.ceil(step - self.head - self.ramp)))
            return self.factor(step) * scheduled

        return rate


def eps_factor(args: Any, phases: Phases, step: int) -> float:
    """How much of ``args.eps`` a step of training has: none, then a part that grows linearly, then all.

    Example:
        >>> from types import SimpleNamespace
        >>> hinge = SimpleNamespace(eps_delay_steps=0.25, eps_warmup_steps=0.5)
        >>> [eps_factor(hinge, Phases(0, 0, 8), step) for step in range(8)]
        [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    before = int(phases.head) if phases.separate else 0
    done, steps = step + 1 - before, phases.total - before
    delay, ramp = steps_of(args.eps_delay_steps, steps), steps_of(args.eps_warmup_steps, steps)
    if not delay and not ramp:
        return 1.0
    return 0.0 if done <= delay else min(1.0, (done - delay) / max(ramp, 1))


def head_steps(args: Any, steps_per_epoch: int) -> int:
    """How many steps ``args.warm_start_epochs`` are."""
    return math.ceil(args.warm_start_epochs * steps_per_epoch)


def shape_of(args: Any, steps: int) -> Shape:
    """The schedule that ``args.lr_scheduler_type`` names, over so many steps, as multiples of the highest rate.

    Raises:
        UsageError: it does not follow from the step alone, as one that waits for evaluations.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=0,
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    if not isinstance(scheduler, LambdaLR):
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise UsageError(
            f"--lr_scheduler_type {name} is no schedule over steps, which --warm_start_epochs needs one of for the head and"
            " one for the rest: use cosine, linear or constant, or give --warm_start_steps"
        )
    shape: Shape = scheduler.lr_lambdas[0]
    return shape
