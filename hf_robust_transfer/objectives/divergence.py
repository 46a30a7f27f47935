"""What the distillations compare: distributions of a teacher and a student, given as logits."""

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p_T ‖ p_S) of each sample, shape (B,), in float32 at least; gradients flow into both, as callers leave them.

    Args:
        teacher: logits (B, classes), of the distribution that the expectation is taken over.
        student: logits (B, classes).
        temperature: both logits are divided by it.

    Example:
        >>> divergence(torch.tensor([[0.0, 0.0]]), torch.log(torch.tensor([[0.25, 0.75]]))).item()  # ln 2 − ln 3 / 2
        0.143841...
    """
    target, given = (F.log_softmax(precise(logits) / temperature, 1) for logits in (teacher, student))
    return F.kl_div(given, target, reduction="none", log_target=True).sum(1)


def entropy(logits: Tensor, order: float = 1.0) -> Tensor:
    """The Rényi entropy log(Σ pᵞ) / (1 − γ) of each sample's distribution, shape (B,), in nats; of order 1 Shannon's.

    Args:
        logits: (B, classes).
        order: γ, above 0.

    Example:
        >>> entropy(torch.zeros(1, 4)).item(), entropy(torch.zeros(1, 4), order=2.0).item()  # ln 4
        (1.386294..., 1.386294...)
    """
    log = F.log_softmax(precise(logits), 1)
    if abs(order - 1) < 1e-6:
        return -(log.exp() * log).sum(1)
    return torch.logsumexp(order * log, 1) / (1 - order)


def precise(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where they are: differences of close ones vanish in bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
