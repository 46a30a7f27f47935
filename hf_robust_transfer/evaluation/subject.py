"""The subject of an evaluation: a classifier made ready to be attacked and judged."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.ascent import per_image
from ..attacks.eval_mode import Classifier, untouched
from ..data import as_pixels, collate
from ..errors import UsageError
from ..logits import logits_of
from ..modeling.attack_copy import attack_copy, choose_precision
from ..modeling.classifier import PixelClassifier, device_of, full_precision, weights_sha256
from ..modeling.fingerprint import fingerprint
from ..threat_model import ThreatModel


@dataclass(frozen=True)
class Settings:
    """How an evaluation is carried out; none of it says what is measured.

    Args:
        seed: of all attacks.
        precision: to craft attacks in: ``"float32"``, ``"bf16"`` or ``"fp16"`` (AutoAttack then runs in float32);
            ``"auto"`` is bf16 where the hardware multiplies in it.
        compiled: craft them on a model that went through `torch.compile`: worth its minute in long evaluations.
        chunk_size: samples attacked at a time, by default 50, on a GPU 500; AutoAttack's noise depends on it.
        cascade: leave out samples that an earlier attack fooled: faster, but only the worst case is reported.
        self_check_samples: run the self-checks on at least so many first samples, in whole chunks; 0 leaves them out.
        curve_samples: likewise measure accuracy against ε, up to four times the threat model's.

    Raises:
        UsageError: an unknown precision, or a number out of range.
    """

    seed: int = 0
    precision: str = "auto"
    compiled: bool = False
    chunk_size: int | None = None
    cascade: bool = False
    self_check_samples: int = 100
    curve_samples: int = 200

    def __post_init__(self) -> None:
        choose_precision(self.precision, torch.device("cpu"))
        for name, least in {"seed": 0, "chunk_size": 1, "self_check_samples": 0, "curve_samples": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} {value} must be at least {least}")

    def on(self, device: torch.device) -> "Settings":
        """The same with what a device decides."""
        size = self.chunk_size or (50 if device.type == "cpu" else 500)
        return replace(self, precision=choose_precision(self.precision, device), chunk_size=size)


@dataclass(frozen=True)
class Subject:
    """A classifier made ready to be attacked and judged, as `make_ready` does it.

    Args:
        classifier: maps [0, 1] images (B, C, H, W) to logits, on its device.
        labels: the labels' names, in the order of the logits.
        shape: of an image, (C, H, W).
        settings: with the precision and the chunk size that the device decided.
        attacked: the classifier for attacks: a copy, as fast as it can be had in the settings' precision.
        surrogate: another model of the same labels for black-box attacks, likewise.
        weights: a hash over the classifier's weights.
        fingerprint: a hash over all that decides its predictions; of another module than a `PixelClassifier`, over its
            weights alone.
        identity: tells this subject from others with its surrogate, so that their results are not taken for its own.
    """

    classifier: nn.Module
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    settings: Settings
    attacked: Classifier
    surrogate: Classifier | None
    weights: str
    fingerprint: str
    identity: str

    @property
    def device(self) -> torch.device:
        """Where the classifier is."""
        return device_of(self.classifier)

    def exact(self, images: Tensor) -> Tensor:
        """The logits of the classifier as it is, in float32: what is judged by."""
        with full_precision(self.classifier):
            return _attached(logits_of(self.classifier, images), images)

    def predicted(self, images: Tensor) -> Tensor:
        """The classes that the classifier as it is predicts, int64 (B,).

        Raises:
            UsageError: logits that are NaN, which say nothing.
        """
        with torch.no_grad():
            logits = self.exact(images)
        unknown = int(logits.isnan().any(1).sum())
        if unknown:
            raise UsageError(
                f"the classifier's logits are NaN for {unknown} of {len(images)} images: nothing can be said about it"
                " before its weights and its forward pass are mended"
            )
        return logits.argmax(1)

    def judge(self, adversarial: Tensor, images: Tensor, threat_model: ThreatModel) -> tuple[Tensor, Tensor]:
        """The classes predicted for adversarial images, once each is moved into the threat model.

        Attacks end beside it by what they round. An image that is farther off, or has a NaN, cannot be judged.

        Args:
            adversarial: what an attack gave for ``images``, (B, C, H, W).
            images: the clean ones.
            threat_model: what is allowed.

        Returns:
            The predictions, int64 (B,), and which of them count: not those of images that are too far off, bool (B,).
        """
        inside = threat_model.project(adversarial, images)
        moved = threat_model.distance(adversarial, inside)
        rounding = threat_model.widest(images.shape[1:]) * torch.finfo(torch.float32).eps
        known = moved <= 1e-3 * threat_model.eps + rounding
        return self.predicted(torch.where(per_image(known, images), inside, images)), known

    def in_float32(self) -> "Subject":
        """The same subject, attacked as it is judged."""
        return replace(self, attacked=self.exact, settings=replace(self.settings, precision="float32"))


def make_ready(
    classifier: nn.Module,
    dataset: Any,
    settings: Settings = Settings(),
    *,
    labels: Sequence[str] | None = None,
    surrogate: nn.Module | None = None,
) -> Subject:
    """Prepare a classifier for an evaluation.

    Args:
        classifier: maps [0, 1] images (B, C, H, W) to logits; usually a `PixelClassifier`, on its device already.
        dataset: map-style, yields ``{"pixel_values": float (C, H, W) in [0, 1], …}``, at the model's resolution.
        settings: how it will be attacked.
        labels: the labels' names, by default those of a `PixelClassifier`.
        surrogate: another classifier of the same labels, which ``transfer`` crafts its examples on.

    Raises:
        UsageError: no samples, labels without names, or a classifier that does not give a logit for each label.

    Example:
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> subject = make_ready(classifier, [{"pixel_values": torch.rand(3, 2, 2)}], labels=["cat", "dog"])
        >>> subject.exact(torch.rand(5, 3, 2, 2)).shape, subject.shape
        (torch.Size([5, 2]), (3, 2, 2))
    """
    if not len(dataset):
        raise UsageError("there is no sample to evaluate on")
    labels = getattr(classifier, "labels", None) if labels is None else labels
    if labels is None:
        raise UsageError(f"{type(classifier).__name__} does not know the names of its labels: pass them as labels=")
    if isinstance(classifier, PixelClassifier):  # an adapter of peft makes everything slower
        classifier = classifier.merged()
    device = device_of(classifier)
    settings = settings.on(device)
    few = collate([{"pixel_values": dataset[index]["pixel_values"]} for index in range(min(2, len(dataset)))])
    images = as_pixels(few["pixel_values"].to(device))

    def copied(model: nn.Module) -> Classifier:
        few_sizes = settings.compiled or device.type == "cuda"
        largest = settings.chunk_size if few_sizes else None
        fast = attack_copy(model, images, settings.precision, compiled=settings.compiled, largest_batch=largest)
        return lambda shown: _attached(fast(shown), shown)

    for model in (classifier, surrogate):
        if model is not None:
            _check_outputs(model, images, labels)
    fingerprints = [_fingerprint(model) for model in (classifier, surrogate) if model is not None]
    return Subject(
        classifier=classifier,
        labels=tuple(labels),
        shape=tuple(images.shape[1:]),
        settings=settings,
        attacked=copied(classifier),
        surrogate=None if surrogate is None else copied(surrogate),
        weights=weights_sha256(classifier),
        fingerprint=fingerprints[0],
        identity=" ".join(fingerprints),
    )


def _attached(logits: Tensor, images: Tensor) -> Tensor:
    """The same logits; where the classifier cut the graph to its images, with a gradient of zero.

    So attacks run to their end, and the self-check of vanishing gradients says how it is.
    """
    if not images.requires_grad or logits.grad_fn is not None:
        return logits
    return logits.clone() + 0 * images.flatten(1).sum(1, keepdim=True)


def _check_outputs(classifier: nn.Module, images: Tensor, labels: Sequence[str]) -> None:
    """See on a few images that a classifier takes them, and gives a logit for each label."""
    with torch.no_grad(), untouched(classifier), full_precision(classifier):
        try:
            classes = logits_of(classifier, images).shape[1]
        except (AssertionError, RuntimeError, ValueError) as error:
            known = isinstance(error, UsageError | torch.OutOfMemoryError)
            if known or not isinstance(classifier, PixelClassifier):
                raise
            kind, reason = type(classifier.model).__name__, " ".join(str(error).split())
            raise UsageError(f"{kind} takes no images of the shape {tuple(images.shape[1:])}: {reason}") from error
    if classes != len(labels):
        raise UsageError(f"the classifier has {classes} logits, but there are names of {len(labels)} labels")


def _fingerprint(classifier: nn.Module) -> str:
    if isinstance(classifier, PixelClassifier):
        whole = fingerprint(classifier.model, classifier.processor)
        if classifier.input_size is None and classifier.columns is None:
            return whole
        return hashlib.sha256(repr((whole, classifier.input_size, classifier.columns)).encode()).hexdigest()
    return weights_sha256(classifier)
