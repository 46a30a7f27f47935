"""Frozen networks that a model is compared with: the source whose features it keeps, the teacher whose logits it learns."""

import copy

import torch
from transformers import BaseImageProcessor, PreTrainedModel

from ..errors import UsageError
from ..modeling.adapters import merged
from ..modeling.classifier import PixelClassifier
from ..modeling.heads import feature_sizes
from ..modeling.input_size import model_channels
from .matching import at_pixels_of, matched_teacher


def make_source(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    given: PixelClassifier | None,
    needed: bool,
    device: torch.device,
) -> PixelClassifier | None:
    """The frozen source whose features the model's are kept close to, in the terms of the model's images.

    A source for images of another size gets the model's resized, as `at_pixels_of` does it, and normalises them itself.

    Args:
        model: the model that is about to be trained.
        processor: its image processor.
        given: the source; by default a copy of the model as it is now: z₀(x, θ*) of the paper.
        needed: whether features are compared at all.
        device: where to have it.

    Raises:
        UsageError: it is no `PixelClassifier`, it is the model itself or shares weights with it, or its features are of
            another size than the model's, or it takes grey images and the model those in colour.
    """
    source = None if given is None else _frozen(given, model, device)
    if not needed:
        return None
    if source is None:
        whole = merged(model, needed=False)
        copied = PixelClassifier(copy.deepcopy(model) if whole is model else whole, processor)
        source = _frozen(copied, model, device)
    sizes = [sum(feature_sizes(each)) for each in (model, source.model)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"the teacher's features have size {sizes[1]}, the model's {sizes[0]}: LwF needs a teacher of the same"
            " architecture, usually the source itself"
        )
    return source if given is None else at_pixels_of(source, processor)


def make_teacher(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    given: PixelClassifier | None,
    objective: str,
    device: torch.device,
) -> PixelClassifier:
    """The frozen teacher whose logits an objective learns, for the model's labels and at its pixels.

    Args:
        model: the model that is about to be trained.
        processor: its image processor.
        given: the teacher.
        objective: that asks for it.
        device: where to have it.

    Raises:
        UsageError: there is none, what `make_source` refuses of one, or its labels are not the model's
            (`hf_robust_transfer.transfer.matched_teacher`).
    """
    if given is None:
        raise no_teacher(objective)
    return matched_teacher(_frozen(given, model, device), processor, PixelClassifier(model, processor).labels)


def no_teacher(objective: str) -> UsageError:
    """What to say where an objective has no teacher to learn from."""
    return UsageError(
        f"--objective {objective} learns from a teacher: give --teacher_name_or_path, or from Python"
        " teacher=PixelClassifier(*load_model(…)). A robust source becomes a teacher of your labels in minutes, by"
        " finetune --transfer frozen on your data"
    )


def _frozen(given: PixelClassifier, model: PreTrainedModel, device: torch.device) -> PixelClassifier:
    """A network apart from the model, in eval mode, that takes its images."""
    if not isinstance(given, PixelClassifier):
        raise UsageError(f"teacher is a {type(given).__name__}: give PixelClassifier(source, processor)")
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} - {0}  # 0: there is none here
    if any(each.untyped_storage().data_ptr() in own for each in given.parameters()):
        raise UsageError(
            "the teacher shares its weights with the model that trains: get_peft_model changes a model in place, so load it"
            " on its own, with teacher=PixelClassifier(*load_model(…))"
        )
    _check_channels(given, model)
    return given.to(device).eval().requires_grad_(False)


def _check_channels(teacher: PixelClassifier, model: PreTrainedModel) -> None:
    """Make sure that a teacher takes images of the model's channels; an RGB one takes grey images, too."""
    channels, own = model_channels(model), model_channels(teacher.model)
    if own == 1 != channels:
        raise UsageError(f"the teacher takes grey images, the model those of {channels} channels: both are shown the same")
