"""Self-checks: signs that a robustness figure should not be believed, after Carlini et al. 2019 (arXiv 1902.06705)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn

from ..attacks.eval_mode import untouched
from ..modeling.classifier import full_precision
from ..threat_model import ThreatModel
from .target import Attack

SUBSAMPLE_ATTACKS = ("noise", "fgsm", "pgd-20", "pgd-100", "square-500")
# At a huge ε hardly an image may remain; hardly an image may be without a gradient.
_MOST_ROBUST, _MOST_VANISHING = 0.05, 0.1
# The largest entry of a gradient that float32 holds no better than a zero.
_VANISHING = 1e-12


@dataclass(frozen=True)
class SelfCheck:
    """One check: its name, whether it passed, its figure, and what it compared on how many samples."""

    name: str
    passed: bool
    figure: float
    detail: str


def huge_threat_model(threat_model: ThreatModel, shape: Sequence[int]) -> ThreatModel:
    """A ball in which every image can become uniform grey: no classifier is robust in it.

    Args:
        threat_model: the one of the evaluation.
        shape: of an image.
    """
    low, high = threat_model.bounds
    half = (high - low) / 2
    radius = half if threat_model.norm == "linf" else half * float(np.prod(shape)) ** 0.5
    return ThreatModel(threat_model.norm, radius, threat_model.bounds)


def no_robustness_at_huge_eps(robust: np.ndarray[Any, Any], threat_model: ThreatModel) -> SelfCheck:
    """Hardly a sample may stay robust where images can be turned to grey: else the attack fails, not the adversary.

    Args:
        robust: whether each sample is, under the huge threat model, bool (n,).
        threat_model: that one.
    """
    share = float(robust.mean())
    return SelfCheck(
        "huge_eps",
        share <= _MOST_ROBUST,
        share,
        f"PGD-20 with {threat_model.norm} ε = {threat_model.eps:.3g} leaves {share:.1%} of {len(robust)} samples robust;"
        f" at most {_MOST_ROBUST:.0%} is expected",
    )


def at_least_as_strong(
    name: str,
    stronger: tuple[str, np.ndarray[Any, Any]],
    weaker: tuple[str, np.ndarray[Any, Any]],
    *,
    strictly: bool = False,
) -> SelfCheck:
    """The stronger attack must fool as many samples as the weaker one, beyond noise.

    Noise is judged by a one-sided sign test at 5 % on the samples that only one of the two fooled.

    Args:
        name: of the check.
        stronger, weaker: an attack's name and whether each sample is robust under it, bool (n,).
        strictly: it must fool more than the weaker one, unless no sample is left for that.
    """
    (strong_name, strong), (weak_name, weak) = stronger, weaker
    only_weak, only_strong = int((strong & ~weak).sum()), int((weak & ~strong).sum())
    worse = only_weak > 0 and binomtest(only_weak, only_weak + only_strong, alternative="greater").pvalue < 0.05
    idle = strictly and bool(weak.any()) and only_strong <= only_weak
    return SelfCheck(
        name,
        not worse and not idle,
        float(strong.mean() - weak.mean()),
        f"{strong_name} leaves {strong.mean():.1%} of {len(strong)} samples robust, {weak_name} {weak.mean():.1%};"
        f" {only_strong} fooled by {strong_name} alone, {only_weak} by {weak_name} alone",
    )


def vanishing_gradients(classifier: nn.Module, images: Tensor, labels: Tensor) -> SelfCheck:
    """Gradient attacks need gradients: the share of samples whose cross-entropy has none to speak of at the clean image.

    Args:
        classifier: maps [0, 1] images to logits.
        images: (B, C, H, W).
        labels: int64 (B,).
    """
    with torch.inference_mode(False), torch.enable_grad(), untouched(classifier), full_precision(classifier):
        images = images.detach().clone().requires_grad_()
        loss = F.cross_entropy(classifier(images), labels, reduction="sum")
        # A classifier that cuts the graph altogether has no gradient either.
        gradient = torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    largest = torch.zeros(len(images)) if gradient is None else gradient.flatten(1).abs().amax(1)
    share = float((largest <= _VANISHING).double().mean())
    return SelfCheck(
        "vanishing_gradients",
        share <= _MOST_VANISHING,
        share,
        f"{share:.1%} of {len(images)} samples have no gradient (largest entry up to {_VANISHING:g}); at most"
        f" {_MOST_VANISHING:.0%} is expected",
    )


def strength(attack: Attack) -> tuple[int, int]:
    """Sorts white-box attacks of the order AutoAttack, PGD with many steps, PGD with few, FGSM from strong to weak."""
    rank = {"autoattack": 0, "pgd": 1, "fgsm": 2}.get(attack.kind, 3)
    return rank, -attack.options.get("steps", 0) * attack.options.get("restarts", 1)


def order(robust: Mapping[str, np.ndarray[Any, Any]], attacks: Sequence[Attack]) -> list[SelfCheck]:
    """AutoAttack ≤ PGD-100 ≤ PGD-20 ≤ FGSM, of those that were run; each neighbour is compared.

    (None can be above the clean accuracy, since only samples that are classified correctly are attacked.)

    Args:
        robust: by an attack's name, whether each sample is robust under it, bool (N,).
        attacks: those that were run.
    """
    ranked = sorted((attack for attack in attacks if attack.kind in ("autoattack", "pgd", "fgsm")), key=strength)
    return [
        at_least_as_strong("order", (strong.name, robust[strong.name]), (weak.name, robust[weak.name]))
        for strong, weak in pairwise(ranked)
    ]
