"""The trainer: a thin composition of objectives, attacks and transfer on top of `transformers.Trainer`."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import BaseImageProcessor, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from ..attacks import pgd
from ..data import Indexed, PixelDataset, as_pixels, augment, collate, mirrored
from ..errors import UsageError
from ..modeling.attack_copy import PRECISIONS
from ..modeling.classifier import PixelClassifier, accept_features, classifier_layer, full_precision, linear_layers
from ..objectives import OBJECTIVES, ObjectiveOutput, ReplaySampler, TrainingStep
from ..randomness import fold_in
from ..threat_model import ThreatModel
from ..transfer import HeadWarmStart, eval_where_frozen, feature_distance, freeze
from ..transfer.warm_start import steps_of
from .arguments import RobustTrainingArguments
from .known_features import FeatureCache, cache_features
from .saving import SavingTrainer

# The purposes that randomness is drawn for, as parts of its address.
_ATTACK, _AUGMENTATION, _EVALUATION, _REPLAY = range(4)


class RobustTrainer(SavingTrainer):
    """Train an image classifier robustly, or carry a robust source's robustness over to a new task.

    Everything of `transformers.Trainer` works as before; ``args`` choose the objective, freezing, warm start and LwF.
    Data sets are map-style and yield ``{"pixel_values": (C, H, W), "labels": int}``, pixels floating in [0, 1] or uint8,
    as `hf_robust_transfer.data.PixelDataset` does; normalisation happens inside. `evaluate` returns ``eval_accuracy``,
    ``eval_robust_accuracy``, ``eval_loss`` and ``eval_robust_loss`` under PGD with ``args.eval_attack_steps`` steps,
    crafted in the precision of training and judged in float32. Features that cannot change are computed once for a data
    set that has a ``fingerprint``, as `PixelDataset` does: it says that items are the same whenever they are read.

    Args:
        model: a `transformers` image classifier, timm's inside `TimmWrapperForImageClassification` included.
        args: the training arguments.
        processing_class: the model's image processor; saved with the model.
        teacher: for LwF, the frozen robust source.
        compute_metrics: more metrics, given the clean logits and the labels.
        kwargs: all further arguments of `transformers.Trainer`.

    Raises:
        UsageError: before any training, when the pieces do not go together; the message says what to change.
        FloatingPointError: a loss term became NaN or infinite; the last checkpoint stays as it was.

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

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: RobustTrainingArguments | None = None,
        *,
        processing_class: BaseImageProcessor,
        teacher: PixelClassifier | None = None,
        compute_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args if args is not None else RobustTrainingArguments()
        if args.n_gpu > 1:
            raise UsageError("several GPUs need a process each: start with `accelerate launch --multi_gpu`")
        if kwargs.get("compute_loss_func") is not None:
            raise UsageError("compute_loss_func has no place here: choose an objective, or add one in objectives/")
        if model is not None:
            _prepare(model, args)
        if args.dataloader_num_workers < 0:
            in_memory = getattr(kwargs.get("train_dataset"), "in_memory", False)
            cores = (os.cpu_count() or 1) // max(1, args.world_size)
            args.dataloader_num_workers = 0 if in_memory or args.device.type == "cpu" else min(8, cores)
        self.teacher = teacher
        self.carried: dict[str, Tensor] = {}
        self._term_sums: dict[str, Tensor] = {}
        self._terms_logged_at = 0
        self._micro_batch = 0
        self._student_features: FeatureCache | None = None
        self._teacher_features: FeatureCache | None = None
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
        _check_teacher(args, self.model, teacher)
        if teacher is not None:
            teacher.to(args.device).eval().requires_grad_(False)
        self.add_callback(HeadWarmStart())
        self.add_callback(_OnTrainBegin(self._begin))
        self.label_names = ["labels"]
        # Have the base class count a step's samples over accumulation and processes, and leave the scaling to us.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    # ---- model and data ----

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """Build a model, frozen as asked."""
        model: Any = super().call_model_init(trial)
        _prepare(model, self.args)
        return cast(PreTrainedModel, model)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Before it, in a hyperparameter search, have the trial's options decide what is frozen."""
        if self.hp_search_backend is not None:  # a trial's options come after the model, and were not checked yet
            self.args.check()
            _check_teacher(self.args, self.model, self.teacher)
            _prepare(self.model, self.args)
        return super().create_optimizer(model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training images with their indices; only labels where features are all that is looked at."""
        with self._indexed("train_dataset"):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Evaluation images with their indices; as for `transformers.Trainer`."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            with self._indexed("eval_dataset"):
                return super().get_eval_dataloader(eval_dataset)
        return super().get_eval_dataloader(self._with_indices(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Images to predict with their indices; as for `transformers.Trainer`."""
        return super().get_test_dataloader(self._with_indices(test_dataset))

    @contextmanager
    def _indexed(self, name: str) -> Iterator[None]:
        """For a moment, have the base class see a data set of this trainer with indices."""
        given = getattr(self, name)
        only_features = self._caches_features and (self.args.objective, self.args.freeze) == ("natural", "backbone")
        if isinstance(given, dict):
            seen: Any = {key: self._with_indices(dataset) for key, dataset in given.items()}
        elif name == "train_dataset" and only_features and isinstance(given, PixelDataset):
            seen = self._with_indices([{"labels": label} for label in given.labels])
        else:
            seen = None if given is None else self._with_indices(given)
        setattr(self, name, seen)
        try:
            yield
        finally:
            setattr(self, name, given)

    def _with_indices(self, dataset: Any) -> Indexed:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise UsageError("a map-style data set is needed: attack and augmentation randomness is keyed by sample index")
        return Indexed(dataset, len(self.model.config.id2label or ()))

    # No public hook: the base class asks its own method for the sampler of a training set.
    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.args.objective != "free":
            return super()._get_train_sampler(train_dataset)
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        group = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = fold_in(self.args.seed if self.args.data_seed is None else self.args.data_seed, _REPLAY)
        return ReplaySampler(len(dataset), group=group, replays=self.args.free_replays, seed=seed)

    # ---- training ----

    def _begin(self) -> None:
        """Start from what was saved, and from nothing else of an earlier run; called within the training's time."""
        self._term_sums, self._terms_logged_at, self._micro_batch = {}, 0, 0
        self.load_carried(self.resumed_from)
        self._student_features = self._teacher_features = None
        if self._caches_features:
            self._cache_features()

    def _cache_features(self) -> None:
        """Compute, or find, the features of training images that are the same in every epoch."""
        args, dataset = self.args, cast(Any, self.train_dataset)
        precision = str(self.accelerator.mixed_precision)  # may come from `accelerate launch` as well
        loader: DataLoader[Any] = DataLoader(
            self._with_indices(dataset),
            args.per_device_eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            generator=torch.Generator(),  # else it would draw from the random state of training
        )
        known = partial(
            cache_features,
            loader=loader,
            folder=Path(args.feature_cache_dir),
            fingerprint=dataset.fingerprint,
            mirrored=args.random_flip,
            precision=precision if precision in PRECISIONS else "float32",
            progress=self.is_world_process_zero() and not args.disable_tqdm,
        )
        warm_steps = steps_of(args.warm_start_steps, self.state.max_steps)
        if args.objective == "natural" and (args.freeze == "backbone" or self.state.global_step < warm_steps):
            self._student_features = known(PixelClassifier(self.model, self.processing_class))
        if args.lwf_weight:
            assert self.teacher is not None
            self._teacher_features = known(self.teacher)

    @property
    def _caches_features(self) -> bool:
        # A data set without a fingerprint may draw its own augmentation, anew in every epoch.
        return self.args.cache_features and not self.args.random_crop and hasattr(self.train_dataset, "fingerprint")

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass on a micro-batch."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_batch = 0 if self.accelerator.sync_gradients else self._micro_batch + 1
        return loss

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
        output = OBJECTIVES[self.args.objective](step, **self.args.objective_options)
        terms = dict(output.terms)
        if self.args.lwf_weight > 0:
            terms["lwf"] = self.args.lwf_weight * self._feature_distance(step, output)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            bad = {name: value.item() for name, value in terms.items() if not torch.isfinite(value)}
            raise FloatingPointError(
                f"step {self.state.global_step}: loss term {', '.join(f'{name}={value}' for name, value in bad.items())}."
                " Lower --learning_rate, or start from the last checkpoint with another --seed"
            )
        share: float | Tensor = 1.0
        if num_items_in_batch is not None:
            share = len(step.labels) / torch.as_tensor(num_items_in_batch, dtype=loss.dtype)
            if self.args.average_tokens_across_devices:
                share = share * self.accelerator.num_processes  # DDP averages over processes what we want summed
        if not self._term_sums:
            self._terms_logged_at = self.state.global_step
        for name, value in terms.items():
            self._term_sums[name] = self._term_sums.get(name, 0) + value.detach() * share
        return (loss * share, output) if return_outputs else loss * share

    def _step(self, model: nn.Module, inputs: dict[str, Any]) -> TrainingStep:
        args, epoch, indices = self.args, int(self.state.epoch or 0), inputs["indices"]
        seed = fold_in(args.seed, _AUGMENTATION, epoch)
        images = inputs.get("pixel_values", indices)  # where features are all that is looked at, there are none
        if "pixel_values" in inputs:
            images = augment(
                as_pixels(images), seed=seed, indices=indices, crop_padding=args.random_crop, flip=args.random_flip
            )
        student, attacked = self._views(model)
        features = None
        if self._student_features is not None and not any(weight.requires_grad for weight in self._backbone):
            features = self._known(self._student_features, indices)
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
        )

    def _views(self, model: nn.Module) -> tuple[PixelClassifier, PixelClassifier]:
        """The classifier through whatever the model is wrapped in, and as attacks see it: compiled at most."""
        if not self._classifiers or self._classifiers[:2] != (model, self.model):
            student = PixelClassifier(self.model, self.processing_class, forward_through=model)
            compiled = model if getattr(model, "_orig_mod", None) is self.model else None
            attacked = PixelClassifier(self.model, self.processing_class, forward_through=compiled)
            self._classifiers = (model, self.model, student, attacked)
            head = set(classifier_layer(self.model)[1].parameters())
            self._backbone = [parameter for parameter in self.model.parameters() if parameter not in head]
        return self._classifiers[2:]

    def _known(self, cache: FeatureCache, indices: Tensor) -> Tensor:
        """This batch's features, of mirrored images where `augment` mirrors them."""
        seed = fold_in(self.args.seed, _AUGMENTATION, int(self.state.epoch or 0))
        return cache.of(indices, mirrored(seed, indices) if self.args.random_flip else None)

    def _training_threat_model(self) -> ThreatModel:
        steps = steps_of(self.args.eps_warmup_steps, self.state.max_steps)
        return self.args.threat_model.scaled(min(1.0, (self.state.global_step + 1) / max(steps, 1)))

    def _feature_distance(self, step: TrainingStep, output: ObjectiveOutput) -> Tensor:
        assert self.teacher is not None
        clean = output.clean if output.clean is not None else step.clean()
        if self._teacher_features is not None:
            source = self._known(self._teacher_features, step.indices)
        else:
            with torch.inference_mode(), self.accelerator.autocast():
                source = self.teacher.outputs(step.images).features
            source = source.clone()  # outside, so that it can take part in autograd
        return feature_distance(clean.features, source, self.args.lwf_distance)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and with a training loss also its terms (``loss_natural``, ``loss_lwf``, …), which add up to it."""
        if "loss" in logs and self._term_sums:
            steps = max(1, self.state.global_step - self._terms_logged_at)
            sums = self.accelerator.reduce(torch.stack(list(self._term_sums.values())).float(), "mean")
            logs |= {f"loss_{name}": value / steps for name, value in zip(self._term_sums, sums.tolist(), strict=True)}
            self._term_sums = {}
        super().log(logs, start_time)

    # ---- evaluation ----

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate or predict, leaving the random state of training as it was."""
        self.share_buffers()
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        python_state, numpy_state = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices):
            try:
                return super().evaluation_loop(*args, **kwargs)
            finally:
                random.setstate(python_state)
                np.random.set_state(numpy_state)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Clean logits and, with labels and an evaluation attack, those on adversarial images, judged in float32."""
        inputs = send_to_device(inputs, self.args.device)
        images, labels = as_pixels(inputs["pixel_values"]), inputs.get("labels")
        classifier = PixelClassifier(self.model, self.processing_class, forward_through=model)
        adversarial = None
        if labels is not None and self.args.eval_attack_steps:
            adversarial = pgd(
                classifier,
                images,
                labels,
                self.args.threat_model,
                steps=self.args.eval_attack_steps,
                step_size=self.args.eval_attack_step,
                seed=fold_in(self.args.seed, _EVALUATION),
                indices=inputs["indices"],
            )
        with torch.no_grad(), full_precision(classifier):
            logits: Any = classifier(images)
            if adversarial is not None:
                logits = (logits, classifier(adversarial))
        return None, logits, labels


class _OnTrainBegin(TrainerCallback):
    """Call a function before the first step of each training."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begin()


