"""TRADES."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functions import Weight
from .step import ObjectiveOutput, TrainingStep


def trades(step: TrainingStep, *, beta: Weight | Literal["auto"] = 6.0) -> ObjectiveOutput:
    """CE(f(x), y) + β · KL(p(x) ‖ p(x')), x' maximising that divergence (Zhang et al., arXiv 1901.08573, eq. 5).

    The divergence is the mean over the batch, and its gradient flows through both sides, as in the authors' code. Unlike
    `pgd_adversarial_training` it sees clean images, so an LwF term costs no further student pass.

    With ``beta="auto"`` β is 6 times the clean accuracy on the training images, as they were seen in the epoch before or,
    in the first, so far (after AutoLoRa, Xu et al., arXiv 2310.01818): what is not yet classified is not yet to be robust.

    Args:
        step: the batch.
        beta: the weight of robustness against clean accuracy (1/λ in the paper), or ``"auto"``.

    Example:
        >>> from functools import partial
        >>> objective = partial(trades, beta=3.0)
    """
    adversarial = step.pgd_images("kl")
    clean = step.clean()
    terms = {"natural": F.cross_entropy(clean.logits, step.labels)}
    weight = 6 * _clean_accuracy(step, clean.logits) if beta == "auto" else beta
    if step.threat_model.eps > 0:
        divergence = F.kl_div(
            F.log_softmax(step.student(adversarial), 1),
            F.log_softmax(clean.logits, 1),
            reduction="batchmean",
            log_target=True,
        )
        terms["trades"] = weight * divergence
    return ObjectiveOutput(terms, clean)


def _clean_accuracy(step: TrainingStep, logits: Tensor) -> float:
    """Of the last epoch or, in the first, of the images so far; counted over all processes, and carried on."""
    right = (logits.detach().argmax(1) == step.labels).sum()
    counts = step.summed(torch.stack([right, torch.full_like(right, len(logits))]))
    before = step.carried.get("trades_accuracy")  # the epoch, its counts, and the accuracy of the last
    epoch, *seen, last = (-1.0, 0.0, 0.0, -1.0) if before is None else before.tolist()
    if epoch != step.epoch:
        seen, last = [0.0, 0.0], seen[0] / seen[1] if seen[1] else -1.0
    seen = [old + new for old, new in zip(seen, counts.tolist(), strict=True)]
    step.carried["trades_accuracy"] = torch.tensor([step.epoch, *seen, last])
    return last if last >= 0 else seen[0] / seen[1]
