"""Adaptive adversarial distillation (AdaAD)."""

import torch
from torch import Tensor

from ..functions import Share
from .divergence import divergence
from .step import ObjectiveOutput, TrainingStep


def adaad(step: TrainingStep, *, alpha: Share = 1.0) -> ObjectiveOutput:
    """α KL(T(x') ‖ S(x')) + (1 − α) KL(T(x) ‖ S(x)), x' maximising KL(T(x') ‖ S(x')) (Huang et al., CVPR 2023, eq. 7).

    The teacher looks at the adversarial image as it moves, and the attack's gradient flows through the teacher, too; this
    costs a forward and backward pass of it at every attack step. Divergences are summed over the classes, as in the
    authors' code for CIFAR-100 (that for CIFAR-10 averages over them). The clean pass is made where it has a weight; theirs
    always makes it, in train mode, so that it moves the batch-norm statistics.

    Args:
        step: the batch.
        alpha: α, of the adversarial images against the clean ones.

    Example:
        >>> from functools import partial
        >>> objective = partial(adaad, alpha=0.8)
    """
    adversarial = moving_target_images(step)
    with torch.no_grad():
        target = step.teacher(adversarial)
    terms = {"distillation": alpha * divergence(target, step.student(adversarial)).mean()}
    clean = None
    if alpha < 1:
        clean = step.clean()
        terms["clean_distillation"] = (1 - alpha) * divergence(step.teacher_clean(), clean.logits).mean()
    return ObjectiveOutput(terms, clean)


def moving_target_images(step: TrainingStep) -> Tensor:
    """AdaAD's adversarial images, (B, C, H, W): they maximise KL(T(x') ‖ S(x')) through both networks."""
    return step.pgd_images(lambda images, logits: divergence(step.teacher(images), logits))


adaad.of_teacher = "moving"  # type: ignore[attr-defined]
adaad.defaults = {"attack_steps": 10}  # type: ignore[attr-defined]
