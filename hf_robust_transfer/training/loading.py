"""A `Trainer` whose images know their index, which randomness is keyed by."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, cast

import torch
from datasets import DatasetDict, IterableDatasetDict
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import (
    BaseImageProcessor,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
)
from transformers.utils import logging

from ..data import Indexed, PixelDataset, as_pixel_dataset, as_pixels, choose_split
from ..data.columns import refuse_streams
from ..data.cropping import RandomCrops
from ..data.given import has_roles
from ..data.pixels import check_that_it_can_be_cropped
from ..data.sizes import resizing_of
from ..errors import UsageError
from ..modeling import PixelClassifier
from ..modeling.adapters import is_adapted
from ..objectives import ObjectiveOutput, trait
from ..randomness import fold_in
from ..transfer import HeadWarmStart, head_learning_rate
from .arguments import RobustTrainingArguments
from .gate import check_that_it_takes, head_takes_features
from .preparing import check_that_it_merges
from .reporting import random_state_kept

logger = logging.get_logger(__name__)
_REPLAY, _CROPS = 3, 4  # the purposes that randomness is drawn for, as a part of its address: a sampler, random crops


def workers(args: RobustTrainingArguments, dataset: Any) -> int:
    """How many processes read images: none on a CPU, which has better to do, or for images that are kept in memory."""
    cores = (os.cpu_count() or 1) // max(1, args.world_size)
    kept = getattr(dataset, "in_memory", False) and not args.random_resized_crop
    return 0 if kept or args.device.type == "cpu" else min(8, cores)


class BeginsEpochs(TrainerCallback):
    """Tells of each epoch that begins, before any of its images is read.

    Args:
        begin: is told the state of training.
    """

    def __init__(self, begin: Callable[[TrainerState], None]) -> None:
        self._begin = begin

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Tell."""
        self._begin(state)


