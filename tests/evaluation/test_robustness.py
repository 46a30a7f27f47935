"""The evaluation against independent truths: hand counts, foolbox, itself in another precision."""

import math

import foolbox
import numpy as np
import pytest
import torch
from evaluated_digits import EPS, QUICK, Around, stacked
from torch import nn

from hf_robust_transfer.attacks import pgd
from hf_robust_transfer.evaluation import (
    evaluate_robustness,
)
from hf_robust_transfer.modeling import PixelClassifier
from hf_robust_transfer.modeling.attack_copy import choose_precision
from hf_robust_transfer.modeling.classifier import weights_sha256


@pytest.mark.parametrize("attack", ["pgd-20", "apgd-ce"])
def test_what_only_the_attack_holds_for_a_success_is_attacked_again_in_float32(classifier, data, attack):
    def lie_in_low_precision(logits):  # clean images are misclassified, too, which AutoAttack then leaves as they are
        return logits.roll(1, dims=1) if torch.is_autocast_enabled("cpu") else logits

    exact = evaluate_robustness(classifier, data, EPS, [attack], **QUICK)
    low = evaluate_robustness(
        Around(classifier, lie_in_low_precision), data, EPS, [attack], **{**QUICK, "precision": "bf16"}
    )
    assert low.predictions == exact.predictions and 0 < exact.worst_case.value < exact.clean.value


def test_the_report_counts_what_the_predictions_say(classifier, data):
    attacks = ["noise", "fgsm", "pgd-20", "cw-20"]
    report = evaluate_robustness(classifier, data, EPS, attacks, chunk_size=30, **QUICK)
    labels, clean = (np.array(report.predictions[name]) for name in ("labels", "clean"))
    right = clean == labels
    robust = {name: right & (np.array(report.predictions[name]) == labels) for name in attacks}
    everything = np.logical_and.reduce(list(robust.values()))
    assert report.clean.value == right.mean() and report.worst_case.value == everything.mean()
    assert [attack.accuracy.value for attack in report.attacks] == [robust[name].mean() for name in attacks]
    for attack in report.attacks:
        assert attack.success_rate.value == pytest.approx((right & ~robust[attack.name]).sum() / right.sum())
    assert report.worst_case.value <= min(attack.accuracy.value for attack in report.attacks)
    for row in report.per_class:
        of_class = labels == int(row.label)
        assert (row.samples, row.clean.value) == (of_class.sum(), right[of_class].mean())
        assert row.worst_case.value == everything[of_class].mean()
        assert row.attacks["pgd-20"].value == robust["pgd-20"][of_class].mean()
    # The Wilson interval, worked out from its formula.
    n, p, z = len(labels), everything.mean(), 1.959963984540054
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]
    assert [report.worst_case.lower, report.worst_case.upper] == pytest.approx(expected)
    # A misclassified sample is not attacked: its prediction under attack is the clean one.
    assert all((np.array(report.predictions[name]) == clean)[~right].all() for name in attacks)


def test_progress_says_which_attack_and_which_of_autoattacks_members_runs(classifier, data, capsys):
    options = {**QUICK, "progress": True}
    evaluate_robustness(classifier, data[:4], EPS, ["fgsm", "apgd-ce"], chunk_size=2, **options)
    shown = capsys.readouterr().err
    assert "fgsm: " in shown and "running apgd-ce" in shown and "robust accuracy" in shown and "of 4" in shown


def test_neither_the_chunks_nor_the_company_of_other_attacks_changes_a_figure(classifier, data):
    alone = evaluate_robustness(classifier, data, EPS, ["pgd-20"], chunk_size=100, **QUICK)
    beside = evaluate_robustness(classifier, data, EPS, ["fgsm", "pgd-20"], chunk_size=17, **QUICK)
    other = evaluate_robustness(classifier, data, EPS, ["pgd-20"], chunk_size=100, seed=1, **QUICK)
    assert alone.predictions["pgd-20"] == beside.predictions["pgd-20"]
    assert alone.data == beside.data or alone.data["samples"] == beside.data["samples"]
    assert other.settings["seed"] == 1


def test_a_cascade_shows_fooled_samples_to_no_further_attack_and_ends_at_the_same_worst_case(classifier, data):
    attacks = ["fgsm", "pgd-20", "cw-20"]
    each = evaluate_robustness(classifier, data, EPS, attacks, **QUICK)
    cascade = evaluate_robustness(classifier, data, EPS, attacks, cascade=True, **QUICK)
    assert cascade.worst_case == each.worst_case and cascade.clean == each.clean
    assert all(attack.accuracy is None and attack.success_rate is None for attack in cascade.attacks)
    labels = np.array(each.predictions["labels"])
    fooled = {name: np.array(cascade.predictions[name]) != labels for name in attacks}
    right = np.array(each.predictions["clean"]) == labels
    assert not (fooled["fgsm"] & fooled["pgd-20"] & right).any() and not (fooled["pgd-20"] & fooled["cw-20"] & right).any()


