"""Robust soft label adversarial distillation (RSLAD)."""

from ..functions import Share
from .divergence import divergence
from .step import ObjectiveOutput, TrainingStep


def rslad(step: TrainingStep, *, clean_weight: Share = 1 / 6) -> ObjectiveOutput:
    """(1 − w) KL(T(x) ‖ S(x')) + w KL(T(x) ‖ S(x)), x' maximising KL(T(x) ‖ S(x')) (Zi et al., arXiv 2108.07969, eq. 3).

    The teacher's distribution on the clean image takes the place of the label throughout; it stays the same while the
    image is attacked. No label is looked at. Divergences are summed over the classes, where the authors' code averages
    over them (and multiplies by 10 for CIFAR-100): here a rate means the same with any number of classes. The attack
    starts at a uniform point of the ball, theirs at 0.001 · N(0, 1) around the image.

    Costs one student and one teacher pass more than `pgd_adversarial_training`, and of the teacher none where its clean
    logits are known.

    Args:
        step: the batch.
        clean_weight: w, of the clean images.

    Example:
        >>> from functools import partial
        >>> objective = partial(rslad, clean_weight=0.5)
    """
    target = step.teacher_clean()
    adversarial = step.pgd_images(lambda _, logits: divergence(target, logits))
    terms = {"distillation": (1 - clean_weight) * divergence(target, step.student(adversarial)).mean()}
    clean = None
    if clean_weight > 0:
        clean = step.clean()
        terms["clean_distillation"] = clean_weight * divergence(target, clean.logits).mean()
    return ObjectiveOutput(terms, clean)


rslad.of_teacher = "clean"  # type: ignore[attr-defined]
rslad.defaults = {"attack_steps": 10}  # type: ignore[attr-defined]
