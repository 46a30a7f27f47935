"""Robustness evaluation against independent truths: other attack libraries, hand counts, a killed and a second process."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import datasets
import foolbox
import numpy as np
import pytest
import torch
from PIL import Image
from pyautoattack import AutoAttack
from sklearn.datasets import load_digits
from torch import nn

from hf_robust_transfer.attacks import early_stopping_pgd, pgd
from hf_robust_transfer.data import DataArguments, load_evaluation_split
from hf_robust_transfer.evaluation import (
    RobustnessReport,
    autoattack,
    evaluate_robustness,
    load_metric,
    parse_attack,
    parse_attacks,
)
from hf_robust_transfer.evaluation.evaluator import RobustnessEvaluator
from hf_robust_transfer.evaluation.plots import plot_curve, plot_examples
from hf_robust_transfer.evaluation.report import eps_text
from hf_robust_transfer.evaluation.self_checks import at_least_as_strong, order
from hf_robust_transfer.evaluation.subject import make_ready
from hf_robust_transfer.modeling import PixelClassifier
from hf_robust_transfer.modeling.attack_copy import attack_copy, choose_precision
from hf_robust_transfer.modeling.classifier import weights_sha256
from hf_robust_transfer.randomness import fold_in
from hf_robust_transfer.threat_model import ThreatModel

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = {"self_check_samples": 0, "curve_samples": 0, "progress": False, "precision": "float32"}
EPS = ThreatModel("linf", 0.06)


@pytest.fixture(scope="module")
def pixels():
    """All digits as RGB pixels (N, 3, 8, 8) in [0, 1], and their labels."""
    loaded = load_digits()
    return torch.tensor(loaded.images / 16, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1), torch.tensor(loaded.target)


@pytest.fixture(scope="module")
def trained(tiny, pixels):
    """A tiny ConvNeXt that has learned the digits with adversarial training, and its image processor."""
    model, processor = tiny("timm-convnext")
    classifier = PixelClassifier(model, processor)
    images, labels = (each[:1400] for each in pixels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for step in range(300):
        rows = torch.randint(len(images), (64,), generator=generator)
        attacked = pgd(classifier, images[rows], labels[rows], EPS, steps=2, step_size=0.04, seed=step)
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(attacked), labels[rows]).backward()
        optimizer.step()
    model.eval()
    return model, processor


@pytest.fixture
def classifier(trained):
    return PixelClassifier(*trained)


@pytest.fixture(scope="module")
def data(pixels):
    """The 100 digits after those of training, as items of a data set."""
    images, labels = (each[1400:1500] for each in pixels)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]


class Around(nn.Module):
    """A classifier whose logits pass through a function."""

    def __init__(self, classifier, function):
        super().__init__()
        self.inner, self.labels, self.function = classifier, classifier.labels, function

    def forward(self, images):
        return self.function(self.inner(images))


def stacked(items):
    return torch.stack([item["pixel_values"] for item in items]), torch.tensor([item["labels"] for item in items])


def without_times(report):
    return {name: value for name, value in report.items() if name != "timing"}


# ---- attacks that stop early, attacks by name, AutoAttack ----


def test_a_sample_leaves_the_attack_when_it_is_fooled_and_the_others_do_not_notice(classifier, data):
    images, labels = stacked(data)
    images, double = images.double(), copy.deepcopy(classifier).double()
    seen = []

    def counting(batch):
        seen.append(len(batch))
        return double(batch)

    options = {"steps": 20, "seed": 3}
    whole = pgd(double, images, labels, EPS, **options)
    early, claimed = early_stopping_pgd(counting, images, labels, EPS, **options)
    with torch.no_grad():
        held, held_early = (double(batch).argmax(1) == labels for batch in (whole, early))
    assert not (held_early & ~held).any()  # who is fooled after all steps was fooled at some step
    assert 0 < held_early.sum() < len(labels) and not (claimed & held_early).any()
    assert torch.allclose(early[held_early], whole[held_early], atol=1e-12)
    assert (EPS.distance(early, images) <= EPS.eps + 1e-9).all()
    assert seen == sorted(seen, reverse=True) and seen[-1] < seen[0]
    assert len(seen) == 20  # no pass beyond the steps: the last image is left to the judge


def test_with_most_samples_fooled_the_others_alone_take_the_backward_pass(data):
    images, labels = stacked(data)
    backward = []

    def mostly_fooled(batch):  # says "not the label" but for the first ten, by the pixel that tells samples apart
        logits = torch.zeros(len(batch), 10) + batch.mean((1, 2, 3))[:, None]
        if batch.requires_grad:
            logits.register_hook(lambda gradient: backward.append(len(gradient)))
        return logits + 5 * nn.functional.one_hot(torch.where(batch[:, 0, 0, 0] > 0.5, wanted[0], wanted[1]), 10)

    wanted = torch.tensor([0, 1])
    marked = images.clone()
    marked[:, 0, 0, 0] = 0.0
    marked[:10, 0, 0, 0] = 1.0
    early_stopping_pgd(mostly_fooled, marked, torch.zeros_like(labels), EPS, steps=3)
    assert backward == [10, 10, 10]


def test_fooled_samples_take_no_part_in_further_restarts(classifier, data):
    images, labels = stacked(data)
    seen = []

    def counting(batch):
        seen.append(len(batch))
        return classifier(batch)

    once, _ = early_stopping_pgd(counting, images, labels, EPS, steps=5)
    seen.clear()
    thrice, claimed = early_stopping_pgd(counting, images, labels, EPS, steps=5, restarts=3)
    with torch.no_grad():
        held_once, held_thrice = (classifier(batch).argmax(1) == labels for batch in (once, thrice))
    assert not (held_thrice & ~held_once).any() and not (claimed & held_thrice).any()
    assert seen == sorted(seen, reverse=True) and seen[-1] <= held_once.sum()
    assert (EPS.distance(thrice, images) <= EPS.eps + 1e-6).all()


def test_close_to_the_boundary_low_precision_is_not_trusted(classifier, data):
    images, labels = stacked(data)
    low = attack_copy(classifier, images[:2], "bf16")
    denied = {}
    for lead in (0.0, 2**-7):
        adversarial, claimed = early_stopping_pgd(low, images, labels, EPS, steps=20, lead=lead)
        with torch.no_grad():
            denied[lead] = (claimed & (classifier(adversarial).argmax(1) == labels)).sum()
        assert claimed.sum() > 5
    assert denied[2**-7] == 0 <= denied[0.0]


@pytest.mark.parametrize("attack", ["pgd-20", "apgd-ce"])
def test_what_only_the_attack_holds_for_a_success_is_attacked_again_in_float32(classifier, data, attack):
    def lie_in_low_precision(logits):  # clean images are misclassified, too, which AutoAttack then leaves as they are
        return logits.roll(1, dims=1) if torch.is_autocast_enabled("cpu") else logits

    exact = evaluate_robustness(classifier, data, EPS, [attack], **QUICK)
    low = evaluate_robustness(
        Around(classifier, lie_in_low_precision), data, EPS, [attack], **{**QUICK, "precision": "bf16"}
    )
    assert low.predictions == exact.predictions and 0 < exact.worst_case.value < exact.clean.value


def test_attacks_are_read_with_their_numbers_and_options():
    assert parse_attack("pgd-20").options == {"steps": 20, "restarts": 1, "step_size": None, "loss": "cross_entropy"}
    restarted = parse_attack("pgd-100:restarts=5,step_size=2/255")
    assert (restarted.options["restarts"], restarted.options["step_size"]) == (5, 2 / 255)
    assert parse_attack("cw-100").options["loss"] == "margin"
    assert parse_attack("noise-10").options == {"restarts": 10}
    assert parse_attack("square-500").options == {"queries": 500}
    assert parse_attack("apgd-ce").kind == "apgd-ce" and parse_attack("fgsm:random_start=true").options["random_start"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd20", "attack 'pgd20' is unknown: use noise, fgsm, pgd"),
        ("pgd-20:step=3", "pgd has no option 'step', only steps, restarts, step_size, loss"),
        ("fgsm-3", "fgsm has no number, only random_start"),
        ("autoattack-5", "autoattack has no number and no options"),
        ("pgd-0", "steps='0' must be a whole number of at least 1"),
        ("pgd:loss=hinge", "loss='hinge' is unknown: use cross_entropy, margin, kl"),
        ("pgd:step_size=big", "step_size='big' is not a number"),
        ("fgsm:random_start=1", "random_start='1' must be true or false"),
    ],
)
def test_a_misspelled_attack_is_refused_with_what_there_is(name, message):
    with pytest.raises(ValueError) as error:
        parse_attack(name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "attacks (none): name at least one, and none twice"),
        (["pgd-20", "pgd-20"], "none twice"),
        (["transfer"], "give a surrogate of the same labels"),
    ],
)
def test_a_list_of_attacks_that_cannot_run_is_refused(names, message):
    with pytest.raises(ValueError) as error:
        parse_attacks(names, surrogate=False)
    assert message in str(error.value)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("members", [("apgd-ce", "apgd-t", "fab-t", "square"), ("square",)])
def test_autoattack_is_the_authors_own(classifier, data, norm, members):
    images, labels = stacked(data[:16])
    threat_model = ThreatModel(norm, 0.06 if norm == "linf" else 0.4)
    theirs = AutoAttack(
        classifier, norm={"linf": "Linf", "l2": "L2"}[norm], eps=threat_model.eps, seed=7, version="standard"
    )
    theirs.attacks_to_run = list(members)
    theirs.square.n_queries = 100
    expected, _ = theirs.run_standard_evaluation(images, labels, batch_size=16)
    for parameter in classifier.parameters():
        parameter.grad = None
    state = torch.random.get_rng_state()
    told: list[str] = []
    options = {"members": members, "queries": 100, "seed": 7, "tell": told.append}
    ours, remarks = autoattack(classifier, images, labels, threat_model, **options)
    assert torch.equal(ours, expected) and remarks == []
    assert [line for line in told if line.startswith("running")] == [f"running {member}" for member in members]
    assert not torch.equal(ours, images)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in classifier.parameters())


def test_autoattack_in_float32_on_the_fast_copy_counts_as_the_authors_own_does(pixels):
    """A convolutional network, whose batch-norms the copy folds; what remains robust, not the noise's every bit."""
    images, labels = (each[:400] for each in pixels)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)),
        *(nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.eval()
    data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images[:40], labels[:40], strict=True)]
    options = {"labels": [str(digit) for digit in range(10)], "chunk_size": 40, **QUICK}
    predictions = evaluate_robustness(network, data, EPS, ["apgd-t"], **options).predictions
    right = torch.tensor(predictions["clean"]) == labels[:40]
    theirs = AutoAttack(network, norm="Linf", eps=EPS.eps, seed=fold_in(0, 0), version="standard")
    theirs.attacks_to_run = ["apgd-t"]
    _, found = theirs.run_standard_evaluation(images[:40][right], labels[:40][right], batch_size=40)
    robust = found == labels[:40][right]
    assert ((torch.tensor(predictions["apgd-t"]) == labels[:40])[right] == robust).all() and 0 < robust.sum() < right.sum()