def _prepare(model: PreTrainedModel, args: RobustTrainingArguments) -> None:
    """Freeze what is to be frozen, let the head run alone, and note what later evaluations go by."""
    freeze(model, args.freeze)
    accept_features(model)
    model.config.robust_training = {"norm": args.norm, "eps": str(args.eps), "seed": args.seed}


def robustness_metrics(prediction: EvalPrediction, more: Any = None) -> dict[str, float]:
    """Accuracy and cross-entropy on clean and, where there are any, adversarial images.

    A sample that is misclassified as it is does not count as robust, whatever the attack made of it.

    Args:
        prediction: ``predictions`` is the clean logits (N, classes), or a pair of them and the adversarial ones.
        more: a further function from an `EvalPrediction` of clean logits to metrics.

    Returns:
        ``accuracy`` and ``loss``, and with adversarial logits ``robust_accuracy`` and ``robust_loss``.
    """
    clean_and_adversarial = (
        prediction.predictions if isinstance(prediction.predictions, tuple) else (prediction.predictions,)
    )
    labels = np.asarray(prediction.label_ids)
    metrics: dict[str, float] = {}
    correct = np.ones(len(labels), dtype=bool)
    for prefix, logits in zip(("", "robust_"), clean_and_adversarial, strict=False):
        correct &= np.asarray(logits).argmax(1) == labels
        metrics[f"{prefix}accuracy"] = correct.mean().item()
        loss = F.cross_entropy(torch.as_tensor(logits).double(), torch.as_tensor(labels))
        metrics[f"{prefix}loss"] = loss.item()
    if more is not None:
        metrics |= more(EvalPrediction(predictions=clean_and_adversarial[0], label_ids=prediction.label_ids))
    return metrics


def _check_teacher(args: RobustTrainingArguments, model: PreTrainedModel, teacher: PixelClassifier | None) -> None:
    if args.lwf_weight == 0:
        return
    if teacher is None:
        raise UsageError(
            f"--lwf_weight {args.lwf_weight} keeps features close to a teacher's, but there is none: pass teacher=, the"
            " frozen robust source, or set --lwf_weight 0"
        )
    sizes = [linear_layers(classifier_layer(each)[1])[0].in_features for each in (model, teacher.model)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"the teacher's features have size {sizes[1]}, the model's {sizes[0]}: LwF needs a teacher of the same"
            " architecture, usually the source itself"
        )