class LoadingTrainer(Trainer):
    """All of `RobustTrainer` that touches data loaders and their order."""

    args: RobustTrainingArguments
    training_objective: Callable[..., ObjectiveOutput]
    warm_start: HeadWarmStart
    steps_per_epoch: int

    def __init__(
        self,
        *,
        model: PreTrainedModel | None,
        args: RobustTrainingArguments,
        processing_class: BaseImageProcessor | None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        image_column_name: str | None = None,
        label_column_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._columns = {"image_column_name": image_column_name, "label_column_name": label_column_name}
        self._ready: list[Any] = []  # what was made of the data sets that were given
        self._crops: RandomCrops | None = None
        self._labels_only = torch.tensor(False)  # for an epoch whose features are known
        self._told: set[str | int] = set()
        self._has_warned = False
        self.train_dataset, self.eval_dataset = _one(train_dataset, "train"), _one(eval_dataset, "validation")
        self.processing_class = processing_class
        for dataset, name in ((self.train_dataset, "train"), (self.eval_dataset, "validation")):
            if dataset is not None:
                refuse_streams(dataset, f"{name} data set")
        if model is not None:  # before the base class makes the output folder
            self.model = model
            self._make_ready()
        if args.dataloader_num_workers < 0:
            args.dataloader_num_workers = workers(args, self.train_dataset)
        data: dict[str, Any] = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        super().__init__(model=model, args=args, processing_class=processing_class, **data, **kwargs)
        if model is None:
            self._make_ready()
        self.add_callback(BeginsEpochs(self._begin_epoch))

    def _make_ready(self) -> None:
        """Make data sets of pixels of what was given, and see that there is something to train on."""
        if self.train_dataset is not None:
            self.train_dataset = self._as_pixels(self.train_dataset, "train")
            if self.args.random_resized_crop:
                check_that_it_can_be_cropped(self.train_dataset)
        if self.eval_dataset is not None:
            self.eval_dataset = self._as_pixels(self.eval_dataset, "validation")
        several = cast(Any, self.eval_dataset)
        self._ready = [self.train_dataset, *(several.values() if isinstance(several, dict) else [several])]
        self._check_that_it_trains()

    def _check_that_it_trains(self) -> None:
        """Refuse a model that is frozen whole, and options that leave no image, or no step after the warm start."""
        args, data = self.args, cast(Any, self.train_dataset)
        if not hasattr(data, "__len__"):
            return
        if not any(parameter.requires_grad for parameter in cast(Any, self.model).parameters()):
            adapter = ", of a saved adapter with PeftModel.from_pretrained(…, is_trainable=True)"
            raise UsageError(
                "every parameter of the model is frozen, its head too: let some require a gradient"
                + (adapter if is_adapted(cast(Any, self.model)) else "")
            )
        samples = len(data)
        if not samples:
            raise UsageError("there is no training image")
        size = args.train_batch_size * args.world_size
        batches = samples // size if args.dataloader_drop_last else math.ceil(samples / size)
        if not batches:
            raise UsageError(
                f"--dataloader_drop_last leaves none of the {samples} training images in batches of {size}: lower"
                " --per_device_train_batch_size, or keep the last batch"
            )
        steps = math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))
        if args.max_steps < 0 and args.warm_start_steps >= max(1, steps):
            raise UsageError(
                f"--warm_start_steps {args.warm_start_steps:g} leaves nothing of the {steps} steps to the rest of the"
                " model: lower it, or give it as a share of all, like 0.4"
            )
        steps = args.max_steps if args.max_steps > 0 else steps
        if args.averaging != "none" and args.averaging_from >= max(1, steps):
            raise UsageError(
                f"--averaging_start {args.averaging_from:g} leaves none of the {steps} steps to average over: lower it, or"
                " give it as a share of all, like 0.5"
            )

    @property
    def caches_features(self) -> bool:
        """Whether features that cannot change are computed once for the training images."""
        # A data set without a fingerprint may draw its own augmentation, anew in every epoch.
        named = "fingerprint" in dir(self.train_dataset)  # not yet asked for: it may take a look at all images
        return self.args.cache_features and not self.args.crops_at_random and named

    @cached_property
    def caches_student_features(self) -> bool:
        """Whether the student's features are among them, where its backbone is still: its head alone gives the logits."""
        if not (self.caches_features and trait(self.training_objective, "clean_only")):
            return False
        takes_them = head_takes_features(self.classifier, self.few_images(2))
        if not takes_them:
            logger.warning("the head takes more than the features of an image, which are computed in each step therefore")
        return takes_them

    @property
    def classifier(self) -> PixelClassifier:
        """The model over [0, 1] pixels."""
        return PixelClassifier(cast(Any, self.model), cast(Any, self.processing_class))

    def few_images(self, number: int) -> Tensor:
        """The first training images, at most so many, in [0, 1] and on the device of training."""
        return self._images(range(min(number, len(cast(Any, self.train_dataset)))))[0]

    def spread_images(self, number: int, name: str = "train") -> tuple[Tensor, Tensor]:
        """At most so many images from all over a data set, as `few_images` gives them, and their labels.

        Args:
            number: how many.
            name: the data set: ``"train"`` or ``"validation"``.
        """
        there = len(cast(Any, self.train_dataset if name == "train" else self.eval_dataset))
        number = min(number, there)
        return self._images([row * there // number for row in range(number)], name)

    def _images(self, rows: Iterable[int], name: str = "train") -> tuple[Tensor, Tensor]:
        items = self.with_indices(self.train_dataset if name == "train" else self.eval_dataset, name)
        with random_state_kept(self.args.device):
            batch = self.data_collator([items[row] for row in rows])
        return as_pixels(batch["pixel_values"]).to(self.args.device), batch["labels"].to(self.args.device)

    def batches_in_order(self, size: int) -> DataLoader[Any]:
        """The training images in the order of their data set, in batches of a size; random crops are those of epoch 0."""
        images = self.with_indices(self.train_dataset, "train")
        return DataLoader(
            images if not self.args.random_resized_crop else self._cropped(images.dataset, self._random_crops()),
            size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            generator=torch.Generator(),  # else it would draw from the random state of training
        )

    def choose_head_learning_rate(self) -> None:
        """Give a new head a rate that suits the features of the first training images, where a preset leaves it open."""
        args, data = self.args, self.train_dataset
        name = "learning_rate" if args.freeze == "backbone" else "warm_start_learning_rate"
        trains_alone = args.freeze == "backbone" or args.starts_with_head
        open_ = args.transfer is not None and args.optim == "sgd" and getattr(args, name) is None and trains_alone
        if not open_ or data is None:
            return
        images = self.few_images(128)
        check_that_it_takes(self.classifier, images[:2])
        setattr(args, name, head_learning_rate(self.classifier, images))

    def try_to_merge(self) -> None:
        """Where an adapter of peft is to be merged into the weights, make sure before training that it can be.

        Raises:
            UsageError: it cannot.
        """
        if not is_adapted(cast(Any, self.model)) or not self.args.merges_adapter or self.train_dataset is None:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UsageError(
                "FSDP and DeepSpeed shard the model, so that no process can merge its adapter: save it alone, without"
                " --merge_adapter and --push_to_hub"
            )
        check_that_it_merges(self.model, self.processing_class, self.few_images(2))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training images with their indices; only labels where features are all that is looked at."""
        given: Any = self.train_dataset
        if given is None:
            raise UsageError("there is no training image: give train_dataset=")
        if self.args.freeze == "backbone" and isinstance(given, PixelDataset) and self.caches_student_features:
            given = self._indexed([{"labels": label} for label in given.labels])
        elif self.args.random_resized_crop:
            crops = self._random_crops()
            if self._crops is None or self._crops.options != crops.options:  # else those that a training may be using
                self._crops = crops
            given = self._cropped(given, self._crops)
        shown = self.with_indices(given, "train")
        if isinstance(given, PixelDataset):
            shown.labels_only = self._labels_only
        if self.args.dataloader_num_workers > 0:
            self._labels_only.share_memory_()
        with self._seen_as("train_dataset", shown):
            return super().get_train_dataloader()

    def _begin_epoch(self, state: TrainerState) -> None:
        """Have random crops be those of this epoch, and read no image for one in which known features are all there is."""
        if self._crops is not None:
            self._crops.begin(int(state.epoch or 0))
        ends = (state.global_step // self.steps_per_epoch + 1) * self.steps_per_epoch
        self._labels_only.fill_(self.knows_student_features and ends <= self.warm_start.phases.head)

    @property
    def knows_student_features(self) -> bool:
        """Whether the features of a backbone that is still are known, in this training."""
        return False

    def _random_crops(self) -> RandomCrops:
        args: Any = self.args
        seed, shared = fold_in(args.seed, _CROPS), args.dataloader_num_workers > 0
        return RandomCrops(cast(Any, self.processing_class), args.random_resized_crop, seed=seed, shared=shared)

    def _cropped(self, dataset: Any, crops: RandomCrops) -> Indexed:
        return Indexed(dataset, len(self._labels), self._labels, crops)

    def tell_of_images(self, dataset: Any, name: str) -> None:
        """Print, once and from one process, what is done to images; warn where most of them is thrown away.

        Where the user has taken off the callbacks that print, nothing is printed.
        """
        own = any(dataset is each for each in self._ready)
        if not self.is_world_process_zero() or (own and id(dataset) in self._told):
            return
        with random_state_kept(self.args.device):
            resizing = resizing_of(dataset)
        line = f"{getattr(dataset, 'name', name)}: {resizing}"
        prints = any(isinstance(each, PrinterCallback | ProgressCallback) for each in self.callback_handler.callbacks)
        if resizing is not None and prints and line not in self._told:
            print(line, flush=True)
        if resizing is not None and resizing.warning is not None and not self._has_warned:
            logger.warning(resizing.warning)
            self._has_warned = True
        self._told |= {line, id(dataset)} if own else {line}

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, as for `transformers.Trainer`; of a `DatasetDict`, on its validation or test split."""
        metrics: dict[str, float] = super().evaluate(_one(eval_dataset, "validation"), *args, **kwargs)
        return metrics

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Evaluation images with their indices; as for `transformers.Trainer`."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            known: Any = self.eval_dataset
            if known is None:
                raise UsageError("there is no image to evaluate on: give eval_dataset=")
            if isinstance(eval_dataset, str) and (not isinstance(known, dict) or eval_dataset not in known):
                raise UsageError(
                    f"eval_dataset {eval_dataset!r} is none of the trainer's: give its eval_dataset as a dictionary"
                )
            self.tell_of_images(
                known[eval_dataset] if isinstance(eval_dataset, str) else known, eval_dataset or "validation"
            )
            with self._seen_as("eval_dataset", self.eval_dataset):
                return super().get_eval_dataloader(eval_dataset)
        images = self.with_indices(eval_dataset, "validation")
        self.tell_of_images(images.dataset, "validation")
        return super().get_eval_dataloader(images)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Images to predict with their indices; as for `transformers.Trainer`. They need no labels."""
        images = self.with_indices(test_dataset, "test", labelled=False)
        self.tell_of_images(images.dataset, "test")
        return super().get_test_dataloader(images)

    @contextmanager
    def _seen_as(self, name: str, dataset: Any) -> Iterator[None]:
        """For a moment, have the base class see a data set with indices in place of one of this trainer's."""
        given = getattr(self, name)
        if isinstance(dataset, dict):
            setattr(self, name, {key: self.with_indices(each, key) for key, each in dataset.items()})
        elif dataset is not None:
            setattr(self, name, self.with_indices(dataset, name.removesuffix("_dataset")))
        try:
            yield
        finally:
            setattr(self, name, given)

    def with_indices(self, dataset: Any, name: str, labelled: bool = True) -> Indexed:
        """A data set of pixels whose items know their index.

        Args:
            dataset: as `as_pixel_dataset` takes it, as it does the other arguments.

        Raises:
            UsageError: what `as_pixel_dataset` raises.
        """
        return dataset if isinstance(dataset, Indexed) else self._indexed(self._as_pixels(dataset, name, labelled))

    def _as_pixels(self, dataset: Any, name: str, labelled: bool = True) -> Any:
        if isinstance(dataset, dict) and name == "validation":  # to be evaluated on one by one
            return {key: self._as_pixels(each, key) for key, each in dataset.items()}
        refuse_streams(dataset, f"{name} data set")
        if not len(dataset) and labelled and name != "train":
            raise UsageError(f"the {name} data set has no image")
        if any(dataset is each for each in self._ready):
            return dataset
        with random_state_kept(self.args.device):
            return as_pixel_dataset(
                dataset, cast(Any, self.processing_class), name, labels=self._labels, labelled=labelled, **self._columns
            )

    def _indexed(self, dataset: Any) -> Indexed:
        return Indexed(dataset, len(self._labels), self._labels)

    @property
    def _labels(self) -> list[str]:
        id2label = cast(Any, self.model).config.id2label or {}
        return [id2label[index] for index in sorted(id2label)]

    # No public hook: the base class asks its own method for the order of a training set.
    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        sampler = trait(self.training_objective, "sampler")
        if sampler is None:
            return super()._get_train_sampler(train_dataset)
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        group = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = fold_in(self.args.seed if self.args.data_seed is None else self.args.data_seed, _REPLAY)
        chosen: Sampler[int] = sampler(len(dataset), group=group, seed=seed, **self.args.objective_kwargs)
        return chosen


def _one(dataset: Any, name: str) -> Any:
    """What is to be trained or evaluated on: of a data set's splits the one for it."""
    if isinstance(dataset, DatasetDict | IterableDatasetDict) and (name == "train" or has_roles(dataset)):
        return dataset[choose_split(dataset, name)]
    return dataset
