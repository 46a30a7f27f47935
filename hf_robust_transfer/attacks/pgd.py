"""Projected gradient descent."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..randomness import fold_in, sample_keys
from ..threat_model import ThreatModel
from .ascent import checked_step_size, clean_logits_for, input_gradient, per_image
from .eval_mode import Classifier, untouched
from .inputs import checked_inputs
from .losses import LOSSES


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
    loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
    targeted: bool = False,
    seed: int = 0,
    indices: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Maximise a loss over the threat model by projected steepest ascent (Madry et al., arXiv 1706.06083).

    All samples take all steps, as training needs it; where only success counts, `early_stopping_pgd` is faster. The
    classifier is attacked in eval mode and comes back untouched, as `untouched` says. It runs under the caller's
    autocast; the images and their gradients keep the images' dtype.

    Args:
        classifier: maps [0, 1] images to logits of shape (B, classes), or to an output or a tuple with them; a module or
            any function.
        images: clean images in pixel units, floating, (B, C, H, W), on the classifier's device.
        labels: the true labels, or with ``targeted`` the wanted ones, integers of shape (B,).
        threat_model: the ball and box to stay in.
        steps: gradient steps; with 0 and a random start the result is uniform noise.
        step_size: length of a step in pixel units; by default a quarter of ε (2/255 at ε = 8/255).
        random_start: start at a uniform point of the ball instead of at the clean image. The KL loss needs it, having
            no gradient at the clean image.
        restarts: independent runs; each sample keeps the result of highest loss. More than one needs a random start.
        loss: ``"cross_entropy"``, ``"margin"`` or ``"kl"``; or a function ``(adversarial, logits) -> (B,)`` of images and
            their logits. The gradient flows through all that it makes of either, such as another network's logits.
        targeted: minimise the loss towards ``labels`` instead.
        seed: with ``indices`` and the restart, the address of the random start.
        indices: each sample's index in its data set, integers (B,); by default its position in the batch.
        check: look at the values of images and labels. A GPU makes the host wait for it, so training, whose batches were
            checked when they were collated, leaves it out.

    Returns:
        Adversarial images, detached, of the images' shape and dtype, in the threat model also after rounding.

    Raises:
        UsageError: an unknown loss, a negative number of steps, fewer than one restart, restarts without random start, a
            step size that is not positive, a classifier without gradients, or images and labels that an attack cannot
            have, as `checked_inputs` says.

    Example:
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> images, labels = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
        >>> pgd(classifier, images, labels, ThreatModel("linf", "8/255"), steps=5).shape
        torch.Size([2, 3, 2, 2])
    """
    step_size = checked_step_size(threat_model, steps, step_size, random_start, restarts, loss)
    sign = -1 if targeted else 1
    images, labels, indices, classify = checked_inputs(classifier, images, labels, threat_model, indices, values=check)

    # Callers may sit under no_grad or inference_mode; a clone made outside inference_mode can take part in autograd.
    with torch.inference_mode(False), torch.enable_grad(), untouched(classifier):
        images, labels = images.detach().clone(), labels.clone()
        clean_logits = clean_logits_for(classify, images, loss)

        def objective(shown: Tensor) -> Tensor:
            logits = classify(shown)
            return sign * (loss(shown, logits) if callable(loss) else LOSSES[loss](logits, labels, clean_logits))

        best, best_objective = images, images.new_full((len(images),), -torch.inf)
        for restart in range(restarts):
            adversarial = images
            if random_start:
                adversarial = threat_model.random_start(images, sample_keys(fold_in(seed, restart), indices))
            for _ in range(steps):
                adversarial = adversarial.detach().requires_grad_()
                gradient = input_gradient(objective(adversarial), adversarial)
                adversarial = threat_model.project(adversarial.detach() + threat_model.step(gradient, step_size), images)
            if restarts == 1:
                return adversarial
            with torch.no_grad():
                reached = objective(adversarial)
            better = reached > best_objective
            best = torch.where(per_image(better, images), adversarial, best)
            best_objective = torch.where(better, reached, best_objective)
        return best
