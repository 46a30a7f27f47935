"""The lifelong-learning (LwF) term: the student's features stay close to those of the frozen robust source."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from ..functions import choose_function

Distance = Callable[[Tensor, Tensor], Tensor]


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """‖z − z₀‖₁ of each sample, shape (B,): the distance of the paper's released code."""
    return (student - teacher).abs().sum(1)


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """‖z − z₀‖₂ of each sample, shape (B,): the distance that the paper writes. Its gradient at z = z₀ is 0."""
    return (student - teacher).norm(dim=1)


def squared_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """‖z − z₀‖₂² of each sample, shape (B,)."""
    return (student - teacher).square().sum(1)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 − cos(z, z₀) of each sample, shape (B,): blind to the features' length."""
    return 1 - F.cosine_similarity(student, teacher, dim=1)


DISTANCES: dict[str, Distance] = {"l1": l1, "l2": l2, "squared_l2": squared_l2, "cosine": cosine}


def feature_distance(student: Tensor, teacher: Tensor, distance: str | Distance = "l2") -> Tensor:
    """The mean over the batch of the distance between penultimate features (Shafahi et al., ICLR 2020, eq. 3).

    Args:
        student: the student's features z(x, θ) at clean images, (B, D).
        teacher: the frozen source's features z₀(x, θ*) at the same images, (B, D); no gradient flows into them.
        distance: ``"l1"``, ``"l2"``, ``"squared_l2"`` or ``"cosine"``; or a function of your own from both to the distance
            of each sample, (B,), as it is or, from any module or file, as ``"module:function"``.

    Returns:
        A scalar. The distance is taken in float32 or, for float64 features, in float64.

    Raises:
        UsageError: an unknown distance, or features of different sizes.

    Example:
        >>> feature_distance(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).item()
        5.0
    """
    return feature_distances(student, teacher, distance).mean()


def feature_distances(student: Tensor, teacher: Tensor, distance: str | Distance = "l2") -> Tensor:
    """What `feature_distance` is the mean of: the distance of each sample, (B,); arguments and errors as there."""
    function = choose_function(distance, DISTANCES, "--lwf_distance") if isinstance(distance, str) else distance
    if student.shape != teacher.shape:
        raise UsageError(
            f"the teacher's features have size {teacher.shape[1]} but the student's {student.shape[1]}: LwF needs a teacher"
            " of the student's own architecture"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    return function(student.to(dtype), teacher.detach().to(dtype))
