"""Projected gradient descent that samples leave once they are fooled."""

import torch
from torch import Tensor

from ..randomness import fold_in, sample_keys
from ..threat_model import ThreatModel
from .ascent import checked_step_size, clean_logits_for, input_gradient, per_image
from .eval_mode import Classifier, untouched
from .inputs import checked_inputs
from .losses import LOSSES, margin


def early_stopping_pgd(
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
        UsageError: as `pgd`.

    Example:
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> images, labels = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
        >>> adversarial, fooled = early_stopping_pgd(classifier, images, labels, ThreatModel("linf", "8/255"))
        >>> bool((classifier(adversarial).argmax(1) != labels)[fooled].all())
        True
    """
    step_size = checked_step_size(threat_model, steps, step_size, True, restarts, loss)
    images, labels, indices, classify = checked_inputs(classifier, images, labels, threat_model, indices)
    looks = range(steps) if images.device.type == "cpu" else [2**power - 1 for power in range(steps.bit_length())]

    with torch.inference_mode(False), torch.enable_grad(), untouched(classifier):
        images, labels, indices = images.detach().clone(), labels.clone(), indices.clone()
        clean_logits = clean_logits_for(classify, images, loss)

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
                logits = classify(adversarial)
                won_now = wins(logits, rows)
                winning = torch.where(per_image(won_now, images), adversarial.detach(), winning)
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
                        logits = classify(adversarial)
                reached = LOSSES[loss](logits[left], labels[rows], clean_logits[rows])
                gradient = input_gradient(reached, adversarial)[left]
                adversarial = threat_model.project(
                    adversarial.detach()[left] + threat_model.step(gradient, step_size), images[rows]
                )
            if restart + 1 < restarts:
                with torch.no_grad():
                    won_now = wins(classify(adversarial), rows)
                winning = torch.where(per_image(won_now, images), adversarial, winning)
                won = won | won_now
            result[rows] = torch.where(per_image(won, images), winning, adversarial)
            fooled[rows] = won
        return result, fooled
