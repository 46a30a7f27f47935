"""The trainer: a thin composition of objectives, attacks and transfer on top of `transformers.Trainer`."""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel

from ..data import as_pixels, augment, collate
from ..errors import UsageError
from ..functions import choose_function, registered
from ..modeling.classifier import PixelClassifier
from ..modeling.heads import head_parameters
from ..modeling.processors import pixel_statistics
from ..objectives import OBJECTIVES, Objective, TrainingStep
from ..randomness import fold_in
from ..threat_model import ThreatModel
from ..transfer import DISTANCES, HeadWarmStart, eval_where_frozen
from ..transfer.phases import eps_factor
from ..transfer.source import SourceCheck
from .arguments import RobustTrainingArguments
from .comparing import AUGMENTATION, smallest
from .evaluating import EvaluatingTrainer
from .hooks import Hooks
from .preparing import leaves_no_folder, prepare
from .reporting import LossTerms, random_state_kept, robustness_metrics
from .running import RunningTrainer

# The purposes that randomness is drawn for, as parts of its address; others are in evaluating.py and loading.py.
_ATTACK = 0


class RobustTrainer(RunningTrainer, EvaluatingTrainer):
    """Train an image classifier robustly, or carry a robust source's robustness over to a new task.

    Everything of `transformers.Trainer` works as before; ``args`` choose the objective, freezing, warm start and LwF.
    Data sets are what `hf_robust_transfer.data.as_pixel_dataset` takes: a `datasets.Dataset` or `DatasetDict`, an
    `ImageFolder`, rows, or ``{"pixel_values": (C, H, W), "labels": int}`` with pixels in [0, 1] or uint8; normalisation
    happens inside. `evaluate` returns ``eval_accuracy``, ``eval_robust_accuracy``, ``eval_loss`` and ``eval_robust_loss``
    under PGD with ``args.eval_attack_steps`` steps, crafted in the precision of training and judged in float32. Features
    that cannot change are computed once for a data set with a ``fingerprint``: its items are the same each time.

    Args:
        model: a `transformers` image classifier, timm's inside `TimmWrapperForImageClassification` included; or a
            ``PeftModel`` of one, of which what peft lets train is trained.
        args: the training arguments.
        processing_class: the model's image processor; saved with the model.
        objective: a function in place of the one that ``args.objective`` names, as `hf_robust_transfer.objectives` says.
        teacher: with an objective that learns from a teacher's logits, that teacher: any classifier that knows the model's
            labels by name. Otherwise, with LwF, the frozen robust source; by default a copy of the model as it is given.
        compute_metrics: more metrics, given the clean logits and the labels.
        kwargs: all further arguments of `transformers.Trainer`; ``image_column_name``, ``label_column_name``.

    Raises:
        UsageError: before any training, when the pieces do not go together; the message says what to change.
        FloatingPointError: a loss term became NaN or infinite, once more than ``args.halve_on_divergence`` allows; the
            last checkpoint stays as it was.

    Example:
        >>> from hf_robust_transfer.modeling import create_model
        >>> model, processor = create_model("cifar_resnet18", id2label={0: "cat", 1: "dog"})
        >>> data = [{"pixel_values": torch.rand(3, 32, 32), "labels": label} for label in (0, 1)]
        >>> args = RobustTrainingArguments("outputs/example", objective="pgd", eps="8/255", report_to="none")
        >>> trainer = RobustTrainer(model, args, processing_class=processor, train_dataset=data, eval_dataset=data)
    """

    args: RobustTrainingArguments
    model: PreTrainedModel
    processing_class: BaseImageProcessor

    @leaves_no_folder
    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: RobustTrainingArguments | None = None,
        *,
        processing_class: BaseImageProcessor | None = None,
        objective: Objective | None = None,
        teacher: PixelClassifier | None = None,
        compute_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        args = RobustTrainingArguments() if args is None else args
        if args.n_gpu > 1:
            raise UsageError("several GPUs need a process each: start with `accelerate launch --multi_gpu`")
        if kwargs.get("compute_loss_func") is not None:
            raise UsageError("compute_loss_func has no place here: pass a function as objective=")
        if objective is not None:
            args.objective = registered(objective, OBJECTIVES, "--objective")
            args.check()
        pixel_statistics(processing_class)  # refuses what is none
        self.args, self.given_teacher = args, teacher
        self._choose_functions()
        self.warm_start = HeadWarmStart()
        if model is not None:
            prepare(model, args)
        self.carried: dict[str, Tensor] = {}
        self._restart_terms()
        self._classifiers: tuple[Any, ...] = ()
        self._backbone: list[nn.Parameter] = []
        kwargs.setdefault("data_collator", collate)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            compute_metrics=partial(robustness_metrics, more=compute_metrics),
            **kwargs,
        )
        self.check_averaging()
        self.choose_references()
        self.try_to_merge()
        self.choose_head_learning_rate()
        self.add_callback(self.warm_start)
        self.add_callback(SourceCheck(self.warm_start, self.look_at_source))
        self.add_callback(Hooks(begin=self._begin, step=self.update_average, end=self.keep_average))
        self.label_names = ["labels"]
        # Have the base class count a step's samples over accumulation and processes, and leave the scaling to us.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    # ---- model and data ----

    def _choose_functions(self) -> None:
        self.training_objective = choose_function(self.args.objective, OBJECTIVES, "--objective")
        self.distance = choose_function(self.args.lwf_distance, DISTANCES, "--lwf_distance")

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """Build a model, frozen as asked."""
        model: Any = super().call_model_init(trial)
        prepare(model, self.args)
        return cast(PreTrainedModel, model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training images; before, in a hyperparameter search, have the trial's options decide what is frozen."""
        if self.hp_search_backend is not None:  # a trial's options come after the model, and this is asked for first
            self.args.check()
            self._choose_functions()
            self.choose_references()
            prepare(self.model, self.args)
        return super().get_train_dataloader()

    # ---- training ----

    def _begin(self) -> None:
        """Start from what was saved, and from nothing else of an earlier run; called within the training's time."""
        self._restart_terms()
        self.begin_again()
        self.load_carried(self.resumed_from)
        self.find_known_features()

    def _restart_terms(self) -> None:
        self._terms, self._micro_batch = LossTerms(late=self.args.device.type != "cpu"), 0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass on a micro-batch."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batch = 0 if self.accelerator.sync_gradients else self._micro_batch + 1
        return loss

    def check_weights(self) -> None:
        """Make sure that the weights, and the losses that led to them, are numbers."""
        self._terms.check()
        super().check_weights()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's terms plus the LwF term, as this micro-batch's share of the mean over the whole step."""
        step = self._step(model, inputs)
        if step.features is None:  # else the backbone takes no part
            eval_where_frozen(self.model, batch_norm=self.args.keeps_batch_norm_eval)
        output = self.training_objective(step, **self.args.objective_kwargs)
        terms = dict(output.terms)
        if self.args.lwf_weight > 0:
            clean = output.clean if output.clean is not None else step.clean()
            terms["lwf"] = self.args.lwf_weight * step.distance_to_source(clean.features).mean()
        loss = torch.stack(list(terms.values())).sum()
        share: float | Tensor = 1.0
        if num_items_in_batch is not None:
            share = len(step.labels) / torch.as_tensor(num_items_in_batch, dtype=loss.dtype)
            if self.args.average_tokens_across_devices:
                share = share * self.accelerator.num_processes  # DDP averages over processes what we want summed
        self._terms.add(terms, output.metrics, share, self.state.global_step, self.accelerator)
        return (loss * share, output) if return_outputs else loss * share

    def _step(self, model: nn.Module, inputs: dict[str, Any]) -> TrainingStep:
        args, epoch, indices = self.args, int(self.state.epoch or 0), inputs["indices"]
        images = indices  # where features are all that is looked at, there are no pixels
        if "pixel_values" in inputs:
            images = self._augmented(inputs, epoch)
        student, attacked = self._views(model)
        features = None
        if self.student_features is not None and not any(weight.requires_grad for weight in self._backbone):
            features = self.known(self.student_features, indices)
        return TrainingStep(
            student=student,
            attacked=attacked,
            images=images,
            labels=inputs["labels"],
            indices=indices,
            threat_model=self._training_threat_model(),
            attack_steps=args.attack_steps,
            attack_step_size=args.attack_step,
            seed=fold_in(args.seed, _ATTACK, epoch),
            carried=self.carried,
            features=features,
            slot=self._micro_batch,
            epoch=epoch,
            distance_to_source=self.distances_from(images, indices),
            progress=(self.state.global_step + 1) / max(1, self.state.max_steps),
            summed=partial(self.accelerator.reduce, reduction="sum"),
            smallest=partial(smallest, self.accelerator),
            **self.taught(images, indices),
        )

    def _augmented(self, inputs: dict[str, Any], epoch: int) -> Tensor:
        images, seed = as_pixels(inputs["pixel_values"]), fold_in(self.args.seed, AUGMENTATION, epoch)
        crop, flip = self.args.random_crop, self.args.random_flip
        return augment(images, seed=seed, indices=inputs["indices"], crop_padding=crop, flip=flip)

    def pixel_batches(self) -> Iterator[Tensor]:
        """All training images in the order of their data set, augmented, in batches of all processes together."""
        size = self.args.per_device_train_batch_size * self.args.world_size
        with random_state_kept(self.args.device):
            for batch in self.batches_in_order(size):
                if len(batch["indices"]) > 1:  # of one image there may be no statistics
                    yield self._augmented(send_to_device(batch, self.args.device), epoch=0)

    def _views(self, model: nn.Module) -> tuple[PixelClassifier, PixelClassifier]:
        """The classifier through whatever the model is wrapped in, and as attacks see it: compiled at most."""
        if not self._classifiers or self._classifiers[:2] != (model, self.model):
            student = PixelClassifier(self.model, self.processing_class, forward_through=model)
            compiled = model if getattr(model, "_orig_mod", None) is self.model else None
            attacked = PixelClassifier(self.model, self.processing_class, forward_through=compiled)
            self._classifiers = (model, self.model, student, attacked)
            head = head_parameters(self.model)
            self._backbone = [parameter for parameter in self.model.parameters() if parameter not in head]
        return self._classifiers[2:]

    def _training_threat_model(self) -> ThreatModel:
        return self.args.threat_model.scaled(eps_factor(self.args, self.warm_start.phases, self.state.global_step))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and with a training loss also its terms (``loss_natural``, ``loss_lwf``, …), which add up to it."""
        if "loss" in logs:
            logs |= self._terms.means(self.accelerator, self.state.global_step)
        super().log(logs, start_time)
