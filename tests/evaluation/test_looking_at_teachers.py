"""Which teacher is recommended, and what that goes by."""

import numpy as np
import pytest
import torch

from hf_robust_transfer.attacks import pgd
from hf_robust_transfer.evaluation.accuracy import Accuracy
from hf_robust_transfer.evaluation.teachers import STEPS, TeacherReport, look_at_teacher, recommended, transferable
from hf_robust_transfer.modeling import PixelClassifier
from hf_robust_transfer.modeling.classifier import weights_sha256
from hf_robust_transfer.threat_model import ThreatModel

THREAT = ThreatModel("linf", 0.1)


def report(clean, robust, share, samples=1000):
    rows = np.arange(samples) / samples
    return TeacherReport(Accuracy.of(rows < clean), Accuracy.of(rows < robust), 1.0, Accuracy.of(rows < share))


def test_a_sample_is_transferable_where_the_teacher_moves_as_under_an_attack_of_its_own():
    generator = torch.Generator().manual_seed(0)
    clean, own, other = (3 * torch.randn(50, 4, generator=generator).double() for _ in range(3))

    def kl(p, q):
        p, q = (each.softmax(1).numpy() for each in (p, q))
        return (p * np.log(p / q)).sum(1)

    expected = kl(other, clean) >= kl(other, own)
    assert transferable(clean, other, own).numpy().tolist() == expected.tolist()
    assert 0.2 < expected.mean() < 0.8


def test_a_student_that_is_the_teacher_transfers_all_of_it_and_nothing_is_changed(tiny):
    model, processor = tiny("timm-resnet")
    teacher = PixelClassifier(model, processor)
    before = weights_sha256(teacher)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(12, 3, 32, 32, generator=generator), torch.arange(12) % 10
    seen = look_at_teacher(teacher, teacher, [(images[:8], labels[:8]), (images[8:], labels[8:])], THREAT, seed=4)
    assert seen.transferable.value == 1
    with torch.no_grad():
        right = teacher(images).argmax(1) == labels
        attacked = pgd(teacher, images, labels, THREAT, steps=STEPS, seed=4)
        robust = right & (teacher(attacked).argmax(1) == labels)
        entropy = torch.distributions.Categorical(logits=teacher(attacked)).entropy().mean().item()
    assert (seen.clean.value, seen.robust.value) == (right.sum().item() / 12, robust.sum().item() / 12)
    assert seen.entropy == pytest.approx(entropy, rel=1e-4)  # attacked in batches, yet keyed by the image
    assert weights_sha256(teacher) == before


def test_the_largest_share_is_recommended_among_teachers_that_are_robust_enough():
    reports = {"sure": report(0.9, 0.6, 0.2), "kind": report(0.8, 0.5, 0.9), "natural": report(0.95, 0.01, 0.95)}
    name, why = recommended(reports)
    assert name == "kind"
    assert "90%" in why
    assert "natural kept less than half" in why


def test_shares_that_cannot_be_told_apart_leave_the_choice_to_robust_accuracy():
    name, why = recommended({"a": report(0.8, 0.5, 0.90), "b": report(0.8, 0.55, 0.89), "c": report(0.8, 0.6, 0.5)})
    assert name == "b"
    assert "as many as of a" in why


def test_a_single_teacher_is_its_own_recommendation():
    assert recommended({"a": report(0.8, 0.5, 0.9)}) == (
        "a",
        "90% of the student's adversarial images move it as an attack of its own does",
    )
