"""Indirect gradient distillation (IGDM) on AdaAD."""

import torch
from torch import Tensor

from ..functions import Weight
from .adaad import moving_target_images
from .divergence import divergence, precise
from .step import ObjectiveOutput, TrainingStep


def igdm(step: TrainingStep, *, gradient_weight: Weight = 1.0) -> ObjectiveOutput:
    """KL(T(x') ‖ S(x')) + λ t KL(T(x + δ) − T(x − δ) ‖ S(x + δ) − S(x − δ)), x' = x + δ as `adaad` crafts it, t the share
    of training that is done (Lee et al., arXiv 2312.03286, eq. 8).

    The second term compares the softmax of differences of logits: f(x + δ) − f(x − δ) ≈ 2 ∇f · δ, so that it matches the
    input gradients along the attack without second derivatives. x − δ is not clamped to [0, 1], which would break that
    symmetry. t grows by the step; in the authors' code by the epoch, from 1/E to 1. The student's passes are separate,
    first x + δ, then x − δ, since together they would share batch-norm statistics.

    Args:
        step: the batch.
        gradient_weight: λ; the authors use 1 with 10 classes and 10 with 100 and more.

    Example:
        >>> from functools import partial
        >>> for_many_classes = partial(igdm, gradient_weight=10.0)
    """
    adversarial = moving_target_images(step)
    mirrored = mirror(step.images, adversarial)
    with torch.no_grad():
        target, mirrored_target = step.teacher(adversarial), step.teacher(mirrored)
    student, mirrored_student = step.student(adversarial), step.student(mirrored)
    gradients = difference_divergence((target, mirrored_target), (student, mirrored_student))
    return ObjectiveOutput(
        {
            "distillation": divergence(target, student).mean(),
            "gradient_distillation": gradient_weight * step.progress * gradients.mean(),
        }
    )


def mirror(images: Tensor, adversarial: Tensor) -> Tensor:
    """x − δ of x and x + δ, not clamped."""
    return 2 * images - adversarial


def difference_divergence(teacher: tuple[Tensor, Tensor], student: tuple[Tensor, Tensor]) -> Tensor:
    """KL of the softmaxes of both networks' differences, of each sample, (B,).

    Args:
        teacher, student: logits (B, classes) at x + δ and at x − δ.
    """
    taught, learned = (precise(plus) - precise(minus) for plus, minus in (teacher, student))
    return divergence(taught, learned)


igdm.of_teacher = "moving"  # type: ignore[attr-defined]
igdm.defaults = {"attack_steps": 10}  # type: ignore[attr-defined]
