"""Batches that are padded to a few sizes: the same attacks, which a network sees in few shapes."""

import pytest
import torch

from hf_robust_transfer.attacks import early_stopping_pgd, fgsm, pgd
from hf_robust_transfer.evaluation.autoattack import autoattack
from hf_robust_transfer.evaluation.subject import Settings, make_ready
from hf_robust_transfer.modeling.attack_copy import attack_copy
from hf_robust_transfer.threat_model import ThreatModel

COUNT = 60
ATTACKS = {
    "fgsm": lambda classify, *samples: fgsm(classify, *samples),
    "pgd": lambda classify, *samples: pgd(classify, *samples, steps=5),
    "pgd, KL": lambda classify, *samples: pgd(classify, *samples, steps=5, loss="kl"),
    "early stopping": lambda classify, *samples: early_stopping_pgd(classify, *samples, steps=10)[0],
    "early stopping, restarts": lambda classify, *samples: early_stopping_pgd(classify, *samples, steps=5, restarts=3)[0],
}


@pytest.fixture
def samples(data):
    return tuple(torch.stack([torch.as_tensor(row[key]) for row in data[:COUNT]]) for key in ("pixel_values", "labels"))


def seen(classifier):
    """A list that is added the size of each batch that some copy of a classifier sees."""
    sizes = []
    classifier.model.register_forward_pre_hook(
        lambda module, inputs, named: sizes.append(len(named["pixel_values"])), with_kwargs=True
    )
    return sizes


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_at_the_same_images(classifier, samples, name, norm):
    images, labels = samples
    threat_model = ThreatModel(norm, 0.1 if norm == "linf" else 1.0)
    found = [
        ATTACKS[name](attack_copy(classifier, images[:2], "float32", largest_batch=largest), images, labels, threat_model)
        for largest in (None, COUNT, 64, 1000, 7)
    ]
    assert not torch.equal(found[0], images)
    for other in found[1:]:
        # A gradient of rounding's size may have either sign.
        assert ((other - found[0]).abs() > 1e-5).float().mean() < 1e-3
        assert torch.equal(classifier(other).argmax(1), classifier(found[0]).argmax(1))


def test_autoattack_fools_the_same_images_and_shows_few_shapes(classifier, samples):
    images, labels = samples
    threat_model = ThreatModel("linf", 0.08)
    sizes = seen(classifier)
    fooled, shapes = [], []
    for largest in (None, COUNT):
        sizes.clear()
        classify = attack_copy(classifier, images[:2], "float32", largest_batch=largest)
        adversarial, _ = autoattack(classify, images, labels, threat_model, queries=200)
        shapes.append(set(sizes))
        fooled.append(classifier(adversarial).argmax(1) != labels)
    assert torch.equal(*fooled) and 0 < fooled[0].sum() < COUNT
    assert shapes[1] <= {60, 30, 15, 8, 2} and len(shapes[1]) < len(shapes[0])


def test_gradients_are_those_of_the_images_alone(classifier, samples):
    images = samples[0][:13].clone().requires_grad_()
    padded = attack_copy(classifier, images.detach()[:2], "float32", largest_batch=50)
    plain = attack_copy(classifier, images.detach()[:2], "float32")
    for function in (padded, plain):
        assert function(images).shape == (13, 10)
    first, second = (torch.autograd.grad(function(images).square().sum(), images)[0] for function in (padded, plain))
    torch.testing.assert_close(first, second)
    assert padded(images[:0]).shape == (0, 10)


def test_compiled_attacks_are_padded_and_plain_ones_on_a_cpu_are_not(classifier, data, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    sizes = seen(classifier)
    for compiled, expected in ((False, 6), (True, 7)):
        subject = make_ready(classifier, data, Settings(compiled=compiled, chunk_size=50))
        sizes.clear()
        subject.attacked(torch.rand(6, *subject.shape))
        assert sizes == [expected]
