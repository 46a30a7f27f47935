"""Self-checks: signs that a robustness figure should not be believed, after Carlini et al. 2019 (arXiv 1902.06705)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor

from ..attacks import early_stopping_pgd
from ..attacks.eval_mode import Classifier
from ..randomness import fold_in, sample_keys, uniform
from ..threat_model import ThreatModel
from .target import Attack

SUBSAMPLE_ATTACKS = ("noise", "fgsm", "pgd-20", "pgd-100", "cw-20", "square-500")
# The check that says whether an evaluation can be repeated.
REPEATED = "same_answer_again"
# At a huge ε hardly an image may remain; hardly an image may be without a gradient, or with one that is not the slope.
_MOST_ROBUST, _MOST_VANISHING, _MOST_MISLED = 0.05, 0.05, 0.05
# From this share of samples on it matters that the self-checks' attacks fooled them and the listed ones did not.
_LEAST_MISSED = 0.03
# The largest entry of a gradient that float32 holds no better than a zero.
_VANISHING = torch.finfo(torch.float32).tiny
# Logits differ by rounding up to this share of the largest: for the same images again, and for the images in another order.
_ROUNDING, _ROUNDING_ELSEWHERE = 1e-5, 1e-3
_REPETITIONS = 4
# Differences are taken over so many random directions, an eighth of a grey level to each side; a gradient agrees with them
# from this cosine on.
_DIRECTIONS, _DIFFERENCE, _AGREEMENT = 16, 1 / 2048, 0.8


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
) -> SelfCheck:
    """The stronger attack must fool as many samples as the weaker one, beyond noise.

    Noise is judged by a one-sided sign test at 5 % on the samples that only one of the two fooled.

    Args:
        name: of the check.
        stronger, weaker: an attack's name and whether each sample is robust under it, bool (n,).
    """
    (strong_name, strong), (weak_name, weak) = stronger, weaker
    only_weak, only_strong = int((strong & ~weak).sum()), int((weak & ~strong).sum())
    worse = only_weak > 0 and binomtest(only_weak, only_weak + only_strong, alternative="greater").pvalue < 0.05
    return SelfCheck(
        name,
        not worse,
        float(strong.mean() - weak.mean()),
        f"{strong_name} leaves {strong.mean():.1%} of {len(strong)} samples robust, {weak_name} {weak.mean():.1%};"
        f" {only_strong} fooled by {strong_name} alone, {only_weak} by {weak_name} alone",
    )


def gradient_beats_noise(
    gradient: tuple[str, np.ndarray[Any, Any]],
    noise: tuple[str, np.ndarray[Any, Any]],
    gradient_at_huge_eps: np.ndarray[Any, Any],
    noise_at_huge_eps: np.ndarray[Any, Any],
) -> SelfCheck:
    """An attack that follows gradients must fool more than noise does: at ε, or else in the huge ball.

    At a small ε neither may fool anything. What fools no more than noise does in the huge ball either follows nothing.

    Args:
        gradient, noise: an attack's name and whether each sample is robust under it at ε, bool (n,).
        gradient_at_huge_eps, noise_at_huge_eps: likewise in the huge ball.
    """
    check = at_least_as_strong("gradient_beats_noise", gradient, noise)
    idle = noise[1].sum() <= gradient[1].sum() and gradient_at_huge_eps.sum() >= noise_at_huge_eps.sum() > 0
    more = f"; in the huge ball they leave {gradient_at_huge_eps.mean():.1%} and {noise_at_huge_eps.mean():.1%}"
    return replace(check, passed=check.passed and not idle, detail=check.detail + more)


def listed_attacks(listed: np.ndarray[Any, Any], others: Mapping[str, np.ndarray[Any, Any]]) -> SelfCheck:
    """No attack of the self-checks, nor all of them, may fool more samples than all listed ones together, beyond noise.

    That all of them do must matter too: among many samples, a few more that so many attacks find are no sign.

    Args:
        listed: whether each sample is robust under all listed attacks, bool (n,).
        others: by the name of each attack of the self-checks, whether each sample is robust under it.
    """
    together = np.logical_and.reduce([listed, *others.values()])
    matters = (listed & ~together).mean() >= _LEAST_MISSED
    compared = [
        at_least_as_strong("listed_attacks_fool_as_many", ("all listed attacks together", listed), (name, robust))
        for name, robust in [*others.items(), *([("with those of the self-checks", together)] if matters else [])]
    ]
    return max(compared, key=lambda check: (not check.passed, check.figure))


def comparisons(robust: Mapping[str, np.ndarray[Any, Any]], listed: np.ndarray[Any, Any]) -> list[SelfCheck]:
    """The checks that follow from what the attacks of the self-checks left at ε.

    Args:
        robust: by the name of each of `SUBSAMPLE_ATTACKS`, whether each sample is robust under it, bool (n,).
        listed: whether each is under all listed attacks.
    """
    named = {name: (name, held) for name, held in robust.items()}
    white_box = min(("pgd-20", "pgd-100"), key=lambda name: robust[name].mean())
    return [
        at_least_as_strong("more_steps", named["pgd-100"], named["pgd-20"]),
        at_least_as_strong("steps_beat_one_step", named["pgd-20"], named["fgsm"]),
        at_least_as_strong("one_step_beats_noise", named["fgsm"], named["noise"]),
        at_least_as_strong("white_box_beats_black_box", named[white_box], named["square-500"]),
        listed_attacks(listed, robust),
    ]


def same_answer_again(classifier: Classifier, batches: Sequence[Tensor]) -> SelfCheck:
    """A model that answers the same images differently has no robust accuracy that could be measured again.

    Args:
        classifier: maps [0, 1] images to logits.
        batches: of images (B, C, H, W).
    """
    figure = _largest_difference(classifier, batches, lambda images: [(images, slice(None))] * _REPETITIONS)
    return SelfCheck(
        REPEATED,
        figure <= _ROUNDING,
        figure,
        f"logits of the same images differ by up to {figure:.2g} of the largest, over {_REPETITIONS + 1} passes; at most"
        f" {_ROUNDING:g} is rounding",
    )


def same_answer_in_other_company(classifier: Classifier, batches: Sequence[Tensor]) -> SelfCheck:
    """The answer to an image may depend neither on the images beside it nor on its place among them.

    Args:
        classifier, batches: as for `same_answer_again`.
    """

    def elsewhere(images: Tensor) -> list[tuple[Tensor, Any]]:
        backwards, half = torch.arange(len(images)).flip(0), torch.arange(0, len(images), 2)
        return [(images[rows], rows) for rows in (backwards, half)]

    figure = _largest_difference(classifier, batches, elsewhere)
    return SelfCheck(
        "same_answer_in_other_company",
        figure <= _ROUNDING_ELSEWHERE,
        figure,
        f"logits of the same images in another order, and of every other one alone, differ by up to {figure:.2g} of the"
        f" largest; at most {_ROUNDING_ELSEWHERE:g} is rounding",
    )


def _largest_difference(classifier: Classifier, batches: Sequence[Tensor], again: Any) -> float:
    """The largest difference of logits, relative to the largest logit, between passes over images and over them again."""
    figure = 0.0
    with torch.no_grad():
        for images in batches:
            logits = classifier(images)
            for other, rows in again(images):
                difference = (classifier(other) - logits[rows]).abs().amax() / logits.abs().amax().clamp_min(1e-30)
                figure = max(figure, float(difference.nan_to_num(torch.inf)))
    return figure


def gradient_is_the_slope(
    classifier: Classifier,
    attacked: Classifier,
    batches: Sequence[tuple[Tensor, Tensor]],
    threat_model: ThreatModel,
    samples: int,
    *,
    seed: int = 0,
) -> SelfCheck:
    """On images that no attack fooled, the gradient that attacks follow must be the slope of the loss.

    The margin's differences along random directions, taken at a random point of the ball and where PGD on the margin ends,
    are compared with what the gradient there says of them, by the cosine between the two over the directions. A gradient
    that is zero, noise, or right in some pixels only has a low one, wherever it leads. Where it does, a sample's robustness
    is not known.

    Args:
        classifier: maps [0, 1] images to logits, as it is judged.
        attacked: the same for attacks, differentiable.
        batches: of images (B, C, H, W) that no attack fooled, and their labels (B,).
        threat_model: in which they were attacked.
        samples: of how many those are what is left.
        seed: of the points and the directions.
    """
    looked = sum(len(labels) for _, labels in batches)
    misled = 0
    for number, (images, labels) in enumerate(batches):
        own_seed = fold_in(seed, number)
        indices = torch.arange(len(images), device=images.device)
        start = threat_model.random_start(images, sample_keys(own_seed, indices))
        end, _ = early_stopping_pgd(attacked, images, labels, threat_model, loss="margin", seed=own_seed, indices=indices)
        cosines = [_agreement(classifier, attacked, points, labels, threat_model, own_seed) for points in (start, end)]
        misled += int((~(torch.stack(cosines) >= _AGREEMENT)).any(0).sum())  # what is not a number is no agreement
    share = misled / samples
    return SelfCheck(
        "gradient_is_the_slope",
        share <= _MOST_MISLED,
        share,
        f"on {misled} of the {looked} samples that no attack fooled the gradient is not the slope of the loss (its cosine"
        f" with differences over {_DIRECTIONS} random directions is below {_AGREEMENT:g}), so that they may not be robust:"
        f" {share:.1%} of {samples} samples; at most {_MOST_MISLED:.0%} is expected",
    )


def _agreement(
    classifier: Classifier, attacked: Classifier, points: Tensor, labels: Tensor, threat_model: ThreatModel, seed: int
) -> Tensor:
    """The cosine between differences and what the gradient says of them at points (B, C, H, W); shape (B,)."""
    indices = torch.arange(len(points), device=points.device)
    low, high = threat_model.bounds
    length = _DIFFERENCE * (high - low)
    points = points.clamp(low + length, high - length)

    with torch.no_grad():
        rivals = classifier(points).scatter(1, labels[:, None], -torch.inf).argmax(1)

    def lead(logits: Tensor) -> Tensor:
        return (logits.gather(1, rivals[:, None]) - logits.gather(1, labels[:, None]))[:, 0].double()

    gradient = _gradient(lambda images: lead(attacked(images)), points)
    found, told = [], []
    for direction in range(1, _DIRECTIONS + 1):
        step = length * (uniform(sample_keys(fold_in(seed, direction), indices), points.shape[1:]) - 0.5).sign()
        with torch.no_grad():
            found.append(lead(classifier(points + step)) - lead(classifier(points - step)))
        told.append((gradient * step).flatten(1).sum(1).double())
    return F.cosine_similarity(torch.stack(found), torch.stack(told), dim=0, eps=0)


def _gradient(function: Any, images: Tensor) -> Tensor:
    """The gradient of a function (B, C, H, W) -> (B,); zero for one that cuts the graph."""
    with torch.inference_mode(False), torch.enable_grad():
        images = images.detach().clone().requires_grad_()
        reached = function(images).sum()
        found = torch.autograd.grad(reached, images, allow_unused=True)[0] if reached.requires_grad else None
    return torch.zeros_like(images) if found is None else found


def vanishing_gradients(classifier: Classifier, batches: Sequence[tuple[Tensor, Tensor]]) -> SelfCheck:
    """Gradient attacks need gradients: the share of samples whose cross-entropy has none to speak of at the clean image.

    Args:
        classifier: maps [0, 1] images to logits.
        batches: of images (B, C, H, W) and their labels (B,).
    """
    gradients = [
        _gradient(lambda images, labels=labels: F.cross_entropy(classifier(images), labels, reduction="none"), images)
        for images, labels in batches
    ]
    largest = torch.cat([gradient.flatten(1).abs().amax(1) for gradient in gradients])
    share = float((~(largest > _VANISHING)).double().mean())  # a NaN is no gradient either
    return SelfCheck(
        "vanishing_gradients",
        share <= _MOST_VANISHING,
        share,
        f"{share:.1%} of {len(largest)} samples have no gradient (largest entry up to {_VANISHING:.2g}); at most"
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
