"""Self-checks: honest models pass them, masked gradients do not."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from evaluated_digits import EPS, QUICK, Around
from torch import nn

from hf_robust_transfer.evaluation import (
    RobustnessReport,
    evaluate_robustness,
    parse_attack,
)
from hf_robust_transfer.evaluation.self_checks import SUBSAMPLE_ATTACKS, at_least_as_strong, order
from hf_robust_transfer.modeling import PixelClassifier
from hf_robust_transfer.threat_model import ThreatModel


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
    assert report.warnings == [] and len(report.self_checks) == 13
    assert "13 of 13 self-checks passed" in report.summary() and "Warning" not in report.markdown()
    assert report.claim == (report.worst_case, 100, ["fgsm", "pgd-20", "pgd-100"], False) and report.repeatable
    assert "believe" not in report.summary() + report.markdown()


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


@pytest.fixture(scope="module")
def understated(trained, data):
    """The report of an evaluation by noise alone, at a radius where PGD fools half of the images."""
    options = {**QUICK, "self_check_samples": 40, "chunk_size": 20}
    return evaluate_robustness(PixelClassifier(*trained), data, ThreatModel("linf", 0.15), ["noise"], **options)


def test_self_checks_that_fool_more_than_the_listed_attacks_warn_and_lower_the_claim(understated, classifier, data):
    (check,) = (check for check in understated.self_checks if not check.passed)
    assert check.name == "listed_attacks_fool_as_many" and "all listed attacks together leaves" in check.detail
    among_themselves = evaluate_robustness(
        classifier, data[:40], ThreatModel("linf", 0.15), SUBSAMPLE_ATTACKS, chunk_size=20, **QUICK
    )
    claim = understated.claim
    assert claim.lowered and claim.samples == 40 and claim.attacks == list(SUBSAMPLE_ATTACKS)
    assert claim.accuracy == among_themselves.worst_case and claim.accuracy.value < understated.worst_case.value - 0.2
    for text in (understated.summary(), understated.markdown()):
        assert f"believe {claim.accuracy}, the worst case over noise, fgsm, pgd-20" in text


def test_a_lower_claim_comes_back_as_it_was_saved(understated, tmp_path):
    understated.save(tmp_path)
    loaded = RobustnessReport.load(tmp_path)
    assert loaded == understated and loaded.claim == understated.claim


def noisy(logits):
    return logits + 0.01 * torch.randn_like(logits)


def by_place(logits):
    return logits + torch.linspace(0, 0.1, len(logits))[:, None] * torch.arange(10)


@pytest.mark.parametrize(
    ("function", "failed"),
    [
        (noisy, {"same_answer_again", "same_answer_in_other_company"}),
        (nn.functional.dropout, {"same_answer_again", "same_answer_in_other_company"}),
        (by_place, {"same_answer_in_other_company"}),
        (lambda logits: logits - logits.mean(0), {"same_answer_in_other_company"}),
    ],
    ids=["noise", "dropout left on", "place in the batch", "statistics of the batch"],
)
def test_a_model_that_answers_differently_is_noticed_and_its_repetition_not_promised(classifier, data, function, failed):
    model = Around(classifier, function)
    report = evaluate_robustness(model, data[:20], EPS, ["fgsm"], **{**QUICK, "self_check_samples": 20})
    answers = {check.name for check in report.self_checks if not check.passed and check.name.startswith("same_answer")}
    assert answers == failed
    assert report.repeatable is ("same_answer_again" not in failed)
    assert ("a repetition gives other figures" in report.markdown()) is not report.repeatable
