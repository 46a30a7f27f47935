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
) -> Tensor:
    """Maximise a loss over the threat model by projected steepest ascent (Madry et al., arXiv 1706.06083).

    All samples take all steps, as training needs it; where only success counts, `pgd_until_fooled` is faster. The
    classifier is attacked in eval mode and comes back untouched, as `untouched` says. It runs under the caller's
    autocast; the images and their gradients keep the images' dtype.

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
    step_size = _checked(threat_model, steps, step_size, random_start, restarts, loss)
    sign = -1 if targeted else 1
    if indices is None:
        indices = torch.arange(len(images), device=images.device)

    # Callers may sit under no_grad or inference_mode; a clone made outside inference_mode can take part in autograd.
    with torch.inference_mode(False), torch.enable_grad(), untouched(classifier):
        images, labels = images.detach().clone(), labels.clone()
        clean_logits = _clean_logits(classifier, images, loss)

        def objective(logits: Tensor) -> Tensor:
            return sign * LOSSES[loss](logits.to(images.dtype), labels, clean_logits)

        best, best_objective = images, images.new_full((len(images),), -torch.inf)
        for restart in range(restarts):
            adversarial = images
            if random_start:
                adversarial = threat_model.random_start(images, sample_keys(fold_in(seed, restart), indices))
            for _ in range(steps):
                adversarial = adversarial.detach().requires_grad_()
                gradient = _gradient(objective(classifier(adversarial)), adversarial)
                adversarial = threat_model.project(adversarial.detach() + threat_model.step(gradient, step_size), images)
            if restarts == 1:
                return adversarial
            with torch.no_grad():
                reached = objective(classifier(adversarial))
            better = reached > best_objective
            best = torch.where(_per_image(better, images), adversarial, best)
            best_objective = torch.where(better, reached, best_objective)
        return best


def pgd_until_fooled(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str = "cross_entropy",
    lead: float = 0.0,
    seed: int = 0,
    indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`pgd` from a random start, which a sample leaves as soon as it is misclassified: all that an evaluation needs.

    Steps are taken with the samples that are left. On a GPU, looking who is left makes the host wait, so it is done
    ever more rarely, and a sample that was fooled in between keeps the image that did it.

    Args:
        classifier, images, labels, threat_model, steps, step_size, restarts, loss, seed, indices: as for `pgd`.
        lead: by how much another logit must lead the label's, as a share of the largest logit's size. In low precision
            the sides of a decision boundary are confused close to it; a sample there rather takes further steps.

    Returns:
        Adversarial images of the images' shape and dtype, and which samples were seen to be misclassified on them, (B,).
        The image that a sample ends with after all steps of the last restart is not looked at: whoever judges does it.

    Raises:
        ValueError: as `pgd`.

    Example:
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> images, labels = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
        >>> adversarial, fooled = pgd_until_fooled(classifier, images, labels, ThreatModel("linf", "8/255"))
        >>> bool((classifier(adversarial).argmax(1) != labels)[fooled].all())
        True
    """
    step_size = _checked(threat_model, steps, step_size, True, restarts, loss)
    if indices is None:
        indices = torch.arange(len(images), device=images.device)
    looks = range(steps) if images.device.type == "cpu" else [2**power - 1 for power in range(steps.bit_length())]

    with torch.inference_mode(False), torch.enable_grad(), untouched(classifier):
        images, labels, indices = images.detach().clone(), labels.clone(), indices.clone()
        clean_logits = _clean_logits(classifier, images, loss)

        def wins(logits: Tensor, rows: Tensor) -> Tensor:
            logits = logits.detach()
            return margin(logits, labels[rows], logits) > lead * logits.abs().amax(1)

        result, fooled = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
        for restart in range(restarts):
            rows = (~fooled).nonzero()[:, 0]
            # One entry for each of `rows`, the samples still under attack, have: where they are, whether they were
            # fooled since the last look, and if so by what.
            adversarial = threat_model.random_start(images[rows], sample_keys(fold_in(seed, restart), indices[rows]))
            won, winning = torch.zeros_like(fooled[rows]), adversarial
            for step in range(steps):
                adversarial = adversarial.detach().requires_grad_()
                logits = classifier(adversarial)
                won_now = wins(logits, rows)
                winning = torch.where(_per_image(won_now, images), adversarial.detach(), winning)
                won = won | won_now
                left: Tensor | slice = slice(None)
                if step in looks and won.any():
                    result[rows[won]], fooled[rows[won]] = winning[won], True
                    left = ~won
                    rows, won, winning = rows[left], won[left], winning[left]
                    if not len(rows):
                        return result, fooled
                    if 2 * len(rows) < len(left):  # a forward pass of these costs less than a backward pass of all
                        adversarial, left = adversarial.detach()[left].requires_grad_(), slice(None)
                        logits = classifier(adversarial)
                reached = LOSSES[loss](logits.to(images.dtype)[left], labels[rows], clean_logits[rows])
                gradient = _gradient(reached, adversarial)[left]
                adversarial = threat_model.project(
                    adversarial.detach()[left] + threat_model.step(gradient, step_size), images[rows]
                )
            if restart + 1 < restarts:
                with torch.no_grad():
                    won_now = wins(classifier(adversarial), rows)
                winning = torch.where(_per_image(won_now, images), adversarial, winning)
                won = won | won_now
            result[rows] = torch.where(_per_image(won, images), winning, adversarial)
            fooled[rows] = won
        return result, fooled


def _checked(
    threat_model: ThreatModel, steps: int, step_size: float | None, random_start: bool, restarts: int, loss: str
) -> float:
    """The step size, once all options are seen to be in range."""
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
    return step_size


def _clean_logits(classifier: Classifier, images: Tensor, loss: str) -> Tensor:
    """The logits of clean images where the loss looks at them, else none."""
    if loss != "kl":
        return images.new_empty(len(images), 0)
    with torch.no_grad():
        return classifier(images).to(images.dtype)


def _gradient(objective: Tensor, adversarial: Tensor) -> Tensor:
    """The gradient of each sample's objective with respect to its own image, times a constant."""
    return torch.autograd.grad(_SCALE * objective.sum(), adversarial)[0]


def _per_image(mask: Tensor, images: Tensor) -> Tensor:
    """A mask (B,) in a shape that broadcasts over images."""
    return mask.view(-1, *[1] * (images.dim() - 1))
