"""A `Trainer` that leaves a model's flags as they were, and searches hyperparameters for robust accuracy."""

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..errors import UsageError
from ..modeling.adapters import is_adapted
from ..modeling.classifier import undo_mixed_precision, weights_sha256
from ..modeling.sources import ADVISED
from ..run_folder import is_complete
from ..transfer.source import IMAGES, STEPS, accuracy_kept
from .arguments import RobustTrainingArguments
from .comparing import ComparingTrainer
from .gate import check_that_it_will_load
from .reporting import random_state, random_state_kept
from .saving import SavingTrainer
from .scheduling import SchedulingTrainer

logger = logging.get_logger(__name__)
_DIVERGED = "diverged_at_step"  # in the log, which is in every checkpoint


@dataclass(frozen=True)
class Seen:
    """What a teacher is and makes of a few images.

    Args:
        sha256: of its weights.
        clean, robust: the shares of images that it classifies right as they are, and also under PGD.
        images: how many.
        steps: of PGD.
    """

    sha256: str
    clean: float
    robust: float
    images: int
    steps: int


class RunningTrainer(ComparingTrainer, SchedulingTrainer, SavingTrainer):
    """All of `RobustTrainer` that goes around whole trainings."""

    args: RobustTrainingArguments
    _seen: Seen | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, as for `transformers.Trainer`; a training that is interrupted leaves nothing frozen that was not.

        Where the loss or a weight becomes NaN or infinite, training goes back to its last checkpoint, before the first to
        its start, and on from there with half the learning rate, at most ``args.halve_on_divergence`` times. Each time is
        in the log (`halvings`), with it in checkpoints, and so a resumed training keeps the rate. With FSDP and DeepSpeed
        it ends instead.

        Raises:
            UsageError: on a trial, before any work, the model could not be saved and loaded again as what it is.
            FloatingPointError: it still diverged.
        """
        if self.model is not None:  # in a search, a trial's is made later
            self._check_that_it_will_load()
        if self.train_dataset is not None:
            self.tell_of_images(self.train_dataset, "train")
            self.look_at_teacher()
        self._halvings: list[int] = []
        self._start: tuple[dict[str, Any], ...] | None = None
        self.last_checkpoint = None
        started, as_it_was = time.time(), random_state(self.args.device)
        try:
            while True:
                try:
                    trained = super().train(resume_from_checkpoint, *args, **kwargs)
                    self.check_weights()
                    break
                except FloatingPointError as error:
                    self._count_halving(error)
                # Outside, where the error no longer keeps what was prepared for the training that it ended.
                if (good := self._last_good()) is not None:
                    resume_from_checkpoint = str(good)
                as_it_was()
                self.model_wrapped = self.model
                undo_mixed_precision(self.model)
                self._classifiers: tuple[Any, ...] = ()
                gc.collect()
            if self._halvings:
                trained.metrics["train_runtime"] = round(time.time() - started, 4)
            return trained
        finally:
            self._start = None
            self.warm_start.release()

    @property
    def halvings(self) -> list[int]:
        """The steps at which training diverged, went back and halved the learning rate."""
        return [int(entry[_DIVERGED]) for entry in self.state.log_history if _DIVERGED in entry]

    def _count_halving(self, error: FloatingPointError) -> None:
        before = self._halvings or self.halvings
        if len(before) >= self.args.halve_on_divergence or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise error
        self._halvings = [*before, self.state.global_step]
        if self.is_world_process_zero():
            good = self._last_good()
            place = "where this training started" if good is None else good.name
            logger.warning(f"{str(error).partition('. ')[0]}. Going back to {place}, and on with half the learning rate.")

    def _last_good(self) -> Path | None:
        found = self.last_checkpoint
        whole = found is not None and is_complete(found) and not self.args.save_only_model
        return found if whole else None

    def begin_again(self) -> None:
        """Bring back the start of a training that diverged before its first checkpoint, and have its rate halved.

        Called before the first step, when all that is trained and its optimizer are there.
        """
        for step in self._halvings[len(self.halvings) :]:  # those that came after the checkpoint that is gone back to
            self.log({_DIVERGED: step})
        self._halvings = self.halvings
        self.warm_start.scale = 0.5 ** len(self._halvings)
        if not self.args.halve_on_divergence or self.resumed_from or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        trained: tuple[Any, ...] = (self.model, self.optimizer, self.lr_scheduler)
        if self._start is None:
            self._start = tuple(_kept(each.state_dict()) for each in trained)
        else:
            for each, state in zip(trained, self._start, strict=True):
                each.load_state_dict(copy.deepcopy(state))

    def _check_that_it_will_load(self) -> None:
        adapter_alone = is_adapted(cast(Any, self.model)) and not self.args.merges_adapter
        if self.train_dataset is not None and not adapter_alone:
            folder, processes = Path(str(self.args.output_dir)), self.args.world_size
            classifier = self.classifier.merged(needed=True)
            check_that_it_will_load(classifier, self.few_images(2), folder, processes=processes)

    def look_at_source(self) -> None:
        """Warn where an attack on some training images shows that the source is not robust, before it is built upon."""
        threat_model, data = self.args.threat_model, self.train_dataset
        if self.args.transfer is None or not threat_model.eps or data is None:
            return
        images, labels = self.spread_images(IMAGES)
        with random_state_kept(self.args.device):
            clean, robust = accuracy_kept(self.classifier, images, labels, threat_model)
        if robust < clean / 3 and self.is_world_process_zero():
            logger.warning(
                f"The source does not look robust: with the head trained on it, it classifies {clean:.0%} of"
                f" {len(images)} training images correctly, and {robust:.0%} under PGD-{STEPS} at {threat_model.norm}, ε ="
                f" {self.args.eps}. What is not there is not carried over: use a robust source, such as {ADVISED}"
                " (`hf-robust-transfer sources` lists them), a smaller --eps, or --objective pgd."
            )

    def look_at_teacher(self) -> "Seen | None":
        """What the teacher makes of some validation images (training images where there are no others), with a warning
        where it does not look robust; None without a teacher. Looked at once.
        """
        if self._seen is not None or self.teacher is None:
            return self._seen
        single = self.eval_dataset is not None and not isinstance(self.eval_dataset, dict)
        images, labels = self.spread_images(IMAGES, "validation" if single else "train")
        with random_state_kept(self.args.device):
            clean, robust = accuracy_kept(self.teacher, images, labels, self.args.threat_model)
        self._seen = Seen(weights_sha256(self.teacher), clean, robust, len(images), STEPS)
        if self.is_world_process_zero():
            under = f"under PGD-{STEPS} at {self.args.norm}, ε = {self.args.eps}"
            said = f"the teacher classifies {clean:.0%} of {len(images)} images correctly, and {robust:.0%} {under}"
            logger.info(said)
            if robust < clean / 3:
                logger.warning(f"{said}: it does not look robust, and there is little robustness to be learned from it.")
        return self._seen

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


def _kept(state: Any) -> Any:
    """A copy of a state, its tensors in the CPU's memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _kept(value) for key, value in state.items()}
    return [_kept(each) for each in state] if isinstance(state, list) else copy.deepcopy(state)


def _robust_accuracy(metrics: dict[str, float]) -> float:
    try:
        return metrics["eval_robust_accuracy"]
    except KeyError:
        raise UsageError(
            f"a trial's evaluation has no eval_robust_accuracy, only {', '.join(metrics)}: pass compute_objective="
        ) from None
