"""Fast adversarial training."""

import torch.nn.functional as F

from ..attacks import fgsm
from .step import ObjectiveOutput, TrainingStep


def fast(step: TrainingStep) -> ObjectiveOutput:
    """Cross-entropy on FGSM examples from a random start, with a step of 1.25 ε (Wong et al., arXiv 2001.03994).

    One attack step instead of the several of `pgd_adversarial_training`. Long runs can overfit to the single step
    ("catastrophic overfitting": robust accuracy under PGD drops to 0), so watch ``eval_robust_accuracy``.

    Example:
        >>> from hf_robust_transfer.objectives import OBJECTIVES
        >>> OBJECTIVES["fast"] is fast
        True
    """
    if step.threat_model.eps == 0:
        return ObjectiveOutput({"adversarial": F.cross_entropy(step.student(step.images), step.labels)})
    adversarial = fgsm(
        step.attacked,
        step.images,
        step.labels,
        step.threat_model,
        step_size=1.25 * step.threat_model.eps,
        random_start=True,
        seed=step.seed,
        indices=step.indices,
        check=False,
    )
    return ObjectiveOutput({"adversarial": F.cross_entropy(step.student(adversarial), step.labels)})
