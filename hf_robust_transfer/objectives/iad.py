"""Introspective adversarial distillation (IAD)."""

import torch
import torch.nn.functional as F

from ..functions import Share, Weight
from .divergence import divergence, precise
from .step import ObjectiveOutput, TrainingStep


def iad(step: TrainingStep, *, trust: Weight = 0.1, begin: Share = 0.3) -> ObjectiveOutput:
    """a KL(T(x') ‖ S(x')) + (1 − a) KL(S(x) ‖ S(x')), x' maximising CE(S(x'), y) (IAD-I; Zhu et al., arXiv 2106.04928).

    a = p_T(x')[y]^β is how far the teacher is trusted, sample by sample: where it is wrong about an adversarial image, the
    student goes by itself. At first it knows nothing, and a is 1 until ``begin`` of training is done. As in the paper, a
    weighs both terms; in the authors' code the first has no weight. The gradient of the second flows through both sides,
    as there.

    Args:
        step: the batch.
        trust: β; the larger, the less a teacher in doubt is trusted.
        begin: the share of training (60 of 200 epochs in the paper).

    Example:
        >>> from functools import partial
        >>> objective = partial(iad, begin=0.5)
    """
    adversarial = step.pgd_images()
    with torch.no_grad():
        teacher = step.teacher(adversarial)
    student = step.student(adversarial)
    distilled = divergence(teacher, student)
    if step.progress <= begin:
        return ObjectiveOutput({"distillation": distilled.mean()})
    trusted = F.softmax(precise(teacher), 1).gather(1, step.labels[:, None])[:, 0] ** trust
    clean = step.clean()
    own = divergence(clean.logits, student)
    terms = {"distillation": (trusted * distilled).mean(), "introspection": ((1 - trusted) * own).mean()}
    return ObjectiveOutput(terms, clean, {"teacher_trust": trusted.mean()})


iad.of_teacher = "moving"  # type: ignore[attr-defined]
iad.defaults = {"attack_steps": 10}  # type: ignore[attr-defined]
