"""A `Trainer` that leaves a model's flags as they were, and searches hyperparameters for robust accuracy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from transformers.trainer_utils import TrainOutput

from ..errors import UsageError
from ..modeling.adapters import is_adapted
from ..transfer import HeadWarmStart
from .arguments import RobustTrainingArguments
from .gate import check_that_it_will_load
from .loading import LoadingTrainer


class RunningTrainer(LoadingTrainer):
    """All of `RobustTrainer` that goes around whole trainings."""

    args: RobustTrainingArguments

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, as for `transformers.Trainer`; a training that is interrupted leaves nothing frozen that was not.

        Raises:
            UsageError: on a trial, before any work, the model could not be saved and loaded again as what it is.
        """
        if self.model is not None:  # in a search, a trial's is made later
            self._check_that_it_will_load()
        try:
            return super().train(*args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, HeadWarmStart):
                    callback.release()

    def _check_that_it_will_load(self) -> None:
        adapter_alone = is_adapted(cast(Any, self.model)) and not self.args.merges_adapter
        if self.train_dataset is not None and not adapter_alone:
            folder, processes = Path(str(self.args.output_dir)), self.args.world_size
            classifier = self.classifier.merged(needed=True)
            check_that_it_will_load(classifier, self.few_images(2), folder, processes=processes)

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, float]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Search hyperparameters as `transformers.Trainer` does, by default for the highest robust accuracy.

        Args:
            hp_space, n_trials: as for `transformers.Trainer.hyperparameter_search`, as is everything else.
            compute_objective: from the metrics of a trial's evaluation to what is optimised; by default
                ``eval_robust_accuracy``.
            direction: ``"maximize"`` by default; with a ``compute_objective`` of yours, ``"minimize"`` as in the base
                class.

        Raises:
            UsageError: robust accuracy is to be minimised, or is not measured.
        """
        if compute_objective is None:
            if direction not in (None, "maximize"):
                raise UsageError(
                    f"direction={direction!r} would search for the least robust model: the default objective is robust"
                    " accuracy, leave direction out or pass compute_objective="
                )
            if not self.args.eval_attack_steps:
                raise UsageError("--eval_attack_steps 0 measures no robust accuracy to search for: raise it")
            compute_objective, direction = _robust_accuracy, "maximize"
        self._check_that_it_will_load()
        return super().hyperparameter_search(
            hp_space, compute_objective, n_trials, direction or "minimize", *args, **kwargs
        )


def _robust_accuracy(metrics: dict[str, float]) -> float:
    try:
        return metrics["eval_robust_accuracy"]
    except KeyError:
        raise UsageError(
            f"a trial's evaluation has no eval_robust_accuracy, only {', '.join(metrics)}: pass compute_objective="
        ) from None
