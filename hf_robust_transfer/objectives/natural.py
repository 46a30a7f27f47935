"""Natural training."""

import torch.nn.functional as F

from .step import ObjectiveOutput, TrainingStep


def natural(step: TrainingStep) -> ObjectiveOutput:
    """Cross-entropy on clean images: CE(f(x), y).

    With a frozen backbone or an LwF term this is the paper's robust transfer, at the cost of natural training.

    Example:
        >>> from hf_robust_transfer.objectives import OBJECTIVES
        >>> OBJECTIVES["natural"] is natural
        True
    """
    clean = step.clean()
    return ObjectiveOutput({"natural": F.cross_entropy(clean.logits, step.labels)}, clean)


natural.clean_only = True  # type: ignore[attr-defined]
