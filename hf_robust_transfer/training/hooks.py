"""Functions that a `Trainer` calls on its way."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class Hooks(TrainerCallback):
    """Call functions in each training.

    Args:
        begin: before the first step, when all that is trained is there.
        step: after each step of the optimizer, before an evaluation and a checkpoint.
        end: when training is over.
    """

    def __init__(self, *, begin: Callable[[], None], step: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin, self._step, self._end = begin, step, end

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Call ``begin``."""
        self._begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Call ``step``."""
        self._step()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Call ``end``."""
        self._end()
