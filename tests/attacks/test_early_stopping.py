"""Attacks that samples leave when they are fooled."""

import copy

import torch
from evaluated_digits import EPS, stacked
from torch import nn

from hf_robust_transfer.attacks import early_stopping_pgd, pgd
from hf_robust_transfer.modeling.attack_copy import attack_copy


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
