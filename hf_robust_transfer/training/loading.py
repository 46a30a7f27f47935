"""A `Trainer` whose images know their index, which randomness is keyed by."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import Trainer

from ..data import Indexed, PixelDataset, as_pixels
from ..errors import UsageError
from ..modeling import PixelClassifier
from ..objectives import ObjectiveOutput, trait
from ..randomness import fold_in
from ..transfer import head_learning_rate
from .arguments import RobustTrainingArguments
from .reporting import random_state_kept

_REPLAY = 3  # the purpose that a sampler's randomness is drawn for, as a part of its address


def workers(args: RobustTrainingArguments, dataset: Any) -> int:
    """How many processes read images: none on a CPU, which has better to do, or for images that are kept in memory."""
    cores = (os.cpu_count() or 1) // max(1, args.world_size)
    return 0 if getattr(dataset, "in_memory", False) or args.device.type == "cpu" else min(8, cores)


class LoadingTrainer(Trainer):
    """All of `RobustTrainer` that touches data loaders and their order."""

    args: RobustTrainingArguments
    training_objective: Callable[..., ObjectiveOutput]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_that_it_trains()

    def _check_that_it_trains(self) -> None:
        """Refuse a model that is frozen whole, and options that leave no image, or no step after the warm start."""
        args, data = self.args, cast(Any, self.train_dataset)
        if not hasattr(data, "__len__"):
            return
        if not any(parameter.requires_grad for parameter in cast(Any, self.model).parameters()):
            raise UsageError("every parameter of the model is frozen, its head too: let some require a gradient")
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

    @property
    def caches_features(self) -> bool:
        """Whether features that cannot change are computed once for the training images."""
        # A data set without a fingerprint may draw its own augmentation, anew in every epoch.
        named = "fingerprint" in dir(self.train_dataset)  # not yet asked for: it may take a look at all images
        return self.args.cache_features and not self.args.random_crop and named

    def choose_head_learning_rate(self) -> None:
        """Give a new head a rate that suits the features of the first training images, where a preset leaves it open."""
        args, data = self.args, self.train_dataset
        name = "learning_rate" if args.freeze == "backbone" else "warm_start_learning_rate"
        trains_alone = args.freeze == "backbone" or args.warm_start_steps > 0
        open_ = args.transfer is not None and args.optim == "sgd" and getattr(args, name) is None and trains_alone
        if not open_ or data is None:
            return
        items = self.with_indices(data)
        with random_state_kept(args.device):
            batch = self.data_collator([items[row] for row in range(min(128, len(items)))])
        classifier = PixelClassifier(cast(Any, self.model), cast(Any, self.processing_class))
        setattr(args, name, head_learning_rate(classifier, as_pixels(batch["pixel_values"]).to(args.device)))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training images with their indices; only labels where features are all that is looked at."""
        given: Any = self.train_dataset
        clean_only = trait(self.training_objective, "clean_only") and self.args.freeze == "backbone"
        if clean_only and self.caches_features and isinstance(given, PixelDataset):
            given = [{"labels": label} for label in given.labels]
        with self._seen_as("train_dataset", given):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Evaluation images with their indices; as for `transformers.Trainer`."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            with self._seen_as("eval_dataset", self.eval_dataset):
                return super().get_eval_dataloader(eval_dataset)
        return super().get_eval_dataloader(self.with_indices(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Images to predict with their indices; as for `transformers.Trainer`."""
        return super().get_test_dataloader(self.with_indices(test_dataset))

    @contextmanager
    def _seen_as(self, name: str, dataset: Any) -> Iterator[None]:
        """For a moment, have the base class see a data set with indices in place of one of this trainer's."""
        given = getattr(self, name)
        if isinstance(dataset, dict):
            setattr(self, name, {key: self.with_indices(each) for key, each in dataset.items()})
        elif dataset is not None:
            setattr(self, name, self.with_indices(dataset))
        try:
            yield
        finally:
            setattr(self, name, given)

    def with_indices(self, dataset: Any) -> Indexed:
        """A data set whose items know their index.

        Raises:
            UsageError: it is a stream.
        """
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise UsageError("a map-style data set is needed: attack and augmentation randomness is keyed by sample index")
        model: Any = self.model
        id2label = model.config.id2label or {}
        return Indexed(dataset, len(id2label), [id2label[index] for index in sorted(id2label)])

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
