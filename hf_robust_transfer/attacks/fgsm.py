"""The fast gradient sign method."""

from torch import Tensor

from ..threat_model import ThreatModel
from .eval_mode import Classifier
from .pgd import pgd


def fgsm(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    step_size: float | None = None,
    random_start: bool = False,
    loss: str = "cross_entropy",
    targeted: bool = False,
    seed: int = 0,
    indices: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """One step of the length of the ball's radius (Goodfellow et al., arXiv 1412.6572): the one-step case of `pgd`.

    With a random start and ``step_size = 1.25 * eps`` it is the inner step of Fast adversarial training (Wong et al.,
    arXiv 2001.03994). For l2 the step is along the gradient's direction.

    Args:
        classifier, images, labels, threat_model, loss, targeted, seed, indices, check: as for `pgd`.
        step_size: length of the step, by default ε.
        random_start: start at a uniform point of the ball.

    Returns:
        Adversarial images, detached, of the images' shape and dtype.

    Raises:
        UsageError: as `pgd`.

    Example:
        >>> import torch
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> fgsm(classifier, torch.rand(2, 3, 2, 2), torch.tensor([0, 1]), ThreatModel()).shape
        torch.Size([2, 3, 2, 2])
    """
    return pgd(
        classifier,
        images,
        labels,
        threat_model,
        steps=1,
        step_size=threat_model.eps if step_size is None else step_size,
        random_start=random_start,
        loss=loss,
        targeted=targeted,
        seed=seed,
        indices=indices,
        check=check,
    )
