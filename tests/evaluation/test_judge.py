"""The judge: in the threat model whatever is rounded, in float32, and never robust where nothing can be said."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn

from hf_robust_transfer.attacks import fgsm, pgd
from hf_robust_transfer.data import as_pixels
from hf_robust_transfer.evaluation import autoattack, evaluate_robustness
from hf_robust_transfer.evaluation.subject import Settings, make_ready
from hf_robust_transfer.modeling import PixelClassifier
from hf_robust_transfer.threat_model import ThreatModel

OPTIONS = {"labels": ["a", "b", "c"], "curve_samples": 0, "progress": False}
QUICK = {**OPTIONS, "self_check_samples": 0}
LINF = ThreatModel("linf", 0.15)


class Linear(nn.Module):
    """A natural linear network, whose forward pass may see to something else before or after."""

    def __init__(self, before=lambda images: images, after=lambda logits: logits, size=48):
        super().__init__()
        self.layer = nn.Linear(size, 3, bias=False)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))
        self.before, self.after = before, after

    def forward(self, images):
        return self.after(self.layer(self.before(images).flatten(1)))


def samples(network, shape=(3, 4, 4), count=24, dtype=torch.float32):
    """Images that the network classifies correctly, in and around the middle of the box."""
    images = (torch.rand((count, *shape), generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1).to(dtype)
    with torch.no_grad():
        labels = network(images.float()).argmax(1)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]


@given(
    shape=st.sampled_from([(1, 1, 1), (3, 32, 32), (3, 224, 224), (3, 384, 384), (3, 512, 512)])
    | st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 30)),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.sampled_from([1e-6, 1e-4, 1 / 255, 0.5, 1.0, 3.0, 5.0]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_what_attacks_end_with_is_judged_and_what_lies_farther_is_not(shape, norm, eps, dtype, seed):
    threat_model = ThreatModel(norm, min(eps, 1.0) if norm == "linf" else min(eps, math.prod(shape) ** 0.5))
    classifier = Linear(lambda images: images.flatten(1)[:, :1].repeat(1, 48))
    generator = torch.Generator().manual_seed(seed)
    images = as_pixels(torch.rand((3, *shape), generator=generator).to(dtype))
    subject = make_ready(classifier, [{"pixel_values": image} for image in images], labels="abc")
    away = torch.randn(images.shape, generator=generator).to(images) * 2 * threat_model.eps
    inside = threat_model.project(images + away, images)
    # As an attack from elsewhere ends: in float32 arithmetic of its own.
    delta = (inside - images).float()
    low = delta.clamp(-threat_model.eps, threat_model.eps)
    if norm == "l2":
        low = delta * (threat_model.eps / delta.flatten(1).norm(dim=1).clamp_min(1e-12)).view(-1, 1, 1, 1)
    rounded = (images + low).clamp(0, 1)
    for ended in (inside, rounded):
        predicted, known = subject.judge(ended, images, threat_model)
        assert known.all() and torch.equal(predicted, subject.predicted(threat_model.project(ended, images)))
    far = images + 1.02 * (threat_model.eps + 1e-5) * torch.where(images > 0.5, -1, 1) * (
        1 if norm == "linf" else math.prod(shape) ** -0.5 if math.prod(shape) < 1000 else 1
    )
    lost = torch.full_like(images, math.nan)
    for ended in (far, lost):
        if threat_model.eps < 0.4:  # else the box ends before
            assert not subject.judge(ended, images, threat_model)[1].any()


def test_at_the_size_of_imagenet_no_example_of_an_l2_attack_is_lost():
    network = Linear(lambda images: images[:, :, ::56, ::56])
    data = samples(network, (3, 224, 224), 8)
    images, labels = torch.stack([item["pixel_values"] for item in data]), torch.tensor([item["labels"] for item in data])
    l2 = ThreatModel("l2", 3)
    fooled = network(pgd(network, images, labels, l2)).argmax(1) != labels
    report = evaluate_robustness(network, data, l2, ["pgd-20", "cw-20"], **QUICK)
    assert fooled.all() and report.worst_case.value == 0
    assert [attack.accuracy.value for attack in report.attacks] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_of_another_type_are_judged_as_those_of_float32(dtype):
    network = Linear()
    data = samples(network, dtype=dtype)
    expected = evaluate_robustness(
        network, [{**item, "pixel_values": item["pixel_values"].float()} for item in data], LINF, ["fgsm"], **QUICK
    )
    report = evaluate_robustness(network, data, LINF, ["fgsm"], **QUICK)
    assert report.predictions == expected.predictions
    others = ["pgd-2", "noise", "apgd-ce", "fab-t", "square-20", "foolbox:LinfDeepFoolAttack"]
    assert evaluate_robustness(network, data, LINF, others, **QUICK).clean == expected.clean
    assert report.worst_case.value < 0.3  # a natural network


@pytest.mark.parametrize("own", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_model_of_another_type_is_evaluated_in_every_precision(tiny, digit_batch, own, precision):
    model, processor = tiny("timm-convnext")
    classifier = PixelClassifier(model.to(own), processor)
    images, _ = digit_batch()
    labels = classifier(images).argmax(1)
    data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]
    options = {**QUICK, "labels": None, "precision": precision}
    report = evaluate_robustness(classifier, data, ThreatModel("linf", 0.3), ["pgd-3", "apgd-ce"], **options)
    assert report.clean.value == 1 and report.worst_case.value < 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_on_pixels_of_any_type_stays_inside_and_climbs(dtype, norm):
    network = Linear(size=192)
    threat_model = ThreatModel(norm, 0.15 if norm == "linf" else 1.0)
    data = samples(network, (3, 8, 8), dtype=dtype)
    images, labels = torch.stack([item["pixel_values"] for item in data]), torch.tensor([item["labels"] for item in data])
    runs = {
        "pgd": pgd(network, images, labels, threat_model),
        "fgsm": fgsm(network, images, labels.int(), threat_model),
        "square": autoattack(network, images, labels.byte(), threat_model, members=["square"], queries=100)[0],
    }
    for name, attacked in runs.items():
        assert attacked.dtype == dtype
        moved = (attacked.double() - images.double()).flatten(1)
        slack = 1e-6 if name == "square" else 0  # which rounds as its authors have it
        assert ((moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)) <= threat_model.eps + slack).all()
        assert (network(attacked.float()).argmax(1) != labels).float().mean() > 0.5


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_just_beside_the_ball_is_judged_in_it(precision):
    network = Linear()
    data = samples(network)

    def beside(classifier, images, labels, threat_model):
        attacked = pgd(classifier, images, labels, threat_model)
        return images + (attacked - images) * (1 + 1e-5)

    found = evaluate_robustness(network, data, LINF, [beside, "pgd-20"], precision=precision, **QUICK)
    first, second = (attack.accuracy.value for attack in found.attacks)
    assert first == second < 0.3


def through_a_file(images):
    """What a JPEG file of each image holds: Pillow's and NumPy's work, which no gradient passes."""
    decoded = []
    for image in images.detach():
        file = io.BytesIO()
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
        decoded.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255)
    return torch.stack(decoded)


CUTS = {
    "a file": {"before": through_a_file},
    "no_grad": {"before": lambda images: images.detach()},
    "detached logits": {"after": torch.Tensor.detach},
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=list(CUTS))
def test_a_classifier_without_gradients_is_evaluated_and_the_self_check_says_so(cut):
    network = Linear(**cut)
    network.layer.requires_grad_(False)
    attacks = ["fgsm", "pgd-20", "apgd-ce", "foolbox:LinfProjectedGradientDescentAttack:steps=2"]
    report = evaluate_robustness(network, samples(network, count=4), LINF, attacks, self_check_samples=4, **OPTIONS)
    failed = {check.name for check in report.self_checks if not check.passed}
    assert "vanishing_gradients" in failed and report.warnings


def test_a_gradient_that_is_nan_ends_in_no_error_and_the_self_check_says_so():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(context, images):
            return images.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * math.nan

    network = Linear(Broken.apply)
    report = evaluate_robustness(network, samples(network), LINF, ["pgd-20"], self_check_samples=10, **OPTIONS)
    assert "vanishing_gradients" in {check.name for check in report.self_checks if not check.passed}


@pytest.mark.parametrize(
    "wrap", [lambda logits: (logits, None), lambda logits: {"logits": logits}], ids=["tuple", "dictionary"]
)
def test_a_classifier_that_wraps_its_logits_is_evaluated_as_one_that_does_not(wrap):
    plain, wrapped = Linear(), Linear(after=wrap)
    data = samples(plain)
    attacks = ["fgsm", "pgd-20", "square-50"]
    first, second = (evaluate_robustness(network, data, LINF, attacks, **QUICK) for network in (plain, wrapped))
    assert first.predictions == second.predictions


def test_no_tf32_is_used_where_an_evaluation_judges_also_when_it_was_asked_for():
    backends, seen = torch.backends, []

    def told(logits):
        off = (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32) == (False, False)
        seen.append(off and torch.get_float32_matmul_precision() == "highest")
        return logits

    network = Linear(after=told)
    data = samples(network)
    torch.set_float32_matmul_precision("high")
    try:
        subject = make_ready(network, data, Settings(precision="float32"), labels="abc")
        seen.clear()
        images = torch.stack([item["pixel_values"] for item in data])
        subject.predicted(images)
        subject.judge(images, images, LINF)
        assert seen == [True, True]
        seen.clear()
        evaluate_robustness(network, data, LINF, ["fgsm"], precision="float32", **QUICK)
        assert seen.count(True) >= 2 and seen[-1]
        assert torch.get_float32_matmul_precision() == "high" and backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