@pytest.mark.parametrize(("classes", "left_out"), [(2, ["apgd-dlr", "apgd-t"]), (3, ["apgd-t"]), (4, []), (5, [])])
def test_autoattack_runs_with_few_classes_and_names_what_cannot(classes, left_out):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, classes))
    images = torch.rand(4, 3, 2, 2)
    labels = network(images).argmax(1)
    members = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
    _, remarks = autoattack(network, images, labels, ThreatModel("linf", 0.01), members=members, queries=10)
    named = [remark for remark in remarks if f"was not run: it needs at least {classes + 1} classes" in remark]
    assert [remark.partition(" ")[0] for remark in named] == (left_out if classes > 2 else left_out[:1])
    assert sum("was not run" in remark for remark in remarks) == len(left_out)


# ---- the evaluation ----


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


@pytest.mark.parametrize("attack", ["pgd-20", "autoattack"])
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


# ---- self-checks ----


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


# ---- the report ----


def test_a_report_comes_back_as_it_was_saved(classifier, data, tmp_path):
    options = {"self_check_samples": 20, "curve_samples": 20, "chunk_size": 20, "progress": False}
    report = evaluate_robustness(classifier, data[:40], EPS, ["fgsm", "pgd-5:restarts=2"], **options)
    report.save(tmp_path)
    assert RobustnessReport.load(tmp_path) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robustness.json", "robustness.md"]
    text = (tmp_path / "robustness.md").read_text()
    for part in (str(report.worst_case), "at the model's resolution of 3×8×8", "pgd-5:restarts=2", report.hardware):
        assert part in text
    eps = [point.eps for point in report.curve]
    assert eps[0] == 0 and max(eps) == pytest.approx(4 * EPS.eps) and EPS.eps in eps
    assert report.curve[0].accuracy.value >= report.curve[-1].accuracy.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("<html>", "is no robustness report"),
        ("{}", "is no robustness report"),
        ('{"schema_version": 99}', "has schema version 99, this package reads 1"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "robustness.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RobustnessReport.load(tmp_path)


def test_radii_are_written_as_people_do():
    radii = (8 / 255, 2 / 255, 0.5 / 255, 0.1, 0.031, 0.5, 0)
    assert [eps_text(eps) for eps in radii] == ["8/255", "2/255", "0.5/255", "0.1", "0.031", "0.5", "0"]


def test_the_pictures_are_drawn(classifier, data, tmp_path):
    options = {"self_check_samples": 0, "curve_samples": 20, "progress": False}
    report = evaluate_robustness(classifier, data[:20], EPS, ["fgsm"], **options)
    plot_curve(report, tmp_path / "curve.png")
    plot_examples(make_ready(classifier, data), data, EPS, tmp_path / "examples.png", title="digits")
    for name in ("curve.png", "examples.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 500 and len(picture.convert("RGB").getcolors(1 << 24)) > 20


# ---- the data of an evaluation ----


@pytest.fixture
def folder(tmp_path, digits):
    digits.select(range(100)).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    digits.select(range(100, 150)).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    digits.select(range(150, 200)).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    return tmp_path / "data"


def test_the_test_split_is_evaluated_where_there_is_one(folder):
    names = [str(digit) for digit in range(10)]
    images, split = load_evaluation_split(DataArguments(str(folder)), labels=names)
    assert (split, len(images)) == ("test", 50)
    images, split = load_evaluation_split(DataArguments(str(folder)), labels=names, split="train")
    assert (split, len(images)) == ("train", 100)
    (folder / "test-00000-of-00001.parquet").unlink()
    images, split = load_evaluation_split(DataArguments(str(folder), max_eval_samples=7), labels=names)
    assert (split, len(images)) == ("validation", 7)
    with pytest.raises(ValueError, match="--split test: the data set has no such split, only train, validation"):
        load_evaluation_split(DataArguments(str(folder)), labels=names, split="test")


def test_without_any_other_split_the_training_images_are_not_evaluated(folder):
    names = [str(digit) for digit in range(10)]
    for other in ("test", "validation"):
        (folder / f"{other}-00000-of-00001.parquet").unlink()
    images, split = load_evaluation_split(DataArguments(str(folder)), labels=names, seed=4)
    assert (split, len(images)) == ("validation", 15)


def test_labels_are_matched_by_name(folder, digits):
    images, _ = load_evaluation_split(DataArguments(str(folder)), labels=["7", "3"])
    expected = [["7", "3"].index(str(label)) for label in digits.select(range(150, 200))["label"] if label in (3, 7)]
    assert list(images["label"]) == expected
    with pytest.raises(ValueError, match="the model has the 2 labels cat, dog, but the data the 10 classes"):
        load_evaluation_split(DataArguments(str(folder)), labels=["cat", "dog"])


# ---- the evaluator ----


def images_of(items):
    return datasets.Dataset.from_dict(
        {
            "image": [(item["pixel_values"] * 255).round().byte().permute(1, 2, 0).numpy() for item in items],
            "label": [item["labels"] for item in items],
        },
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )


def test_the_evaluator_computes_what_the_evaluation_does(trained, classifier, data):
    model, processor = trained
    evaluator = RobustnessEvaluator(EPS, "pgd-20", seed=2)
    result = evaluator.compute(model_or_pipeline=model, feature_extractor=processor, data=images_of(data), device=-1)
    rounded = [{**item, "pixel_values": (item["pixel_values"] * 255).round() / 255} for item in data]
    report = evaluate_robustness(classifier, rounded, EPS, ["pgd-20"], seed=2, **QUICK)
    assert result["robust_accuracy"] == report.worst_case.value < result["clean_accuracy"] == report.clean.value
    assert result["total_time_in_seconds"] > 0 and result["samples_per_second"] > 0


def test_the_evaluator_takes_other_metrics_columns_and_label_names(trained, data):
    model, processor = trained
    images = images_of(data[:30]).rename_columns({"image": "picture", "label": "kind"})
    shifted = images.map(lambda row: {"kind": 100 + row["kind"]})
    evaluator = RobustnessEvaluator(EPS, "fgsm")
    common = {"model_or_pipeline": model, "feature_extractor": processor, "input_column": "picture"}
    direct = evaluator.compute(**common, data=images, label_column="kind", metric="robustness_gap")
    mapping = {str(digit): 100 + digit for digit in range(10)}
    mapped = evaluator.compute(
        **common, data=shifted, label_column="kind", label_mapping=mapping, metric=load_metric("robustness_gap")
    )
    assert direct["robustness_gap"] == mapped["robustness_gap"] > 0
    with pytest.raises(ValueError, match="label_mapping does not lead to the labels"):
        evaluator.compute(**common, data=images, label_column="kind", label_mapping=mapping)
    with pytest.raises(ValueError, match="Invalid `label_column` label"):
        evaluator.compute(**common, data=images)


def test_the_evaluator_bootstraps_intervals(trained, data):
    model, processor = trained
    evaluator = RobustnessEvaluator(EPS, "fgsm")
    result = evaluator.compute(
        model_or_pipeline=model,
        feature_extractor=processor,
        data=images_of(data[:30]),
        metric=load_metric("robustness_gap", keep_in_memory=True),
        strategy="bootstrap",
        n_resamples=20,
        random_state=0,
    )
    low, high = result["robustness_gap"]["confidence_interval"]
    assert low <= result["robustness_gap"]["score"] <= high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_or_pipeline": None}, "model_or_pipeline is missing"),
        ({"feature_extractor": None}, "comes without its image processor"),
        ({"tokenizer": "bert"}, "an image classifier has no tokenizer"),
        ({"data": None}, "valid `data` object"),
    ],
)
def test_the_evaluator_refuses_what_it_cannot_evaluate(trained, data, arguments, message):
    model, processor = trained
    given = {"model_or_pipeline": model, "feature_extractor": processor, "data": images_of(data[:4]), **arguments}
    with pytest.raises(ValueError, match=message):
        RobustnessEvaluator(EPS).compute(**given)


