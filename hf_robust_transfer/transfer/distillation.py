"""The lifelong-learning (LwF) term: the student's features stay close to those of the frozen robust source."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..errors import UsageError
from ..functions import choose_function
from ..modeling.adapters import merged
from ..modeling.classifier import PixelClassifier
from ..modeling.heads import feature_sizes
from ..modeling.input_size import model_channels
from .matching import at_pixels_of

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


def make_teacher(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    given: PixelClassifier | None,
    weight: float,
    device: torch.device,
) -> PixelClassifier | None:
    """The frozen teacher whose features the model's are kept close to, in the terms of the model's images.

    A teacher for images of another size gets the model's resized, as `at_pixels_of` does it, and normalises them itself.

    Args:
        model: the model that is about to be trained.
        processor: its image processor.
        given: the teacher; by default a copy of the model as it is now, which is the source: z₀(x, θ*) of the paper.
        weight: of LwF; with 0 there is no need of a teacher.
        device: where to have it.

    Raises:
        UsageError: it is no `PixelClassifier`, it is the model itself or shares weights with it, or its features are of
            another size than the model's, or it takes grey images and the model those in colour.
    """
    if given is not None and not isinstance(given, PixelClassifier):
        raise UsageError(f"teacher is a {type(given).__name__}: give PixelClassifier(source, processor)")
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} - {0}  # 0: there is none here
    if given is not None and any(each.untyped_storage().data_ptr() in own for each in given.parameters()):
        raise UsageError(
            "the teacher shares its weights with the model that trains: get_peft_model changes a model in place, so load it"
            " on its own, with teacher=PixelClassifier(*load_model(…))"
        )
    teacher = given
    if weight and teacher is None:
        whole = merged(model, needed=False)
        teacher = PixelClassifier(copy.deepcopy(model) if whole is model else whole, processor)
    if teacher is None:
        return None
    sizes = [sum(feature_sizes(each)) for each in (model, teacher.model)]
    if weight and sizes[0] != sizes[1]:
        raise UsageError(
            f"the teacher's features have size {sizes[1]}, the model's {sizes[0]}: LwF needs a teacher of the same"
            " architecture, usually the source itself"
        )
    teacher = teacher.to(device).eval().requires_grad_(False)
    if given is None:
        return teacher
    _check_channels(teacher, model)
    return at_pixels_of(teacher, processor)


def _check_channels(teacher: PixelClassifier, model: PreTrainedModel) -> None:
    """Make sure that a teacher takes images of the model's channels; an RGB one takes grey images, too."""
    channels, own = model_channels(model), model_channels(teacher.model)
    if own == 1 != channels:
        raise UsageError(f"the teacher takes grey images, the model those of {channels} channels: LwF shows both the same")