def test_fgsm_agrees_with_foolbox_and_pgd_within_its_interval(classifier, data):
    images, labels = stacked(data)
    report = evaluate_robustness(classifier, data, EPS, ["fgsm", "pgd-20"], **QUICK)
    model = foolbox.PyTorchModel(classifier.eval(), bounds=(0, 1), device="cpu")
    measured = {}
    for name, attack in (
        ("fgsm", foolbox.attacks.LinfFastGradientAttack()),
        ("pgd-20", foolbox.attacks.LinfPGD(steps=20, abs_stepsize=EPS.eps / 4)),
    ):
        _, _, fooled = attack(model, images, labels, epsilons=EPS.eps)
        measured[name] = 1 - fooled.double().mean().item()
    results = {attack.name: attack.accuracy for attack in report.attacks}
    assert results["fgsm"].value == pytest.approx(measured["fgsm"])
    assert results["pgd-20"].lower <= measured["pgd-20"] <= results["pgd-20"].upper


def test_examples_crafted_on_a_surrogate_are_judged_on_the_model(classifier, data, tiny):
    itself = evaluate_robustness(classifier, data, EPS, ["transfer"], surrogate=classifier, **QUICK)
    stranger = PixelClassifier(*tiny("timm-convnext", seed=5))
    from_stranger = evaluate_robustness(classifier, data, EPS, ["transfer"], surrogate=stranger, **QUICK)
    white_box = pgd(classifier, *stacked(data), EPS, steps=20)
    with torch.no_grad():
        labels = stacked(data)[1]
        held = (classifier(white_box).argmax(1) == labels) & (classifier(stacked(data)[0]).argmax(1) == labels)
    assert itself.worst_case.value == held.double().mean().item()
    assert from_stranger.worst_case.value > itself.worst_case.value


@pytest.mark.parametrize("attack", ["pgd-20", "apgd-ce", pytest.param("autoattack", marks=pytest.mark.slow)])
def test_attacks_in_bf16_are_judged_in_float32_and_find_what_float32_finds(classifier, data, attack):
    dtypes = []

    def watch(logits):
        dtypes.append(logits.dtype)
        return logits

    count = 100 if attack == "pgd-20" else 12
    low = evaluate_robustness(Around(classifier, watch), data[:count], EPS, [attack], **{**QUICK, "precision": "bf16"})
    assert {torch.bfloat16, torch.float32} == set(dtypes) and dtypes[0] == dtypes[-1] == torch.float32
    assert low.settings["precision"] == "bf16"
    full = evaluate_robustness(classifier, data[:count], EPS, [attack], **QUICK)
    assert abs(low.worst_case.value - full.worst_case.value) * count <= 1
    assert 0 < full.worst_case.value < full.clean.value


def test_the_precision_is_chosen_by_the_hardware_and_reported(classifier, data):
    report = evaluate_robustness(classifier, data[:4], EPS, ["fgsm"], **{**QUICK, "precision": "auto"})
    assert report.settings["precision"] == choose_precision("auto", torch.device("cpu")) != "auto"
    assert choose_precision("auto", torch.device("meta")) == "float32"


def test_evaluating_changes_neither_the_model_nor_the_random_state(classifier, data):
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    digest, state = weights_sha256(classifier), torch.random.get_rng_state()
    classifier.train()
    evaluate_robustness(classifier, data[:20], EPS, ["pgd-5", "square-20"], **QUICK)
    assert classifier.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert weights_sha256(classifier) == digest
    with torch.no_grad():
        next(classifier.parameters()).view(-1)[0] += 1
    assert weights_sha256(classifier) != digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": []}, "no sample to evaluate on"),
        ({"precision": "float16"}, "precision='float16' is unknown: use auto, float32, bf16, fp16"),
        ({"attacks": []}, "name at least one"),
        (
            {"dataset": [{"pixel_values": torch.rand(3, 8, 8) * 255, "labels": 0}]},
            "must be uint8, or floating and in [0, 1]",
        ),
        ({"dataset": [{"pixel_values": torch.rand(3, 8, 8), "labels": 10}]}, "sample 0 has label 10"),
        (
            {"classifier": nn.Sequential(nn.Flatten(), nn.Linear(192, 10))},
            "Sequential does not know the names of its labels",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(classifier, data, change, message):
    arguments = {"classifier": classifier, "dataset": data, "threat_model": EPS, "attacks": ["fgsm"], **QUICK, **change}
    with pytest.raises(ValueError) as error:
        evaluate_robustness(**arguments)
    assert message in str(error.value)
