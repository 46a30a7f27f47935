"""The trainer: a thin composition of objectives, attacks and transfer on top of `transformers.Trainer`."""

import os
import random
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast, send_to_device
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import BaseImageProcessor, PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, HubStrategy
from transformers.utils.hub import PushInProgress

from ..attacks import pgd
from ..data import Indexed, PixelDataset, as_pixels, augment, collate, mirrored
from ..evaluation.metrics import compute_metric
from ..hub import publish, publish_in_background, stand_alone
from ..modeling.attack_copy import PRECISIONS
from ..modeling.classifier import PixelClassifier, accept_features, classifier_layer, full_precision, linear_layers
from ..objectives import OBJECTIVES, ObjectiveOutput, ReplaySampler, TrainingStep
from ..randomness import fold_in
from ..threat_model import ThreatModel, parse_eps
from ..transfer import HeadWarmStart, eval_where_frozen, feature_distance, freeze
from ..transfer.warm_start import steps_of
from .arguments import RobustTrainingArguments
from .known_features import FeatureCache, cache_features

# The purposes that randomness is drawn for, as parts of its address.
_ATTACK, _AUGMENTATION, _EVALUATION, _REPLAY = range(4)


class RobustTrainer(Trainer):
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
        ValueError: before any training, when the pieces do not go together; the message says what to change.
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
            raise ValueError("several GPUs need a process each: start with `accelerate launch --multi_gpu`")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func has no place here: choose an objective, or add one in objectives/")
        if model is not None:
            _prepare(model, args)
        if args.dataloader_num_workers < 0:
            in_memory = getattr(kwargs.get("train_dataset"), "in_memory", False)
            cores = (os.cpu_count() or 1) // max(1, args.world_size)
            args.dataloader_num_workers = 0 if in_memory or args.device.type == "cpu" else min(8, cores)
        self.teacher = teacher
        self._carried: dict[str, Tensor] = {}
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

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        if trial is not None:  # the trial's options came after the model, and were not checked yet
            self.args.check()
            _check_teacher(self.args, self.model, self.teacher)
            _prepare(self.model, self.args)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise ValueError("a map-style data set is needed: attack and augmentation randomness is keyed by sample index")
        only_features = self._caches_features and (self.args.objective, self.args.freeze) == ("natural", "backbone")
        if kwargs.get("is_training") and only_features and isinstance(dataset, PixelDataset):
            dataset = [{"labels": label} for label in dataset.labels]
        return super()._get_dataloader(Indexed(dataset, len(self.model.config.id2label or ())), *args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = as_pixels(inputs["pixel_values"])
        return inputs

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.args.objective != "free":
            return super()._get_train_sampler(train_dataset)
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        group = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = fold_in(self.args.seed if self.args.data_seed is None else self.args.data_seed, _REPLAY)
        return ReplaySampler(len(dataset), group=group, replays=self.args.free_replays, seed=seed)

    # ---- training ----

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        # Nothing of an earlier or interrupted run goes into this one.
        self._term_sums, self._terms_logged_at, self._micro_batch = {}, 0, 0
        self._carried.clear()
        self._student_features = self._teacher_features = None
        if self._caches_features:
            accept_features(self.model)
        return super()._inner_training_loop(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        if self._caches_features and self._student_features is self._teacher_features is None:
            self._cache_features()  # here, so that it is part of the training's time
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _cache_features(self) -> None:
        """Compute, or find, the features of training images that are the same in every epoch."""
        args, dataset = self.args, cast(Any, self.train_dataset)
        precision = str(self.accelerator.mixed_precision)  # may come from `accelerate launch` as well
        loader: DataLoader[Any] = DataLoader(
            Indexed(dataset, len(self.model.config.id2label or ())),
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
            images = augment(images, seed=seed, indices=indices, crop_padding=args.random_crop, flip=args.random_flip)
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
            attack_step_size=None if args.attack_step_size is None else parse_eps(args.attack_step_size),
            seed=fold_in(args.seed, _ATTACK, epoch),
            carried=self._carried,
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
        self._share_buffers()
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        python_state, numpy_state = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices):
            try:
                return super().evaluation_loop(*args, **kwargs)
            finally:
                random.setstate(python_state)
                np.random.set_state(numpy_state)

    def _share_buffers(self) -> None:
        """Give every process the batch-norm statistics of the first, which are those that are saved."""
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                broadcast(buffer)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Clean logits and, with labels and an evaluation attack, those on adversarial images, judged in float32."""
        inputs = self._prepare_inputs(inputs)
        images, labels = inputs["pixel_values"], inputs.get("labels")
        classifier = PixelClassifier(self.model, self.processing_class, forward_through=model)
        adversarial = None
        if labels is not None and self.args.eval_attack_steps:
            step_size = self.args.eval_attack_step_size
            adversarial = pgd(
                classifier,
                images,
                labels,
                self.args.threat_model,
                steps=self.args.eval_attack_steps,
                step_size=None if step_size is None else parse_eps(step_size),
                seed=fold_in(self.args.seed, _EVALUATION),
                indices=inputs["indices"],
            )
        with torch.no_grad(), full_precision(classifier):
            logits: Any = classifier(images)
            if adversarial is not None:
                logits = (logits, classifier(adversarial))
        return None, logits, labels

    # ---- checkpoints: what an objective carries belongs to each process, as its random state does ----

    def _carried_file(self, folder: str) -> Path:
        return Path(folder) / f"carried_{self.args.process_index}.safetensors"

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        # Written beside its place first: a disk that fills up leaves the model that was there.
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="_saving-", dir=folder) as staging:
            super()._save(staging, state_dict)
            stand_alone(staging)
            for file in Path(staging).iterdir():
                file.replace(folder / file.name)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._share_buffers()
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._carried:
            save_file({name: value.contiguous() for name, value in self._carried.items()}, self._carried_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self._carried_file(checkpoint).is_file():
            self._carried = send_to_device(load_file(self._carried_file(checkpoint)), self.args.device)

    # ---- the Hub: one commit with what is for others, by either of the base class's ways ----

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Save the model, and publish the output folder with its model card as `hf_robust_transfer.hub.publish` does.

        Args:
            commit_message: of the one commit.
            blocking: wait for it; otherwise return a future.
            token, revision, private: by default ``args.hub_token``, ``args.hub_revision`` and ``args.hub_private_repo``.
            card: ``license``, of the weights; what else the base class's kind of card takes has no place here.

        Returns:
            The commit, or a future of it; on processes other than the first, None.

        Raises:
            PublishingError: the Hub refused or could not be reached; the output folder holds everything.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        options = self._hub_options(token=token, revision=revision, private=private)
        options |= {"commit_message": commit_message or "End of training", "license": card.get("license")}
        if blocking:
            return publish(str(self.args.output_dir), **options)
        return HfApi().run_as_future(publish, str(self.args.output_dir), **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = HubStrategy(self.args.hub_strategy)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running = self.push_in_progress
        if running is not None and not running.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        places = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name}
        job = publish_in_background(
            checkpoint_folder,
            Path(str(self.args.output_dir), f"_publishing-{self.state.global_step}"),
            resumable_at=places.get(strategy),
            commit_message=f"Training in progress, step {self.state.global_step}",
            **self._hub_options(),
        )
        self.push_in_progress: Any = PushInProgress([job])  # type: ignore[arg-type]

    def _hub_options(self, **given: Any) -> dict[str, Any]:
        args = self.args
        own = {"token": args.hub_token, "revision": args.hub_revision or "main", "private": args.hub_private_repo}
        repo_id = self.hub_model_id or args.hub_model_id or Path(str(args.output_dir)).resolve().name
        return {"repo_id": repo_id, **own, **{name: value for name, value in given.items() if value is not None}}


def _prepare(model: PreTrainedModel, args: RobustTrainingArguments) -> None:
    """Freeze what is to be frozen, and note in the model's configuration what later evaluations go by."""
    freeze(model, args.freeze)
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
    predictions = prediction.predictions
    logits = [torch.as_tensor(each) for each in (predictions if isinstance(predictions, tuple) else (predictions,))]
    labels = torch.as_tensor(prediction.label_ids)
    classes = [each.argmax(1).numpy() for each in logits]
    computed = compute_metric(
        "robust_accuracy", predictions=classes[0], adversarial_predictions=classes[-1], references=labels.numpy()
    )
    metrics: dict[str, float] = {}
    for prefix, key, values in zip(("", "robust_"), ("clean_accuracy", "robust_accuracy"), logits, strict=False):
        metrics[f"{prefix}accuracy"] = computed[key]
        metrics[f"{prefix}loss"] = F.cross_entropy(values.double(), labels).item()
    if more is not None:
        clean = predictions[0] if isinstance(predictions, tuple) else predictions
        metrics |= more(EvalPrediction(predictions=clean, label_ids=prediction.label_ids))
    return metrics


def _check_teacher(args: RobustTrainingArguments, model: PreTrainedModel, teacher: PixelClassifier | None) -> None:
    if args.lwf_weight == 0:
        return
    if teacher is None:
        raise ValueError(
            f"--lwf_weight {args.lwf_weight} keeps features close to a teacher's, but there is none: pass teacher=, the"
            " frozen robust source, or set --lwf_weight 0"
        )
    sizes = [linear_layers(classifier_layer(each)[1])[0].in_features for each in (model, teacher.model)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the teacher's features have size {sizes[1]}, the model's {sizes[0]}: LwF needs a teacher of the same"
            " architecture, usually the source itself"
        )
