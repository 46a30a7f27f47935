"""Adversarially robust distillation (ARD)."""

import torch.nn.functional as F

from ..functions import Length, Share
from .divergence import divergence
from .step import ObjectiveOutput, TrainingStep


def ard(step: TrainingStep, *, alpha: Share = 1.0, temperature: Length = 1.0) -> ObjectiveOutput:
    """α τ² KL(T(x) ‖ S(x')) + (1 − α) CE(S(x), y), x' maximising CE(S(x'), y) (Goldblum et al., arXiv 1905.09747, eq. 4).

    Distributions are softmax(logits / τ); T is the teacher, S the student, which is attacked in eval mode. Other than in
    the authors' code the divergence is summed over the classes, not averaged: their τ = 30 with C classes is here the same
    as that τ and a learning rate C times as small. Their student is attacked in train mode, which moves its batch-norm
    statistics at every attack step.

    Costs one more pass of the teacher than `pgd_adversarial_training`, none where its clean logits are known.

    Args:
        step: the batch.
        alpha: α, of the teacher against the labels.
        temperature: τ.

    Example:
        >>> from functools import partial
        >>> objective = partial(ard, alpha=0.9, temperature=4.0)
    """
    student = step.student(step.pgd_images())
    distilled = divergence(step.teacher_clean(), student, temperature).mean()
    terms = {"distillation": alpha * temperature**2 * distilled}
    clean = None
    if alpha < 1:
        clean = step.clean()
        terms["natural"] = (1 - alpha) * F.cross_entropy(clean.logits, step.labels)
    return ObjectiveOutput(terms, clean)


ard.of_teacher = "clean"  # type: ignore[attr-defined]
ard.defaults = {"attack_steps": 10}  # type: ignore[attr-defined]
