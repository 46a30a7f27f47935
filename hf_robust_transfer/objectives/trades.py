"""TRADES."""

import torch.nn.functional as F

from ..functions import Weight
from .step import ObjectiveOutput, TrainingStep


def trades(step: TrainingStep, *, beta: Weight = 6.0) -> ObjectiveOutput:
    """CE(f(x), y) + β · KL(p(x) ‖ p(x')), x' maximising that divergence (Zhang et al., arXiv 1901.08573, eq. 5).

    The divergence is the mean over the batch, and its gradient flows through both sides, as in the authors' code. Unlike
    `pgd_adversarial_training` it sees clean images, so an LwF term costs no further student pass.

    Args:
        step: the batch.
        beta: the weight of robustness against clean accuracy (1/λ in the paper).

    Example:
        >>> from functools import partial
        >>> objective = partial(trades, beta=3.0)
    """
    adversarial = step.pgd_images("kl")
    clean = step.clean()
    divergence = F.kl_div(
        F.log_softmax(step.student(adversarial), 1),
        F.log_softmax(clean.logits, 1),
        reduction="batchmean",
        log_target=True,
    )
    return ObjectiveOutput({"natural": F.cross_entropy(clean.logits, step.labels), "trades": beta * divergence}, clean)
