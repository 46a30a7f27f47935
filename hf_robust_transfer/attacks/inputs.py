"""What an attack is given, checked in one place."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from ..logits import logits_of
from ..threat_model import ThreatModel
from .eval_mode import Classifier

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Inputs(NamedTuple):
    """An attack's inputs as it computes with them.

    ``images`` (B, C, H, W) floating, ``labels`` and ``indices`` int64 (B,), on the images' device; ``classify`` maps
    images to the classifier's logits, in the images' dtype and in float32 at least.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    classify: Classifier


def checked_inputs(
    classifier: Any,
    images: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    indices: Tensor | None = None,
    *,
    values: bool = True,
) -> Inputs:
    """Read an attack's inputs, and refuse those that it would give a wrong result for.

    Args:
        classifier, images, labels, threat_model, indices: as for `pgd`; labels may be of any integer type.
        values: look at the values of images and labels, for which a GPU makes the host wait, and not only at their types
            and shapes.

    Raises:
        UsageError: images that are no batch of floating pixels in the threat model's box, labels that are not one class
            index of the classifier's for each, or a radius that the box of such images does not hold. On the first call
            of ``classify``: a classifier that does not give logits, or has no class of the largest label.
    """
    if not isinstance(images, Tensor) or images.dtype not in _FLOATING or images.dim() != 4:
        raise UsageError(
            f"images are {_described(images)}: an attack needs a tensor of floating pixels of shape (B, C, H, W); of uint8,"
            " as_pixels makes them"
        )
    threat_model.check_radius(images.shape[1:])
    labels = _one_each("labels", labels, images)
    indices = torch.arange(len(images), device=images.device) if indices is None else _one_each("indices", indices, images)
    largest = _checked_values(images, labels, threat_model) if values and len(images) else 0
    dtype = torch.promote_types(images.dtype, torch.float32)

    def classify(shown: Tensor) -> Tensor:
        found = logits_of(classifier, shown)
        if largest >= found.shape[1]:
            raise UsageError(f"label {largest} is out of range: the classifier has the {found.shape[1]} classes from 0 on")
        return found.to(dtype)

    return Inputs(images, labels, indices, classify)


def _one_each(name: str, values: Tensor, images: Tensor) -> Tensor:
    """One whole number for each image, as int64 on the images' device."""
    whole = isinstance(values, Tensor) and not (values.is_floating_point() or values.is_complex())
    if not whole or values.dtype == torch.bool or values.shape != images.shape[:1]:
        raise UsageError(
            f"{name} are {_described(values)}: an attack on {len(images)} images needs an integer tensor of shape"
            f" ({len(images)},)"
        )
    return values.to(images.device, torch.int64)


def _checked_values(images: Tensor, labels: Tensor, threat_model: ThreatModel) -> int:
    """The largest label, once pixels lie in the box and no label is negative."""
    low, high = threat_model.bounds
    darkest, brightest = images.detach().aminmax()
    outside = ~((darkest >= low) & (brightest <= high))  # compared in the images' type; also where they are NaN
    found = torch.stack([each.double() for each in (outside, darkest, brightest, *labels.aminmax())])
    is_outside, least, most, smallest, largest = found.tolist()  # the one time that a GPU makes the host wait
    if is_outside:
        raise UsageError(
            f"images lie between {least:.3g} and {most:.3g}, but the threat model's pixels in [{low:g}, {high:g}]: divide"
            " those up to 255 by 255, and do not normalise them, the classifier does it inside"
        )
    if smallest < 0:
        raise UsageError(f"label {int(smallest)} is out of range: class indices start from 0; leave unlabelled images out")
    return int(largest)


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
