"""Self-checks: what each of them compares, and what follows for the claim. Masked models are in `test_masked_models.py`."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from evaluated_digits import EPS, QUICK
from torch import nn

from hf_robust_transfer.evaluation import (
    RobustnessReport,
    evaluate_robustness,
    parse_attack,
)
from hf_robust_transfer.evaluation.self_checks import (
    SUBSAMPLE_ATTACKS,
    at_least_as_strong,
    gradient_beats_noise,
    gradient_is_the_slope,
    listed_attacks,
    order,
    same_answer_again,
    same_answer_in_other_company,
    vanishing_gradients,
)
from hf_robust_transfer.modeling import PixelClassifier
from hf_robust_transfer.threat_model import ThreatModel


def test_honest_models_pass_the_self_checks(classifier, data, tiny, pixels):
    options = {"curve_samples": 0, "progress": False}
    report = evaluate_robustness(classifier, data, EPS, ["fgsm", "pgd-20", "pgd-100"], **options)
    assert report.warnings == [] and len(report.self_checks) == 13
    assert "13 of 13 self-checks passed" in report.summary() and "Warning" not in report.markdown()
    assert report.claim == (report.worst_case, 100, ["fgsm", "pgd-20", "pgd-100"], False) and report.repeatable
    assert "believe" not in report.summary() + report.markdown()


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
    # It follows from the predictions: a check that somebody lets pass changes nothing.
    passed = [replace(check, passed=True) for check in understated.self_checks]
    assert replace(understated, self_checks=passed).claim == understated.claim


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, logits):
        return self.function(logits)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))


def noisy(logits):
    return logits + 0.01 * torch.randn_like(logits)


def by_place(logits):
    return logits + torch.linspace(0, 0.1, len(logits))[:, None] * torch.arange(10)


@pytest.mark.parametrize(
    ("function", "again", "elsewhere"),
    [
        (nn.Identity(), True, True),
        (noisy, False, False),
        (nn.functional.dropout, False, False),
        (lambda logits: logits * torch.nan, False, False),
        (by_place, True, False),
        (lambda logits: logits - logits.mean(0), True, False),
    ],
    ids=["honest", "noise", "dropout left on", "no numbers", "place in the batch", "statistics of the batch"],
)
def test_a_model_that_answers_the_same_images_differently_is_noticed(pixels, function, again, elsewhere):
    model = nn.Sequential(linear(), Apply(function))
    batches = list(pixels[0][:60].split(30))
    assert same_answer_again(model, batches).passed is again
    assert same_answer_in_other_company(model, batches).passed is elsewhere


@pytest.mark.parametrize("function", [nn.Identity(), noisy])
def test_the_repetition_of_a_model_that_answers_differently_is_not_promised(data, function):
    model = nn.Sequential(linear(), Apply(function))
    options = {**QUICK, "self_check_samples": 20, "labels": list("0123456789")}
    report = evaluate_robustness(model, data[:20], EPS, ["fgsm"], **options)
    assert report.repeatable is (function is not noisy)
    assert ("a repetition gives other figures" in report.markdown()) is not report.repeatable


def robust_on(*samples, count=100):
    return np.isin(np.arange(count), samples)


def test_the_listed_attacks_are_compared_with_each_attack_of_the_self_checks_and_with_all_of_them():
    listed = robust_on(*range(50))
    assert listed_attacks(listed, {"pgd-100": robust_on(*range(4, 50)), "noise": robust_on(*range(90))}).passed
    alone = listed_attacks(listed, {"pgd-100": robust_on(*range(5, 50)), "noise": robust_on(*range(90))})
    assert not alone.passed and "pgd-100 45.0%; 0 fooled by all listed" in alone.detail
    each_three = {"pgd-100": robust_on(*range(3, 50)), "cw-20": robust_on(*range(47))}
    together = listed_attacks(listed, each_three)
    assert not together.passed and "with those of the self-checks 44.0%" in together.detail
    # Six of 500 that all of them find together, three each, are no sign of anything.
    many = {name: np.concatenate([robust, robust_on(count=400)]) for name, robust in each_three.items()}
    assert listed_attacks(np.concatenate([listed, robust_on(count=400)]), many).passed


def test_a_gradient_that_fools_nothing_at_a_small_radius_must_beat_noise_in_the_huge_ball():
    everything, nothing, some = robust_on(*range(100)), robust_on(), robust_on(*range(30))
    at_small_eps = ("pgd-20", everything), ("noise", everything)
    assert gradient_beats_noise(*at_small_eps, nothing, some).passed
    assert gradient_beats_noise(*at_small_eps, nothing, nothing).passed
    assert not gradient_beats_noise(*at_small_eps, some, some).passed
    assert gradient_beats_noise(("pgd-20", some), ("noise", everything), some, some).passed


class Counting(nn.Module):
    """A classifier that counts the images that it sees."""

    def __init__(self, function):
        super().__init__()
        self.function, self.seen = function, 0

    def forward(self, images):
        self.seen += len(images)
        return self.function(images)


def test_looking_at_the_classifier_takes_few_passes(pixels):
    """Of the attacks of the self-checks alone Square makes 500, and PGD 100 steps."""
    images, labels = (each[:40] for each in pixels)
    network = Counting(linear())
    passes = []
    for check, arguments in (
        (same_answer_again, ([images],)),
        (same_answer_in_other_company, ([images],)),
        (vanishing_gradients, ([(images, labels)],)),
        (gradient_is_the_slope, (network, [(images, labels)], ThreatModel("linf", 0), 40)),
    ):
        network.seen = 0
        assert check(network, *arguments).passed
        passes.append(network.seen / 40)
    again, elsewhere, clean, slope = passes
    assert (again, elsewhere, clean) == (5, 2.5, 1)
    # At two points each: the rival, the gradient, sixteen directions to both sides; and at most twenty steps of PGD.
    assert 2 * (2 + 32) <= slope <= 2 * (2 + 32) + 20


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_the_gradient_of_a_smooth_function_is_its_slope_whatever_its_scale(pixels, norm, scale):
    images, labels = (each[:40] for each in pixels)
    torch.manual_seed(0)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.GELU(), nn.Linear(32, 10))

    def network(images):
        return scale * smooth(images)

    check = gradient_is_the_slope(network, network, [(images, labels)], ThreatModel(norm, 0.1), 40)
    assert check.passed and check.figure == 0
    for wrong in (lambda images: 0 * network(images), lambda images: network(images.flip(3))):
        check = gradient_is_the_slope(network, wrong, [(images, labels)], ThreatModel(norm, 0.1), 40)
        assert not check.passed and check.figure > 0.9
    few = gradient_is_the_slope(network, wrong, [(images[:2], labels[:2])], ThreatModel(norm, 0.1), 40)
    assert few.passed and few.figure == 0.05  # of forty
