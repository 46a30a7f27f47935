"""What a card claims of a model's robustness: nothing that the self-checks refuted."""

import json

import pytest

from hf_robust_transfer.evaluation import RobustnessReport, evaluate_robustness
from hf_robust_transfer.hub.card import evaluation_results, model_card, read_facts
from hf_robust_transfer.modeling import PixelClassifier, load_model
from hf_robust_transfer.threat_model import ThreatModel


@pytest.fixture(scope="module")
def understated(trained, data, tmp_path_factory):
    """The folder of a checkpoint that was evaluated by noise alone, which fools hardly any image."""
    folder = tmp_path_factory.mktemp("understated")
    for part in trained:
        part.save_pretrained(folder)
    options = {"self_check_samples": 40, "curve_samples": 0, "chunk_size": 20, "progress": False}
    classifier = PixelClassifier(*load_model(str(folder)))
    evaluate_robustness(classifier, data, ThreatModel("linf", 0.15), ["noise"], data_name="me/digits", **options).save(
        folder
    )
    return folder


def test_a_card_claims_the_lower_figure_of_the_self_checks_and_says_so(understated):
    claim = RobustnessReport.load(understated).claim
    card = str(model_card(read_facts(understated), "you/mine"))
    headline = next(line for line in card.splitlines() if line.startswith("An image classifier"))
    assert f"a robust accuracy of {claim.accuracy.value:.1%} (worst case of noise, fgsm, pgd-20" in headline
    assert "on the first 40 of them: more than the listed attacks found" in headline
    assert f"| **worst case with the self-checks' attacks, on the first 40 images** | **{claim.accuracy}** |" in card
    assert "--self_check_samples 40 --attacks noise" in card
    assert "**Warning: self-checks failed" in card and "The self-checks' attacks fooled significantly more" in card


def test_a_model_index_holds_the_lower_figure_of_the_self_checks(understated):
    report = RobustnessReport.load(understated)
    worst = evaluation_results(report)[-1]
    assert (worst.metric_value, worst.metric_args["samples"]) == (report.claim.accuracy.value, 40)
    assert worst.metric_value < report.worst_case.value and worst.metric_args["attack"] == report.claim.attacks


def test_a_card_promises_no_repetition_of_a_model_that_answers_differently(published):
    content = json.loads((published / "robustness.json").read_text())
    assert "a repetition gives other figures" not in str(model_card(read_facts(published), "you/mine"))
    again = next(check for check in content["self_checks"] if check["name"] == "same_answer_again")
    again |= {"passed": False, "figure": 0.2}
    (published / "robustness.json").write_text(json.dumps(content))
    card = str(model_card(read_facts(published), "you/mine"))
    assert "a repetition gives other figures" in card and "To measure it again" not in card
