"""AutoAttack against its authors' own."""

import pytest
import torch
from evaluated_digits import EPS, QUICK, stacked
from pyautoattack import AutoAttack
from torch import nn

from hf_robust_transfer.evaluation import (
    autoattack,
    evaluate_robustness,
)
from hf_robust_transfer.randomness import fold_in
from hf_robust_transfer.threat_model import ThreatModel


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "members", [("apgd-ce", "square"), pytest.param(("apgd-ce", "apgd-t", "fab-t", "square"), marks=pytest.mark.slow)]
)
def test_autoattack_is_the_authors_own(classifier, data, norm, members):
    images, labels = stacked(data[:16])
    threat_model = ThreatModel(norm, 0.06 if norm == "linf" else 0.4)
    theirs = AutoAttack(
        classifier, norm={"linf": "Linf", "l2": "L2"}[norm], eps=threat_model.eps, seed=7, version="standard"
    )
    theirs.attacks_to_run = list(members)
    theirs.square.n_queries = 500
    expected, _ = theirs.run_standard_evaluation(images, labels, batch_size=16)
    for parameter in classifier.parameters():
        parameter.grad = None
    state = torch.random.get_rng_state()
    told: list[str] = []
    options = {"members": members, "queries": 500, "seed": 7, "tell": told.append}
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


def test_square_for_l2_says_that_it_needs_larger_images():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    images = torch.rand(4, 3, 4, 4)
    attacked, remarks = autoattack(network, images, network(images).argmax(1), ThreatModel("l2", 0.5), members=["square"])
    assert torch.equal(attacked, images)
    assert remarks == ["square was not run: it needs images of at least 5 pixels a side for l2, and they have 4"]
