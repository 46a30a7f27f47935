"""Adversarial images whose features stay where the source has those of the clean ones."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..functions import Weight
from ..modeling.classifier import PixelClassifier
from .step import ObjectiveOutput, TrainingStep


class _Features(nn.Module):
    def __init__(self, classifier: PixelClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.outputs(images).features


def anchor(step: TrainingStep, *, weight: Weight = 1.0, labels: Weight = 1.0) -> ObjectiveOutput:
    """CE(f(x), y) + λ · d(z(x'), z₀(x)), x' maximising that distance: the LwF term at adversarial images.

    z₀ are the features of the frozen source, d the distance that LwF would have (``args.lwf_distance``). With squared l2
    and ``labels=0`` it is FARE (Schlarmann et al., arXiv 2402.12336), which needs no labels: a source becomes robust on
    images that nobody sorted, and its head is trained afterwards. While the backbone is held still, the head learns from
    clean images alone.

    Args:
        step: the batch.
        weight: λ, of the distance.
        labels: the weight of the cross-entropy on clean images; with 0 the labels play no part.

    Example:
        >>> from functools import partial
        >>> fare = partial(anchor, labels=0.0)
    """
    clean = None
    terms: dict[str, Tensor] = {}
    if step.features is None:
        adversarial = step.pgd_images(lambda _, z: step.distance_to_source(z), of=_Features(step.attacked))
        terms["anchor"] = weight * step.distance_to_source(step.student.outputs(adversarial).features).mean()
    if labels or not terms:
        clean = step.clean()
        terms["natural"] = labels * F.cross_entropy(clean.logits, step.labels)
    return ObjectiveOutput(terms, clean)


anchor.of_source = True  # type: ignore[attr-defined]
anchor.clean_only = True  # type: ignore[attr-defined]
