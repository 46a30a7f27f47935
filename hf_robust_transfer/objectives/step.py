"""What an objective is given, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..attacks import pgd
from ..errors import UsageError
from ..functions import unwrapped
from ..modeling.classifier import ClassifierOutput, PixelClassifier
from ..threat_model import ThreatModel


def _no_source(features: Tensor) -> Tensor:
    raise UsageError("the objective compares features with those of a source: give it the trait of_source, as `trait` says")


def _no_teacher(images: Tensor) -> Tensor:
    raise UsageError("the objective learns from a teacher: give it the trait of_teacher, as `trait` says")


def _alone(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class TrainingStep:
    """One (micro-)batch of training, as an objective sees it.

    Args:
        student: the classifier in train mode; gradients through it are synchronised between processes.
        attacked: the same weights, to craft adversarial examples against.
        images: clean images in [0, 1] after augmentation, (B, C, H, W).
        labels: int64 (B,).
        indices: each sample's index in the training set, int64 (B,).
        threat_model: the threat model, with ε as far as its warm-up has come.
        attack_steps: gradient steps of the inner maximisation, where the objective has any.
        attack_step_size: their length in pixel units; None for a quarter of ε.
        seed: the address of this epoch's attack randomness.
        carried: tensors that an objective keeps from one step to the next; they are part of a checkpoint.
        features: the student's penultimate features of the clean images, (B, D), where they are known in advance: those of
            a backbone that is held still.
        slot: which micro-batch of the gradient accumulation this is, so that what is carried can be told apart.
        epoch: the number of this pass over the training set, from 0.
        distance_to_source: from features of these images (B, D), of whatever was made of them, to the distance of each to
            the frozen source's of the clean ones, (B,); for objectives with the trait ``of_source``.
        teacher: from images (B, C, H, W) to the teacher's logits of the student's labels, (B, classes), differentiable in
            the images; for objectives with the trait ``of_teacher``.
        teacher_clean: the teacher's logits of the clean images, without a gradient; where the trait is ``"clean"`` and
            these images do not change, they are known in advance and cost nothing.
        progress: the share of training that is done once this step is, in (0, 1].
        summed: the sum of a tensor over the processes.
        smallest: the smallest element of a tensor and of its likes on the other processes, without a gradient.
    """

    student: PixelClassifier
    attacked: PixelClassifier
    images: Tensor
    labels: Tensor
    indices: Tensor
    threat_model: ThreatModel
    attack_steps: int = 7
    attack_step_size: float | None = None
    seed: int = 0
    carried: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    slot: int = 0
    epoch: int = 0
    distance_to_source: Callable[[Tensor], Tensor] = field(default_factory=lambda: _no_source)
    teacher: Callable[[Tensor], Tensor] = field(default_factory=lambda: _no_teacher)
    teacher_clean: Callable[[], Tensor] = field(default_factory=lambda: lambda: _no_teacher(torch.empty(0)))
    progress: float = 1.0
    summed: Callable[[Tensor], Tensor] = field(default_factory=lambda: _alone)
    smallest: Callable[[Tensor], Tensor] = field(default_factory=lambda: lambda tensor: tensor.detach().amin())

    def clean(self) -> ClassifierOutput:
        """The student's output on the clean images; where their features are known, by the classifier layer alone."""
        return self.student.outputs(self.images) if self.features is None else self.student.from_features(self.features)

    def pgd_images(
        self, loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy", *, of: nn.Module | None = None
    ) -> Tensor:
        """PGD examples against the student as it is now, (B, C, H, W), crafted with this step's options; at ε = 0 no attack
        is made.

        Args:
            loss: what the attack maximises, as for `hf_robust_transfer.attacks.pgd`.
            of: what is attacked in place of the student's logits, such as its features.
        """
        if self.threat_model.eps == 0:
            return self.images
        return pgd(
            self.attacked if of is None else of,
            self.images,
            self.labels,
            self.threat_model,
            steps=self.attack_steps,
            step_size=self.attack_step_size,
            loss=loss,
            seed=self.seed,
            indices=self.indices,
            check=False,
        )


class ObjectiveOutput(NamedTuple):
    """The loss in named parts, and the student's clean output where the objective computed it.

    ``terms`` are scalars, each the mean over the batch with its weight already in; their sum is the loss. ``clean`` lets
    the LwF term use the features of a forward pass that has been made anyway. ``metrics`` are scalars to log beside them,
    means over the batch as well.
    """

    terms: dict[str, Tensor]
    clean: ClassifierOutput | None = None
    metrics: Mapping[str, Tensor] = MappingProxyType({})


Objective = Callable[..., ObjectiveOutput]


def trait(objective: Objective, name: str) -> Any:
    """What an objective says of itself in an attribute, or None.

    Args:
        objective: the function, or a `functools.partial` of it.
        name: ``"clean_only"``: it sees images through ``step.clean()`` alone, so that known features can take their place.
            ``"of_teacher"``: it needs ``step.teacher``, so that a teacher has to be given; ``"clean"`` if it asks it for
            ``step.teacher_clean`` alone or first, else ``"moving"``.
            ``"defaults"``: options of training, by their names, that it is to have unless others are asked for.
            ``"of_source"``: it needs ``step.distance_to_source``, so that a source is kept beside the model.
            ``"sampler"``: the order of its training images, called as ``sampler(size, group=, seed=, **options)``, where
            ``group`` samples make one optimizer step; its ``set_epoch`` is called at the beginning of each epoch.
    """
    return getattr(unwrapped(objective), name, None)
