"""Self-checks: honest models pass them, masked gradients do not."""

from itertools import pairwise

import numpy as np
import pytest
from evaluated_digits import EPS
from torch import nn

from hf_robust_transfer.evaluation import (
    evaluate_robustness,
    parse_attack,
)
from hf_robust_transfer.evaluation.self_checks import at_least_as_strong, order


class Masked(nn.Module):
    """A classifier whose gradients are masked: quantised inputs, and logits so large that the softmax saturates."""

    def __init__(self, classifier, *, quantise):
        super().__init__()
        self.inner, self.quantise, self.labels = classifier, quantise, classifier.labels

    def forward(self, images):
        images = (images * 8).round() / 8 if self.quantise else images
        return self.inner(images) * 1000


def test_honest_models_pass_the_self_checks(classifier, data, tiny, pixels):
    options = {"curve_samples": 0, "progress": False}
    report = evaluate_robustness(classifier, data, EPS, ["fgsm", "pgd-20", "pgd-100"], **options)
    assert report.warnings == [] and len(report.self_checks) == 9
    assert "9 of 9 self-checks passed" in report.summary() and "Warning" not in report.markdown()


@pytest.mark.parametrize("quantise", [True, False])
def test_a_gradient_masked_model_makes_the_self_checks_warn(classifier, data, quantise):
    options = {"curve_samples": 0, "progress": False}
    report = evaluate_robustness(Masked(classifier, quantise=quantise), data, EPS, ["fgsm", "pgd-20"], **options)
    failed = {check.name for check in report.self_checks if not check.passed}
    assert failed >= {"vanishing_gradients", "huge_eps", "gradient_beats_noise"}
    assert "WARNING vanishing_gradients" in report.summary()
    assert "**Warning: these figures may overstate robustness.**" in report.markdown()


@pytest.mark.parametrize(
    ("only_weaker", "only_stronger", "passed"),
    [(0, 0, True), (4, 0, True), (5, 0, False), (5, 1, True), (7, 1, False), (3, 9, True)],
)
def test_an_order_is_violated_where_a_fair_coin_would_hardly_do_it(only_weaker, only_stronger, passed):
    # 4 of 4 heads: 1/16. 5 of 5: 1/32. At least 5 of 6: 7/64. At least 7 of 8: 9/256.
    stronger, weaker = np.ones(30, bool), np.ones(30, bool)
    weaker[:only_weaker] = False
    stronger[only_weaker : only_weaker + only_stronger] = False
    check = at_least_as_strong("order", ("pgd-100", stronger), ("pgd-20", weaker))
    assert check.passed is passed and check.figure == pytest.approx((only_weaker - only_stronger) / 30)


def test_the_order_compares_neighbours_from_strong_to_weak():
    attacks = [parse_attack(name) for name in ("fgsm", "cw-100", "pgd-20", "autoattack", "pgd-20:restarts=9", "noise")]
    robust = {attack.name: np.ones(4, bool) for attack in attacks}
    details = [check.detail for check in order(robust, attacks)]
    compared = [(detail.split(" leaves ")[0], detail.split("robust, ")[1].split(" ")[0]) for detail in details]
    ranked = ["autoattack", "pgd-20:restarts=9", "pgd-20", "fgsm"]
    assert compared == list(pairwise(ranked))
