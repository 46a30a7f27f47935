"""The logits of any classifier, whatever it wraps them in and whatever floating type it computes in."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UsageError


def logits_of(classifier: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """The logits that a classifier gives for images.

    Args:
        classifier: a module or any function. It may return logits, an output that holds them as ``logits`` (as
            `transformers` models do), or a tuple that begins with them.
        images: floating pixels (B, C, H, W). For a module with parameters of other types alone, they are cast to what it
            computes in, to float32 at least.

    Returns:
        Logits of shape (B, classes), in the type that the classifier gave them in.

    Raises:
        UsageError: integer pixels, a module of another type that does not take these, or something else than logits of at
            least two classes.

    Example:
        >>> logits_of(lambda images: (images.flatten(1), "more"), torch.rand(5, 3, 2, 2)).shape
        torch.Size([5, 12])
    """
    if not images.is_floating_point():
        raise UsageError(f"images are {images.dtype}: pass floating pixels, as as_pixels makes them of uint8")
    own = _own_type(classifier, images.dtype)
    images = images.to(torch.promote_types(own, torch.float32) if own != images.dtype else own)
    try:
        output = classifier(images)
    except RuntimeError as error:
        if own == images.dtype:
            raise
        reason = str(error).partition("\n")[0]
        raise UsageError(f"the classifier, which computes in {own}, fails on {images.dtype} images: {reason}") from error
    output = logits_in(output)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images) or output.shape[1] < 2:
        came = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
        raise UsageError(
            f"the classifier must give logits of shape ({len(images)}, classes) with at least 2 classes for {len(images)}"
            f" images, not an output of {came}"
        )
    return output


def logits_in(output: Any) -> Any:
    """The logits in what a classifier returned: ``logits`` of an output or a dictionary, the first entry of a tuple.

    Example:
        >>> logits_in({"loss": 0.5, "logits": [[1.0, 2.0]]})
        [[1.0, 2.0]]
    """
    if isinstance(output, Mapping):
        return output.get("logits")
    if not isinstance(output, Tensor) and hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, tuple | list) and output else output


def _own_type(classifier: Any, dtype: torch.dtype) -> torch.dtype:
    """The given type where a module has parameters of it, or none at all, else that of its own."""
    widest = None
    for parameter in classifier.parameters() if isinstance(classifier, nn.Module) else ():
        if parameter.dtype == dtype:
            return dtype
        if parameter.is_floating_point():
            widest = parameter.dtype if widest is None else torch.promote_types(widest, parameter.dtype)
    return dtype if widest is None else widest
