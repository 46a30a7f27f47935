"""A `Trainer` whose images know their index, which randomness is keyed by."""

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
    objective: Callable[..., ObjectiveOutput]

    @property
    def caches_features(self) -> bool:
        """Whether features that cannot change are computed once for the training images."""
        # A data set without a fingerprint may draw its own augmentation, anew in every epoch.
        return self.args.cache_features and not self.args.random_crop and hasattr(self.train_dataset, "fingerprint")

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
        clean_only = trait(self.objective, "clean_only") and self.args.freeze == "backbone"
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
        sampler = trait(self.objective, "sampler")
        if sampler is None:
            return super()._get_train_sampler(train_dataset)
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        group = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = fold_in(self.args.seed if self.args.data_seed is None else self.args.data_seed, _REPLAY)
        chosen: Sampler[int] = sampler(len(dataset), group=group, seed=seed, **self.args.objective_kwargs)
        return chosen
