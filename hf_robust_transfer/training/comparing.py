"""A `Trainer` that knows what its model is compared with: LwF's source, and the teacher of a distillation."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..data import mirrored
from ..errors import UsageError
from ..modeling.attack_copy import PRECISIONS, folded_copy
from ..modeling.classifier import PixelClassifier, accept_features
from ..randomness import fold_in
from ..transfer import make_source, make_teacher
from ..transfer.distillation import Distance, feature_distances
from .gate import head_takes_features
from .known_features import FeatureCache, known_features
from .loading import LoadingTrainer

AUGMENTATION = 1  # the purpose that randomness is drawn for, as a part of its address


class ComparingTrainer(LoadingTrainer):
    """All of `RobustTrainer` that touches frozen networks, and features that are known in advance.

    Attributes:
        given_teacher: what was given as ``teacher``.
        source: whose features LwF and anchor keep; None where they have no part.
        teacher: whose logits the objective learns; None where it learns from none.
        student_features: those of a backbone that is still, where they are known.
    """

    given_teacher: PixelClassifier | None
    distance: Distance
    student_features: FeatureCache | None = None
    _source: "Reference | None" = None
    _teacher: "Reference | None" = None

    def choose_references(self) -> None:
        """Decide what the model is compared with.

        Raises:
            UsageError: what `make_source` and `make_teacher` refuse.
        """
        model: Any = self.model
        processor: Any = self.processing_class
        given, args = self.given_teacher, self.args
        source = None if args.needs_teacher else given
        self.source = make_source(model, processor, source, args.needs_source, args.device)
        self.teacher = make_teacher(model, processor, given, args.objective, args.device) if args.needs_teacher else None

    def find_known_features(self) -> None:
        """At the beginning of a training: compute the features that will not change in it."""
        still = self.args.freeze == "backbone" or self.state.global_step < self.warm_start.phases.head
        own = self.caches_features and still and self.caches_student_features
        self.student_features = self._features_of(self.classifier) if own else None
        if self.source is not None:
            self._source = self._reference(self.source, self.source, self.caches_features)
        if self.teacher is not None:
            few = self.few_images(2)
            knowable = self.caches_features and self.args.asks_clean_teacher and head_takes_features(self.teacher, few)
            self._teacher = self._reference(fast_teacher(self.teacher, few, self._precision), self.teacher, knowable)

    @property
    def _precision(self) -> str:
        return str(self.accelerator.mixed_precision)  # may come from `accelerate launch` as well

    def _reference(self, run: PixelClassifier, of: PixelClassifier, knowable: bool) -> "Reference":
        return Reference(run, self.accelerator, partial(self.known, self._features_of(of)) if knowable else None)

    def _features_of(self, classifier: PixelClassifier) -> FeatureCache:
        loader = self.batches_in_order(self.args.per_device_eval_batch_size)
        return known_features(classifier, loader=loader, args=self.args, precision=self._precision)

    def known(self, features: FeatureCache, indices: Tensor) -> Tensor:
        """This batch's features, of mirrored images where `augment` mirrors them."""
        seed = fold_in(self.args.seed, AUGMENTATION, int(self.state.epoch or 0))
        return features.of(indices, mirrored(seed, indices) if self.args.random_flip else None)

    @property
    def knows_student_features(self) -> bool:
        """Whether the features of a backbone that is still are known, in this training."""
        return self.student_features is not None

    def distances_from(self, images: Tensor, indices: Tensor) -> Callable[[Tensor], Tensor]:
        """From features (B, D) to their distances to the source's at these images, which are computed once."""

        @cache
        def source() -> Tensor:
            if self._source is None:
                raise UsageError("the objective compares features with a source's: give it the trait of_source")
            return self._source.features(images, indices)

        return lambda features: feature_distances(features, source(), self.distance)

    def taught(self, images: Tensor, indices: Tensor) -> dict[str, Any]:
        """What a step is given of the teacher, if there is one."""
        if self._teacher is None:
            return {}
        clean = cache(partial(self._teacher.logits, images, indices))
        return {"teacher": self._teacher.classifier, "teacher_clean": clean}


class Reference:
    """A frozen network in eval mode, and what is known of it in advance.

    Args:
        classifier: the network, which does not change.
        accelerator: whose autocast it runs under.
        known: from indices of samples, int64 (B,), to the features (B, D) of their images, as augmented, where these are
            known.
    """

    def __init__(
        self, classifier: PixelClassifier, accelerator: Accelerator, known: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.classifier, self._accelerator, self._known = classifier, accelerator, known

    def features(self, images: Tensor, indices: Tensor) -> Tensor:
        """Features (B, D) of clean images, without a gradient."""
        if self._known is not None:
            return self._known(indices)
        with torch.no_grad(), self._accelerator.autocast():
            return self.classifier.outputs(images).features

    def logits(self, images: Tensor, indices: Tensor) -> Tensor:
        """Logits (B, classes) of clean images, without a gradient."""
        with torch.no_grad(), self._accelerator.autocast():
            if self._known is not None:
                return self.classifier.from_features(self._known(indices)).logits
            return self.classifier(images)


def fast_teacher(teacher: PixelClassifier, images: Tensor, precision: str) -> PixelClassifier:
    """A copy of a teacher to be run, and attacked, at every step: as fast as this hardware has it, differentiable.

    Args:
        teacher: as `hf_robust_transfer.transfer.matched_teacher` gives it.
        images: a few of the student's in [0, 1], (B, C, H, W).
        precision: as `accelerate` names it.
    """
    copied = folded_copy(teacher, images, precision if precision in PRECISIONS else "float32")
    accept_features(copied.model)
    return copied


def smallest(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The smallest element of a tensor and of its likes on the other processes, without a gradient."""
    return accelerator.gather(tensor.detach().amin().reshape(1)).amin()
