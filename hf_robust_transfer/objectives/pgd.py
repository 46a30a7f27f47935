"""PGD adversarial training."""

import torch.nn.functional as F

from .step import ObjectiveOutput, TrainingStep


def pgd_adversarial_training(step: TrainingStep) -> ObjectiveOutput:
    """Cross-entropy on PGD examples: max over the threat model of CE(f(x'), y) (Madry et al., arXiv 1706.06083).

    Costs ``attack_steps`` forward and backward passes to the images, then one of each to the weights. For a cheaper
    relative see `fast` and `free`; for a tunable trade-off with clean accuracy, `trades`.

    Example:
        >>> from hf_robust_transfer.objectives import OBJECTIVES
        >>> OBJECTIVES["pgd"] is pgd_adversarial_training
        True
    """
    return ObjectiveOutput({"adversarial": F.cross_entropy(step.student(step.pgd_images()), step.labels)})
