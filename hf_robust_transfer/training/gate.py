"""What is made sure of before a model is trained, and after it was saved: that the result will be of use."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
from transformers.utils import logging

from ..attacks.eval_mode import untouched
from ..errors import UsageError
from ..hub import stand_alone
from ..logits import logits_of
from ..modeling import PixelClassifier, load_model
from ..modeling.classifier import full_precision
from ..modeling.heads import logits_of_features


def head_takes_features(classifier: PixelClassifier, images: Tensor) -> bool:
    """Whether the head alone, applied to the features, gives the logits, so that they can be computed once.

    It does not where another layer takes part beside the classifier layers (VOLO), or where these are applied to every
    token and what they give is pooled.

    Args:
        classifier: the model, in any mode; it runs in eval mode.
        images: a few in [0, 1], (B, C, H, W).
    """
    with torch.no_grad(), untouched(classifier), full_precision(classifier):
        logits, features = classifier.outputs(images)
        try:
            alone = logits_of_features(classifier.model, features)
        except UsageError:
            return False
        return _agree(alone, logits)


def check_that_it_takes(classifier: PixelClassifier, images: Tensor) -> Tensor:
    """Make sure that a model makes logits of images as its image processor makes them.

    Args:
        classifier: the model, in any mode; it runs in eval mode.
        images: a few in [0, 1], (B, C, H, W).

    Returns:
        The logits (B, classes).

    Raises:
        UsageError: it does not take such images, or gives something else, or a NaN or infinite logit.
    """
    kind = type(classifier.model).__name__
    with torch.no_grad(), untouched(classifier), full_precision(classifier):
        try:
            logits = logits_of(classifier, images)
        except UsageError:
            raise
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(
                f"{kind} makes no logits of the images that its image processor makes, {tuple(images.shape[1:])}:"
                f" {_one_line(error)}"
            ) from error
    if not torch.isfinite(logits).all():
        raise UsageError(f"{kind} gives logits that are not finite, of images in [0, 1]: its weights are of no use")
    return logits


def check_that_it_will_load(classifier: PixelClassifier, images: Tensor, folder: Path, *, processes: int = 1) -> None:
    """Make sure, on a trial, that the model can be saved, and loads again as `check_saved` demands it.

    Args:
        classifier: the model with its image processor.
        images: a few in [0, 1], (B, C, H, W), as it will be trained on.
        folder: the trial's place, which is left empty.
        processes: how many there are; the first one tries for all.

    Raises:
        UsageError: it does not take the images, cannot be saved, or does not load as what it was.
    """
    verdict: list[str | None] = [None]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        try:
            _try(classifier, images, folder)
        except UsageError as error:
            verdict = [str(error)]
    if processes > 1:
        broadcast_object_list(verdict)
    if verdict[0] is not None:
        raise UsageError(verdict[0])


def _try(classifier: PixelClassifier, images: Tensor, folder: Path) -> None:
    kind = type(classifier.model).__name__
    expected = check_that_it_takes(classifier, images)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="_trying-", dir=folder) as place:
        try:
            with _without_progress_bars():
                classifier.model.save_pretrained(place)
            classifier.processor.save_pretrained(place)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"{kind} cannot be saved, so that its training would be lost: {_one_line(error)}") from error
        stand_alone(place)
        try:
            _check_loaded(place, classifier, images, expected)
        except UsageError as error:
            raise UsageError(f"{kind} would not be the same once it is saved and loaded: {error}") from error


def check_saved(folder: str | Path, classifier: PixelClassifier, images: Tensor) -> None:
    """Make sure that a saved model loads in `transformers` and, where it is one of timm's, in timm, with equal logits.

    Args:
        folder: holds the checkpoint.
        classifier: what was saved.
        images: a few in [0, 1], (B, C, H, W).

    Raises:
        UsageError: it does not load, or gives other logits.
    """
    try:
        _check_loaded(str(folder), classifier, images, check_that_it_takes(classifier, images))
    except UsageError as error:
        raise UsageError(f"the model saved in {folder} is not the one that was trained: {error}") from error


def _check_loaded(folder: str, classifier: PixelClassifier, images: Tensor, expected: Tensor) -> None:
    given: Any = classifier.model
    with _without_progress_bars():
        if _is_stock(given):
            loaded, processor = load_model(folder)
        else:  # a class of the user's own
            loaded, processor = type(given).from_pretrained(folder), classifier.processor
    again = PixelClassifier(_like(loaded, given), processor)
    if not _same(again, classifier, images, expected):
        raise UsageError("its logits are others when transformers loads it")
    if given.config.model_type == "timm_wrapper":
        try:
            again.model.timm_model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"timm does not load it ({_one_line(error)})") from error
        _like(again.model, given)
        if not _same(again, classifier, images, expected):
            raise UsageError("its logits are others when timm loads it")


def _is_stock(model: PreTrainedModel) -> bool:
    classes: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.values()
    return any(type(model) in (kind if isinstance(kind, tuple) else (kind,)) for kind in classes)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _like(loaded: Any, given: Any) -> Any:
    return loaded.eval().to(device=given.device, dtype=given.dtype)


def _same(again: PixelClassifier, classifier: PixelClassifier, images: Tensor, expected: Tensor) -> bool:
    """Whether one classifier gives another's logits; where these are lost in rounding, in float64."""
    if _agree(check_that_it_takes(again, images), expected):
        return True
    exact = [check_that_it_takes(copy.deepcopy(each).double(), images.double()) for each in (again, classifier)]
    return _agree(exact[0].float(), exact[1].float())


def _agree(logits: Tensor, expected: Tensor) -> bool:
    if logits.shape != expected.shape:
        return False
    coarse = torch.finfo(expected.dtype).eps * 1e4
    return torch.allclose(logits, expected, rtol=0, atol=coarse * float(expected.abs().amax()) + 1e-6)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
