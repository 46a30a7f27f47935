"""The pieces of a step that attacks of the PGD family share."""

from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from ..errors import UsageError
from ..threat_model import ThreatModel, parse_eps
from .eval_mode import Classifier
from .losses import LOSSES

# Steps do not depend on the gradient's length, but in fp16 the gradient of a confident sample would vanish without this.
_SCALE = 1024
NO_GRADIENT = (
    "no gradient leads from the classifier's logits to its images (a forward pass under no_grad, or pixels through NumPy or"
    " Pillow?): take an attack without gradients, such as square"
)


def checked_step_size(
    threat_model: ThreatModel,
    steps: int,
    step_size: float | None,
    random_start: bool,
    restarts: int,
    loss: str | Callable[..., Tensor],
) -> float:
    """The step size, once all options are seen to be in range."""
    if not callable(loss) and loss not in LOSSES:
        raise UsageError(f"loss={loss!r} is unknown: use one of {', '.join(LOSSES)}")
    counted = all(isinstance(number, Integral) for number in (steps, restarts))
    if not counted or steps < 0 or restarts < 1 or (restarts > 1 and not random_start):
        raise UsageError(
            f"steps={steps}, restarts={restarts}, random_start={random_start}: steps must be a whole number of at"
            " least 0, restarts one of at least 1, and several restarts need a random start"
        )
    step_size = threat_model.eps / 4 if step_size is None else parse_eps(step_size, "step_size")
    if step_size == 0 < threat_model.eps:
        raise UsageError(f"step_size={step_size} must be above 0")
    return step_size


def clean_logits_for(classify: Classifier, images: Tensor, loss: str | Callable[..., Tensor]) -> Tensor:
    """The logits of clean images where the loss looks at them, else none."""
    if loss != "kl":
        return images.new_empty(len(images), 0)
    with torch.no_grad():
        return classify(images)


def input_gradient(objective: Tensor, adversarial: Tensor) -> Tensor:
    """The gradient of each sample's objective with respect to its own image, times a constant.

    Raises:
        UsageError: the classifier cuts the graph from its images to its logits.
    """
    gradient = None
    if objective.requires_grad:
        gradient = torch.autograd.grad(_SCALE * objective.sum(), adversarial, allow_unused=True)[0]
    if gradient is None:
        raise UsageError(NO_GRADIENT)
    return gradient


def per_image(mask: Tensor, images: Tensor) -> Tensor:
    """A mask (B,) in a shape that broadcasts over images."""
    return mask.view(-1, *[1] * (images.dim() - 1))
