"""The losses that attacks ascend."""

import torch
import torch.nn.functional as F
from torch import Tensor


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


LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "kl": kl}
