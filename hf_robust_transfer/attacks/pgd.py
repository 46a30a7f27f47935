"""Projected gradient descent."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..randomness import fold_in, sample_keys
from ..threat_model import ThreatModel
from .untouched import Classifier, untouched


def cross_entropy(logits: Tensor, labels: Tensor, clean_logits: Tensor) -> Tensor:
    """Cross-entropy of each sample, shape (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor, clean_logits: Tensor) -> Tensor:
    """The largest other logit minus the label's, shape (B,): positive exactly where the label is not predicted.

    The loss of Carlini & Wagner (arXiv 1608.04644, f₆ without the floor), whose gradient does not vanish on confident
    samples as that of cross-entropy does.
    """
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1) - logits[own]


def kl(logits: Tensor, labels: Tensor, clean_logits: Tensor) -> Tensor:
    """KL(p(clean) ‖ p(adversarial)) of each sample, shape (B,): the inner maximisation of TRADES. Ignores the labels."""
    target = F.log_softmax(clean_logits, 1)
    return F.kl_div(F.log_softmax(logits, 1), target, reduction="none", log_target=True).sum(1)


# Steps do not depend on the gradient's length, but in fp16 the gradient of a confident sample would vanish without this.
_SCALE = 1024

LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "kl": kl}


def pgd(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int = 20,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    loss: str = "cross_entropy",
    targeted: bool = False,
    seed: int = 0,
    indices: Tensor | None = None,
    judge: Classifier | None = None,
) -> Tensor:
    """Maximise a loss over the threat model by projected steepest ascent (Madry et al., arXiv 1706.06083).

    The classifier is attacked in eval mode and comes back untouched, as `untouched` says. It runs under the
    caller's autocast; the images and their gradients keep the images' dtype.

    Args:
        classifier: maps [0, 1] images to logits of shape (B, classes); a module or any function.
        images: clean images in pixel units, floating, (B, C, H, W), on the classifier's device.
        labels: the true labels, or with ``targeted`` the wanted ones, int64 of shape (B,).
        threat_model: the ball and box to stay in.
        steps: gradient steps; with 0 and a random start the result is uniform noise.
        step_size: length of a step in pixel units; by default a quarter of ε (2/255 at ε = 8/255).
        random_start: start at a uniform point of the ball instead of at the clean image. The KL loss needs it, having
            no gradient at the clean image.
        restarts: independent runs; each sample keeps the result of highest loss. More than one needs a random start.
        loss: ``"cross_entropy"``, ``"margin"`` or ``"kl"``.
        targeted: minimise the loss towards ``labels`` instead.
        seed: with ``indices`` and the restart, the address of the random start.
        indices: each sample's index in its data set, int64 (B,); by default its position in the batch.
        judge: for evaluations, the classifier as success is judged, say in float32 where the attack runs in bf16. A sample
            leaves the attack, restarts included, as soon as the judge is fooled as well; by default all take all steps.

    Returns:
        Adversarial images, detached, of the images' shape and dtype.

    Raises:
        ValueError: an unknown loss, a negative number of steps, fewer than one restart, restarts without random start,
            or a step size that is not positive.

    Example:
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> images, labels = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
        >>> pgd(classifier, images, labels, ThreatModel("linf", "8/255"), steps=5).shape
        torch.Size([2, 3, 2, 2])
    """
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r} is unknown: use one of {', '.join(LOSSES)}")
    if steps < 0 or restarts < 1 or (restarts > 1 and not random_start):
        raise ValueError(
            f"steps={steps}, restarts={restarts}, random_start={random_start}: steps must be at least 0, restarts at"
            " least 1, and several restarts need a random start"
        )
    step_size = threat_model.eps / 4 if step_size is None else step_size
    if step_size <= 0 < threat_model.eps:
        raise ValueError(f"step_size={step_size} must be above 0")
    loss_function = LOSSES[loss]
    sign = -1 if targeted else 1
    if indices is None:
        indices = torch.arange(len(images), device=images.device)

    # Callers may sit under no_grad or inference_mode; a clone made outside inference_mode can take part in autograd.
    with torch.inference_mode(False), torch.enable_grad(), untouched(classifier):
        images, labels, indices = images.detach().clone(), labels.clone(), indices.clone()
        clean_logits = images.new_empty(len(images), 0)
        if loss == "kl":
            with torch.no_grad():
                clean_logits = classifier(images).to(images.dtype)

        # `rows` are the samples still under attack; `adversarial` and whatever is made from it has one entry for each.
        def objective(logits: Tensor, rows: Tensor) -> Tensor:
            return sign * loss_function(logits.to(images.dtype), labels[rows], clean_logits[rows])

        def fooled(adversarial: Tensor, rows: Tensor) -> Tensor:
            assert judge is not None
            with torch.no_grad():
                return (judge(adversarial).argmax(1) == labels[rows]) == targeted

        best, best_objective = images.clone(), images.new_full((len(images),), -torch.inf)
        rows = torch.arange(len(images), device=images.device)
        for restart in range(restarts):
            adversarial = images[rows]
            if random_start:
                keys = sample_keys(fold_in(seed, restart), indices[rows])
                adversarial = threat_model.random_start(adversarial, keys)
            for _ in range(steps):
                adversarial = adversarial.detach().requires_grad_()
                logits = classifier(adversarial)
                (gradient,) = torch.autograd.grad(_SCALE * objective(logits, rows).sum(), adversarial)
                adversarial = adversarial.detach()
                if judge is not None:
                    left = (logits.detach().argmax(1) == labels[rows]) == targeted
                    if left.any():
                        left[left.clone()] = fooled(adversarial[left], rows[left])
                        best[rows[left]] = adversarial[left]
                        adversarial, gradient, rows = adversarial[~left], gradient[~left], rows[~left]
                        if not len(rows):
                            return best
                adversarial = threat_model.project(adversarial + threat_model.step(gradient, step_size), images[rows])
            if restarts == 1:
                best[rows] = adversarial.detach()
                return best
            with torch.no_grad():
                reached = objective(classifier(adversarial), rows)
            better = reached > best_objective[rows]
            if judge is not None:
                left = fooled(adversarial, rows)
                better |= left
            best[rows[better]] = adversarial[better].detach()
            best_objective[rows[better]] = reached[better]
            if judge is not None:
                rows = rows[~left]
                if not len(rows):
                    break
        return best
