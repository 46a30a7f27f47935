"""Attacks of a user's own and of foolbox's, under this package's judge."""

import json
import sys
from functools import partial

import foolbox
import numpy as np
import pytest
import torch
from torch import nn

from hf_robust_transfer.attacks import pgd
from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.evaluation import attack_summaries, evaluate_robustness, parse_attack, parse_attacks
from hf_robust_transfer.threat_model import ThreatModel

OPTIONS = {
    "labels": ["a", "b", "c"],
    "self_check_samples": 0,
    "curve_samples": 0,
    "progress": False,
    "precision": "float32",
}
LINF, L2 = ThreatModel("linf", 0.05), ThreatModel("l2", 0.3)


@pytest.fixture(scope="module")
def network():
    """A network of three classes over (3, 4, 4) pixels, and 40 samples of which it classifies 30 correctly."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 3)).eval()
    images = torch.rand(40, 3, 4, 4)
    with torch.no_grad():
        labels = network(images).argmax(1)
    labels[30:] = (labels[30:] + 1) % 3
    return network, [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """The name of a module in the working directory with attacks of a user's."""
    (tmp_path / "attacks_of_a_user.py").write_text(
        "import torch\n"
        "from hf_robust_transfer.attacks import pgd\n"
        "def far(classifier, images, labels, threat_model, *, by: float = 2.0):\n"
        "    return 1 - images if by > 1 else images + by * threat_model.eps\n"
        "def ours(classifier, images, labels, threat_model, *, steps: int = 20, share: float = 0.25, seed, indices):\n"
        "    step = share * threat_model.eps\n"
        "    keyed = {'seed': seed, 'indices': indices}\n"
        "    return pgd(classifier, images, labels, threat_model, steps=steps, step_size=step, **keyed)\n"
        "def restless(classifier, images, labels, threat_model):\n"
        "    noise = torch.rand_like(images) * 2 - 1\n"
        "    return (images + threat_model.eps * noise.sign()).clamp(0, 1)\n"
        "def smaller(classifier, images, labels, threat_model):\n"
        "    return images[:, :1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "attacks_of_a_user", raising=False)
    return "attacks_of_a_user"


def robust(report, name):
    return [row == label for row, label in zip(report.predictions[name], report.predictions["labels"], strict=True)]


def test_an_attack_of_ones_own_is_called_as_the_houses_are(network, own_module):
    name = f"{own_module}:ours:steps=7,share=1/4"
    report = evaluate_robustness(network[0], network[1], LINF, [name], chunk_size=16, **OPTIONS)
    images, labels = (
        torch.stack([torch.as_tensor(item[key]) for item in network[1]]) for key in ("pixel_values", "labels")
    )
    expected = network[0](pgd(network[0], images, labels, LINF, steps=7, step_size=LINF.eps / 4)).argmax(1) == labels
    expected &= network[0](images).argmax(1) == labels
    assert robust(report, name) == expected.tolist() and 0 < sum(expected) < 30
    assert (report.attacks[0].name, report.attacks[0].kind) == (name, f"{own_module}:ours")
    assert report.attacks[0].options == {"steps": 7, "share": 0.25}


def test_from_python_a_function_is_an_attack(network):
    def mine(classifier, images, labels, threat_model, *, steps: int = 20, seed=0, indices=None):
        return pgd(classifier, images, labels, threat_model, steps=steps, seed=seed, indices=indices)

    report = evaluate_robustness(network[0], network[1], LINF, [mine, partial(mine, steps=3)], **OPTIONS)
    first, second = report.attacks
    assert first.name.endswith("mine") and second.name == f"{first.name}:steps=3" and second.options == {"steps": 3}
    house = evaluate_robustness(network[0], network[1], LINF, ["pgd-20"], **OPTIONS)
    assert robust(report, first.name) == robust(house, "pgd-20")


def test_an_attack_that_leaves_the_threat_model_is_refused_and_its_examples_do_not_count_as_robust(network, own_module):
    with pytest.raises(UsageError, match=rf"{own_module}:far.*30 of 30.*outside the threat model.*project"):
        evaluate_robustness(network[0], network[1], LINF, [f"{own_module}:far"], **OPTIONS)


def test_global_randomness_is_seeded_around_an_attack_and_left_as_it_was(network, own_module):
    name = f"{own_module}:restless"
    states = torch.random.get_rng_state(), np.random.get_state()[1]
    first = evaluate_robustness(network[0], network[1], LINF, [name], **OPTIONS)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    torch.rand(3)
    again = evaluate_robustness(network[0], network[1], LINF, [name], **OPTIONS)
    assert again.predictions == first.predictions


def test_an_edited_attack_is_not_taken_for_its_earlier_self(own_module, tmp_path):
    before = parse_attack(f"{own_module}:ours")
    file = tmp_path / f"{own_module}.py"
    file.write_text(file.read_text() + "# edited\n")
    assert before.version and parse_attack(f"{own_module}:ours").version != before.version


@pytest.mark.parametrize(
    ("name", "threat_model"),
    [("L2DeepFoolAttack", L2), ("LinfProjectedGradientDescentAttack:steps=9,random_start=false", LINF), ("DDNAttack", L2)],
)
def test_foolboxs_attacks_find_what_they_find_alone(network, name, threat_model):
    images, labels = (
        torch.stack([torch.as_tensor(item[key]) for item in network[1]]) for key in ("pixel_values", "labels")
    )
    kind, _, options = name.partition(":")
    arguments = {"steps": 9, "random_start": False} if options else {}
    model = foolbox.PyTorchModel(network[0], bounds=(0, 1), device="cpu")
    attack = getattr(foolbox.attacks, kind)(**arguments)
    right = network[0](images).argmax(1) == labels
    _, _, fooled = attack(model, images[right], labels[right], epsilons=threat_model.eps)
    report = evaluate_robustness(network[0], network[1], threat_model, [f"foolbox:{name}"], chunk_size=40, **OPTIONS)
    expected = right.clone()
    expected[right] = ~fooled
    assert robust(report, f"foolbox:{name}") == expected.tolist() and fooled.sum() > 0
    assert report.attacks[0].kind == f"foolbox:{kind}" and arguments.items() <= report.attacks[0].options.items()
    json.dumps(report.attacks[0].options)


def test_an_attack_for_any_distance_takes_the_threat_models(network):
    report = evaluate_robustness(network[0], network[1], LINF, ["foolbox:InversionAttack"], **OPTIONS)
    assert report.worst_case.value <= report.clean.value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "foolbox:L2DeepFolAttack",
            "foolbox has no attack 'L2DeepFolAttack' that keeps to a norm: did you mean",
        ),
        ("foolbox:deepfool", "did you mean L2DeepFoolAttack"),
        ("foolbox:L2DeepFoolAttack", "is for the norm l2, not for linf"),
        ("foolbox:LinfPGD:step=3", "LinfPGD has no option 'step', only rel_stepsize, abs_stepsize, steps, random_start"),
        ("foolbox:LinfPGD:steps=many", "steps='many' must be a whole number"),
        ("foolbox:LinfDeepFoolAttack:loss=hinge", "loss='hinge' is unknown: use logits, crossentropy"),
        ("foolbox:VirtualAdversarialAttack", "cannot be made: "),
        ("no_module_of_a_user:attack", "there is no module 'no_module_of_a_user'"),
        ("attacks_of_a_user:our", "did you mean ours?"),
        ("attacks_of_a_user:ours:share=much", "share='much' is not a number"),
        ("attacks_of_a_user:ours:seed=3", "has no option 'seed', only steps, share"),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(own_module, name, message):
    with pytest.raises(UsageError) as error:
        parse_attacks([name], surrogate=False, norm="linf")
    assert message in str(error.value) and name in str(error.value)


def test_images_of_another_shape_are_refused(network, own_module):
    with pytest.raises(UsageError, match=r"must give images of shape \(30, 3, 4, 4\), not \(30, 1, 4, 4\)"):
        evaluate_robustness(network[0], network[1], LINF, [f"{own_module}:smaller"], chunk_size=40, **OPTIONS)


def test_every_kind_of_attack_is_summed_up():
    summaries = attack_summaries()
    assert {"fgsm", "pgd-N", "square-N", "autoattack", "foolbox:NAME", "MODULE:FUNCTION"} <= set(summaries)
    assert all(summaries.values())
