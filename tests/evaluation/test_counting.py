"""A report counts only where its figures are those of its own predictions."""

import json
from dataclasses import asdict, replace

import pytest
from made_report import made_report

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation import RobustnessReport, evaluate_robustness
from hf_robust_transfer.evaluation.accuracy import Accuracy
from hf_robust_transfer.evaluation.counting import check_report
from hf_robust_transfer.evaluation.report import CurvePoint
from hf_robust_transfer.threat_model import ThreatModel

LABELS = ("ant", "bee", "cow")
FIGURES = "its accuracies or their intervals are not those of its predictions"
PREDICTIONS = "its predictions are not one for each image, label and attack"
NAME = "an attack's name is not that of its options"
CONDITIONS = "its threat model, settings or times are none"
CURVE = "its curve has accuracies or intervals that no number of images gives"
CHECKS = "its self-checks are not those of the predictions under their attacks"


def at(*path, to):
    """A change of one value in a report's JSON; a function is applied to what is there."""

    def change(content):
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = to(content[path[-1]]) if callable(to) else to

    return change


TAMPERED = [
    (at("worst_case", "value", to=0.999), FIGURES),
    (at("worst_case", "lower", to=0.9), FIGURES),
    (at("clean", to={"value": 1.0, "lower": 0.9, "upper": 1.0}), FIGURES),
    (at("clean", "value", to="1.0"), FIGURES),
    (at("clean", "upper", to=float("nan")), FIGURES),
    (at("attacks", 0, "accuracy", "value", to=0.9), FIGURES),
    (at("attacks", 1, "success_rate", "upper", to=0.1), FIGURES),
    (at("attacks", 1, "accuracy", to=None), FIGURES),
    (at("per_class", 0, "clean", "value", to=0.2), FIGURES),
    (at("per_class", 1, "samples", to=200), FIGURES),
    (at("per_class", 2, "label", to="**cow**"), FIGURES),
    (at("per_class", to=lambda rows: rows[:2]), FIGURES),
    (at("per_class", 0, "attacks", "pgd-20", "value", to=1.0), FIGURES),
    (at("settings", "cascade", to=True), FIGURES),
    (at("settings", "cascade", to="yes"), CONDITIONS),
    (at("data", "samples", to=8000), PREDICTIONS),
    (at("predictions", "pgd-20", 3, to=7), PREDICTIONS),
    (at("predictions", "pgd-20", 3, to=-1), PREDICTIONS),
    (at("predictions", "pgd-20", 0, to=0.0), PREDICTIONS),
    (at("predictions", "clean", to=lambda values: values[:-1]), PREDICTIONS),
    (at("predictions", "cw-100", to=[0] * 8), PREDICTIONS),
    (at("predictions", "labels", to="00112220"), PREDICTIONS),
    (at("predictions", to=[]), PREDICTIONS),
    (at("attacks", 1, "options", "steps", to=1000), NAME),
    (at("attacks", 1, "options", "restarts", to=5), NAME),
    (at("attacks", 1, "options", "speed", to=5), NAME),
    (at("attacks", 1, "kind", to="autoattack"), NAME),
    (at("threat_model", "eps", to=-1), CONDITIONS),
    (at("threat_model", "norm", to="l7"), CONDITIONS),
    (at("threat_model", "bounds", to=[0, 255]), CONDITIONS),
    (at("settings", "seed", to="<b>0</b>"), CONDITIONS),
    (at("settings", "chunk_size", to=None), CONDITIONS),
    (at("model", "input_shape", to=["3", "8"]), CONDITIONS),
    (at("timing", "seconds", "attacks", "fgsm", to=float("inf")), CONDITIONS),
    *((at("data", "sides", to=sides), "the sides of its images are none") for sides in (
        "64", [64, 480], [64, 480, 500], [0, 480, 64], [64, float("nan"), 64], ["64", 480, 240], [64, 1e9, 240], {}
    )),
    (at("curve", 1, "accuracy", "value", to=0.33), CURVE),
    (at("curve", 1, "accuracy", "upper", to=1.0), CURVE),
    (at("curve", 1, "samples", to=8000), CURVE),
    (at("curve", 0, "accuracy", to=asdict(Accuracy.of([True] * 4))), CURVE),
    (at("curve", 2, "accuracy", to=asdict(Accuracy.of([True] * 4))), CURVE),
]  # fmt: skip


def with_curve():
    half, quarter = (Accuracy.of([index < count for index in range(4)]) for count in (2, 1))
    points = [CurvePoint(0.0, 4, Accuracy.of([True, True, True, False])), CurvePoint(0.01, 4, half)]
    return made_report(curve=[*points, CurvePoint(8 / 255, 4, quarter)])


@pytest.fixture
def read(tmp_path):
    """A function (change) -> the report as it is read, with that change in its file."""

    def read(change=lambda content: None, report=None):
        (report or with_curve()).save(tmp_path)
        file = tmp_path / "robustness.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return RobustnessReport.load(tmp_path)

    return read


@pytest.mark.parametrize(("change", "what"), TAMPERED)
def test_a_report_that_was_changed_is_refused_in_one_line_that_says_what(read, change, what):
    check_report(read(), LABELS)
    with pytest.raises(UsageError) as refused:
        check_report(read(change), LABELS)
    assert str(refused.value).startswith(f"robustness.json does not agree with itself: {what}; evaluate again")


def test_another_model_s_labels_and_a_stronger_attack_s_name_are_refused(read):
    with pytest.raises(UsageError, match="its accuracies or their intervals"):
        check_report(read(), ("ant", "cow", "bee"))

    def renamed(content):
        for part in (content["predictions"], content["timing"]["seconds"]["attacks"]):
            part["autoattack"] = part.pop("pgd-20")
        for row in content["per_class"]:
            row["attacks"]["autoattack"] = row["attacks"].pop("pgd-20")
        content["attacks"][1]["name"] = "autoattack"

    with pytest.raises(UsageError, match="an attack's name is not that of its options"):
        check_report(read(renamed), LABELS)


@pytest.mark.parametrize("cascade", [False, True])
def test_what_an_evaluation_writes_agrees_and_its_self_checks_follow_from_its_predictions(classifier, data, read, cascade):
    options = {"self_check_samples": 20, "curve_samples": 20, "chunk_size": 20, "progress": False, "cascade": cascade}
    report = evaluate_robustness(classifier, data[:40], ThreatModel("linf", 0.1), ["fgsm", "pgd-20:restarts=2"], **options)
    labels = list("0123456789")
    check_report(report, labels)
    check_report(read(report=report), labels)
    check = next(index for index, check in enumerate(report.self_checks) if check.name == "more_steps")
    tampered = [
        at("self_checks", check, "passed", to=lambda passed: not passed),
        at("self_checks", check, "figure", to=0.5),
        at("self_checks", to=lambda checks: [each for each in checks if each["name"] != "listed_attacks_fool_as_many"]),
        at("self_check_predictions", "pgd-100", to=lambda values: [(value + 1) % 10 for value in values]),
        *([] if cascade else [at("self_check_predictions", "fgsm", 0, to=lambda value: (value + 1) % 10)]),
    ]
    for change in tampered:
        with pytest.raises(UsageError, match=CHECKS):
            check_report(read(change, report), labels)


def test_attacks_from_elsewhere_have_no_name_to_be_checked_but_none_of_ours(read):
    report = with_curve()
    elsewhere = [replace(report.attacks[0], name="fgsm", kind="mine:attack"), report.attacks[1]]
    with pytest.raises(UsageError, match="an attack's name"):
        check_report(read(report=replace(report, attacks=elsewhere)), LABELS)
