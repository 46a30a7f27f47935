"""Sample-wise adaptive adversarial distillation (SAAD)."""

import torch
from torch import Tensor

from ..functions import Length, Weight
from .divergence import divergence, entropy, precise
from .igdm import difference_divergence, mirror
from .step import ObjectiveOutput, TrainingStep


def saad(
    step: TrainingStep,
    *,
    scale: Length = 5.0,
    order: Length = 1.0,
    gradient_weight: Weight = 1.0,
    clean_weight: Weight = 0.0,
    inner: Weight = 1.0,
) -> ObjectiveOutput:
    """w (KL(T(x') ‖ S(x')) + λ t KL(ΔT ‖ ΔS)) + β (1 − w / max w) KL(T(x) ‖ S(x)) (Lee & Chung, arXiv 2512.10275).

    w = scale · (H − min H), H the entropy of the teacher at x': what moves the teacher as well is worth learning from, and
    what leaves it sure of itself is not. Δf = f(x + δ) − f(x − δ) as in `igdm`, t the share of training that is done.

    x' maximises KL(T̃(x') ‖ S(x')), where T̃ is the teacher's clean output with its true logit moved along its gradient,
    t_y + inner · ⟨∇ t_y, x' − x⟩: the moving teacher of `adaad`, to first order, for one forward and backward pass of the
    teacher in place of one at every attack step. The gradient flows through T̃, too.

    The minimum is over the batch on all processes; with gradient accumulation, over each micro-batch. As w is not
    normalised, its mean, which is logged, acts on the learning rate. The authors' command has no clean term (β = 0), as
    here, and averages weights at the end (``--averaging swa``, the default with saad). Other than in their code t grows
    by the step, and the attack starts at a uniform point of the ball.

    Args:
        step: the batch.
        scale: of w.
        order: of the Rényi entropy; 1 is Shannon's.
        gradient_weight: λ; the authors use 1 with 10 classes and 10 with 100 and more.
        clean_weight: β.
        inner: how far the teacher moves in the attack; with 0 it stays, as in `rslad`.

    Example:
        >>> from functools import partial
        >>> objective = partial(saad, clean_weight=1.0)
    """
    clean_target, adversarial = _attacked(step, inner)
    mirrored = mirror(step.images, adversarial)
    with torch.no_grad():
        target, mirrored_target = step.teacher(adversarial), step.teacher(mirrored)
    student, mirrored_student = step.student(adversarial), step.student(mirrored)
    uncertainty = entropy(target, order)
    weights = scale * (uncertainty - step.smallest(uncertainty))
    gradients = difference_divergence((target, mirrored_target), (student, mirrored_student))
    terms = {
        "distillation": (weights * divergence(target, student)).mean(),
        "gradient_distillation": gradient_weight * step.progress * (weights * gradients).mean(),
    }
    clean = None
    if clean_weight > 0:
        clean = step.clean()
        certain = 1 - weights / (1e-8 - step.smallest(-weights))
        terms["clean_distillation"] = clean_weight * (certain * divergence(clean_target, clean.logits)).mean()
    moved = (target.argmax(1) != clean_target.argmax(1)).to(weights)
    return ObjectiveOutput(terms, clean, {"mean_weight": weights.mean(), "teacher_moved": moved.mean()})


def _attacked(step: TrainingStep, inner: float) -> tuple[Tensor, Tensor]:
    """The teacher's clean logits (B, classes), and images (B, C, H, W) attacked against its first-order model."""
    labels = step.labels[:, None]
    with torch.enable_grad():
        probe = step.images.detach().requires_grad_()
        logits = precise(step.teacher(probe))
        (slope,) = torch.autograd.grad(logits.gather(1, labels).sum(), probe)
    target = logits.detach()

    def loss(images: Tensor, logits: Tensor) -> Tensor:
        moved = inner * (slope * (images - step.images)).flatten(1).sum(1, keepdim=True)
        return divergence(target.scatter_add(1, labels, moved.to(target.dtype)), logits)

    return target, step.pgd_images(loss)


saad.of_teacher = "moving"  # type: ignore[attr-defined]
saad.defaults = {"attack_steps": 10, "averaging": "swa"}  # type: ignore[attr-defined]
