"""No mask passes that hides more than five points, and no honest model is accused: a table that `docs/` prints.

Networks of digits that the test's recipe trains, in seconds; the fast tests take some of them.
"""

import importlib
import sys
from pathlib import Path

import pytest

REPRODUCE = Path(__file__).resolve().parents[2] / "recipes/reproduce"
sys.path.append(str(REPRODUCE))
models = importlib.import_module("masked_models")
# What at least notices each mask.
NOTICED_BY = {
    "sign of the pixels": "vanishing_gradients",
    "logits × 10 000": "listed_attacks_fool_as_many",
    "logits clipped at ±7": "gradient_is_the_slope",
    "gradient right in 20%": "gradient_is_the_slope",
    "smoothing noise 0.2": "same_answer_again",
    "logits rippled": "listed_attacks_fool_as_many",
}
SOME_HONEST = ("robust", "l2", "ε = 1e-9")


def failed(report):
    return [check.name for check in report.self_checks if not check.passed]


@pytest.mark.parametrize("name", NOTICED_BY)
def test_a_mask_is_noticed(name):
    report = models.evaluated(models.MASKED[name])
    assert NOTICED_BY[name] in failed(report)
    assert "**Warning: these figures may overstate robustness.**" in report.markdown()


@pytest.mark.parametrize("name", SOME_HONEST)
def test_an_honest_model_is_not_accused(name):
    assert failed(models.evaluated(models.HONEST[name])) == []


def test_without_gradients_all_checks_of_gradients_warn():
    report = models.evaluated(models.MASKED["staircase"])
    assert {*failed(report)} >= {"huge_eps", "gradient_beats_noise", "vanishing_gradients", "gradient_is_the_slope"}
    assert "WARNING vanishing_gradients" in report.summary() and report.claim.lowered


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MASKED)
def test_no_mask_hides_more_than_five_points_without_a_warning(name):
    case = models.MASKED[name]
    report = models.evaluated(case)
    assert failed(report) or report.worst_case.value - models.truth(case, report) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models.HONEST if name not in SOME_HONEST])
def test_no_honest_model_is_accused(name):
    assert failed(models.evaluated(models.HONEST[name])) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", models.UNNOTICED)
def test_what_the_documentation_says_is_not_noticed_is_not(name):
    assert failed(models.evaluated(models.UNNOTICED[name])) == []