# ---- the recipe, as a user runs it ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, trained, pixels):
    """The trained model in a folder that says which data and threat model it was trained for."""
    folder = tmp_path_factory.mktemp("evaluated")
    model, processor = trained
    images, labels = (each[1400:1440] for each in pixels)
    items = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    images_of(items).cast(features).to_parquet(folder / "images" / "test-00000-of-00001.parquet")
    model.config.robust_training = {
        "norm": "linf",
        "eps": "0.06",
        "seed": 3,
        "data": {"dataset_name": str(folder / "images")},
    }
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


RECIPE = [str(REPOSITORY / "recipes" / "evaluate.py")]
SMALL = ["--self_check_samples", "20", "--curve_samples", "20", "--chunk_size", "20", "--use_cpu"]


def command(*arguments, launcher=(sys.executable,)):
    return [*launcher, *RECIPE, *map(str, arguments)]


def run(*arguments, launcher=(sys.executable,), cwd=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*arguments, launcher=launcher), capture_output=True, text=True, timeout=600, cwd=cwd, env=environment
    )


def read(folder):
    return without_times(json.loads((folder / "robustness.json").read_text()))


@pytest.fixture(scope="module")
def uninterrupted(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run(*("--model_name_or_path", checkpoint, "--attacks", "pgd-20", "autoattack"), *SMALL, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_recipe_evaluates_on_the_data_and_threat_model_of_training(uninterrupted, checkpoint):
    folder, output = uninterrupted
    report = RobustnessReport.load(folder)
    assert (report.threat_model["norm"], report.threat_model["eps"], report.settings["seed"]) == ("linf", 0.06, 3)
    assert report.data["samples"] == 40 and report.data["split"] == "test" and report.worst_case.value < report.clean.value
    assert str(report.worst_case) in output and "AutoAttack was not" not in output
    names = {"robustness.json", "robustness.md", "robustness_curve.png", "robustness_examples.png"}
    assert {path.name for path in folder.iterdir()} == names


def test_an_evaluation_that_was_killed_goes_on_and_ends_with_the_same_report(uninterrupted, checkpoint, tmp_path):
    arguments = ("--model_name_or_path", checkpoint, "--attacks", "pgd-20", "autoattack", *SMALL, "--output_dir", tmp_path)
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    started = tmp_path / "evaluation_progress" / "chunk-000001.json"
    deadline = time.monotonic() + 300
    while not started.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert started.exists() and not (tmp_path / "robustness.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in started.parent.glob("chunk-000000.json")}
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert kept and read(tmp_path) == read(uninterrupted[0])
    spent = RobustnessReport.load(tmp_path).timing["seconds"]["attacks"]
    worst = next(line for line in (tmp_path / "robustness.md").read_text().splitlines() if "worst case, sample" in line)
    assert worst.endswith(f"| {sum(spent.values()):.0f} |")  # of both starts, as the rows above it


def test_two_processes_find_what_one_does(uninterrupted, checkpoint, tmp_path):
    launcher = (
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    )
    arguments = ("--model_name_or_path", checkpoint, "--attacks", "pgd-20", "autoattack", *SMALL, "--output_dir", tmp_path)
    done = run(*arguments, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert RobustnessReport.load(tmp_path).timing["processes"] == 2
    assert read(tmp_path) == read(uninterrupted[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--eps", "8/255"), "--model_name_or_path is missing"),
        (("--model_name_or_path", "nowhere"), "model 'nowhere' cannot be loaded"),
        (("--attacks", "pgd20"), "attack 'pgd20' is unknown"),
        (("--attacks", "transfer"), "give a surrogate"),
        (("--precision", "half"), "--precision='half' is unknown: use auto, float32, bf16, fp16"),
        (("--chunk_size", "0"), "--chunk_size 0 must be at least 1"),
        (("--model_name_or_path", "CHECKPOINT", "--eps", "8"), "--eps=8 is larger than the whole pixel range"),
        (("--model_name_or_path", "CHECKPOINT", "--norm", "l7"), "--norm='l7' is unknown: use one of linf, l2"),
        (("--model_name_or_path", "CHECKPOINT", "--split", "dev"), "--split dev: the data set has no such split"),
        (("--model_name_or_path", "CHECKPOINT", "--output_dir", "FINISHED"), "holds a finished evaluation"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments, message, checkpoint, uninterrupted, tmp_path, monkeypatch, error_of
):
    monkeypatch.chdir(tmp_path)
    places = {"CHECKPOINT": checkpoint, "FINISHED": uninterrupted[0]}
    assert message in error_of("evaluate.py", *(places.get(argument, argument) for argument in arguments))
    assert list(tmp_path.iterdir()) == []
