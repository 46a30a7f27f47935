"""The threat model: which images an adversary may show instead of the clean one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from .errors import UsageError
from .randomness import normal, uniform

NORMS = ("linf", "l2")


def parse_eps(value: str | float, name: str = "eps") -> float:
    """Read a radius or a step size in pixel units: ``"8/255"``, ``8/255`` or ``"0.031"``.

    Args:
        value: a number, or a string holding a number or a fraction.
        name: what to call it in an error.

    Raises:
        ValueError: not a finite, non-negative number.

    Example:
        >>> parse_eps("8/255") == 8 / 255
        True
    """
    try:
        number = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError, TypeError):
        raise UsageError(f"{name}={value!r} is not a number: write it like 8/255 or 0.031") from None
    if not 0 <= number < float("inf"):
        raise UsageError(f"{name}={value} must be a finite number of at least 0")
    return number


@dataclass(frozen=True)
class ThreatModel:
    """A norm ball of radius ``eps`` around each image, cut with the box of valid pixels.

    Every attack draws its start, takes its steps and projects through these three methods, so that what differs between
    norms is written once. Images are float tensors of shape (B, C, H, W) in pixel units; what comes back has their dtype,
    float16 and bfloat16 included, and lies in the ball also after rounding to it.

    Args:
        norm: ``"linf"`` or ``"l2"``.
        eps: the radius, a number or a string like ``"8/255"``. For linf it may not exceed the width of the pixel box.
        bounds: the lowest and the highest valid pixel.

    Raises:
        ValueError: an unknown norm, a radius that is no number or out of range, or empty bounds.

    Example:
        >>> ThreatModel("linf", "8/255")
        ThreatModel(norm='linf', eps=0.03137254901960784, bounds=(0.0, 1.0))
    """

    norm: str = "linf"
    eps: float = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"norm={self.norm!r} is unknown: use one of {', '.join(NORMS)}")
        object.__setattr__(self, "eps", parse_eps(self.eps))
        low, high = self.bounds
        if not low < high:
            raise UsageError(f"bounds={self.bounds} are empty: the first must be below the second")
        if self.norm == "linf" and self.eps > high - low:
            raise UsageError(
                f"eps={self.eps:g} is larger than the whole pixel range [{low:g}, {high:g}] for linf:"
                f" divide it by 255, as in {self.eps:g}/255"
            )

    def scaled(self, factor: float) -> "ThreatModel":
        """The same threat model with radius ``factor * eps`` (ε warm-up)."""
        return ThreatModel(self.norm, self.eps * factor, self.bounds)

    def widest(self, shape: Sequence[int]) -> float:
        """The largest distance between two images of a shape (C, H, W): a larger radius allows nothing more.

        Example:
            >>> ThreatModel("l2", 0.5).widest((3, 2, 2)) == 12**0.5
            True
        """
        low, high = self.bounds
        return high - low if self.norm == "linf" else (high - low) * math.prod(shape) ** 0.5

    def check_radius(self, shape: Sequence[int]) -> None:
        """Refuse a radius that is larger than `widest` for images of a shape (C, H, W).

        Raises:
            UsageError: it is.
        """
        widest = self.widest(shape)
        if self.eps > widest:
            raise UsageError(
                f"eps={self.eps:g} is larger than the {self.norm} diagonal of the pixel box, {widest:g} for images of shape"
                f" {tuple(shape)}: divide it by 255, as in {self.eps:g}/255"
            )

    def random_start(self, images: Tensor, keys: Tensor) -> Tensor:
        """A point drawn uniformly from the ball around each image, then moved into the box.

        Args:
            images: clean images, (B, C, H, W).
            keys: one key per sample, from `hf_robust_transfer.randomness.sample_keys`.
        """
        shape, dtype = images.shape[1:], torch.promote_types(images.dtype, torch.float32)
        if self.norm == "linf":
            delta = (2 * uniform(keys, shape, dtype) - 1) * self.eps
        else:
            # A uniform direction, and a radius of U^(1/d), is uniform in the d-dimensional ball.
            direction = normal(keys, shape, dtype)
            radius = uniform(~keys, (1, 1, 1), dtype) ** (1 / shape.numel())
            delta = direction * (self.eps * radius / _l2(direction))
        return self.project(images + delta.to(images.device), images)

    def step(self, gradient: Tensor, step_size: float) -> Tensor:
        """The steepest-ascent step of length ``step_size``: the sign of the gradient for linf, its direction for l2.

        A zero gradient gives a zero step, and so does one that is NaN.
        """
        gradient = gradient.nan_to_num()
        if self.norm == "linf":
            return step_size * gradient.sign()
        # Divided by its largest entry first, so that the squares of a tiny or huge gradient neither vanish nor overflow.
        largest = gradient.flatten(1).abs().amax(1).view(-1, *[1] * (gradient.dim() - 1))
        direction = gradient / torch.where(largest > 0, largest, 1)
        return direction * (step_size / _l2(direction).clamp_min(1e-12))

    def clip(self, delta: Tensor) -> Tensor:
        """Project perturbations (B, C, H, W) onto the ball, whatever image they are to be added to."""
        return _added(torch.zeros_like(delta), self._clipped(_wide(delta)))

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """Project onto the ball around ``images``, then onto the box.

        For linf this is the Euclidean-nearest point of their intersection. For l2 it is a point of the intersection
        (clipping to a box that contains the centre never increases the distance to it), but not always the nearest.

        Returns:
            Images of the dtype of ``images``, whose `distance` is at most ε.
        """
        return _added(images, self._clipped(_wide(adversarial) - _wide(images))).clamp(*self.bounds)

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The distance of each adversarial image from its clean one in this norm, float64 of shape (B,)."""
        delta = (_wide(adversarial) - _wide(images)).flatten(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)

    def _clipped(self, delta: Tensor) -> Tensor:
        if self.norm == "linf":
            return delta.clamp(-self.eps, self.eps)
        length = _l2(delta)
        # What is inside stays as it is; what is not ends inside also where the product is rounded up.
        return torch.where(length > self.eps, delta * (self.eps * (1 - 1e-12) / length), delta)


def _l2(tensor: Tensor) -> Tensor:
    """Per-sample l2 norm, shaped (B, 1, 1, 1) to broadcast."""
    return tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.dim() - 1))


def _wide(tensor: Tensor) -> Tensor:
    """In float64, where float32 images differ exactly; in float32 on Apple's GPUs, which have no wider type."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _added(images: Tensor, delta: Tensor) -> Tensor:
    """``images + delta`` in the images' dtype, rounded so that no pixel is farther from its clean one than ``delta``."""
    exact = _wide(images)
    moved = (exact + delta).to(images.dtype)
    too_far = (_wide(moved) - exact).abs() > delta.abs()
    return torch.where(too_far, torch.nextafter(moved, images), moved)
