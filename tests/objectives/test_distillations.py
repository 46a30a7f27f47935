"""Objectives that learn from a teacher, against linear models small enough to work out by hand."""

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from hf_robust_transfer.modeling import ClassifierOutput
from hf_robust_transfer.objectives import OBJECTIVES, TrainingStep, trait
from hf_robust_transfer.objectives.divergence import divergence, entropy
from hf_robust_transfer.randomness import fold_in, sample_keys
from hf_robust_transfer.threat_model import ThreatModel

S = np.array([[0.5, -1.0, 2.0, 0.25], [-0.5, 1.0, -1.0, 0.5], [1.0, 0.5, -0.5, -0.75]])  # logits = S x
T = np.array([[1.5, -2.0, 0.5, 1.0], [-1.0, 0.5, 2.0, -1.5], [0.5, 1.5, -2.5, 0.25]])
X = np.array([[0.2, 0.8, 0.5, 0.5], [0.6, 0.4, 0.3, 0.7], [0.5, 0.5, 0.4, 0.6], [0.98, 0.02, 0.4, 0.99]])
Y = np.array([0, 1, 2, 0])
EPS, STEP, SEED = 0.1, 0.04, 3
DISTILLING = sorted(name for name, objective in OBJECTIVES.items() if trait(objective, "of_teacher"))


class Linear(torch.nn.Module):
    """A classifier of 1×2×2 images whose features are the pixels; it counts its passes and knows its modes."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.seen = []

    def forward(self, images):
        self.seen.append(("train" if self.training else "eval", images.detach().flatten(1).numpy().copy()))
        return images.flatten(1) @ self.weight.T

    def outputs(self, images):
        return ClassifierOutput(self(images), images.flatten(1))


class Teacher(Linear):
    """A frozen one that counts the backward passes that reach its input."""

    def __init__(self, weight=T):
        super().__init__(weight)
        self.eval().requires_grad_(False)
        self.backward_passes = 0

    def forward(self, images):
        logits = super().forward(images)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, gradient):
        self.backward_passes += 1


def step_on(student, teacher, images=X, labels=Y, **options):
    images = torch.tensor(images).view(-1, 1, 2, 2)

    def clean():
        with torch.no_grad():
            return teacher(images)

    defaults = {"attack_steps": 3, "attack_step_size": STEP, "seed": SEED, "threat_model": ThreatModel("linf", EPS)}
    return TrainingStep(
        student=student,
        attacked=student,
        images=images,
        labels=torch.tensor(labels),
        indices=torch.arange(len(images)) + 5,
        teacher=teacher,
        teacher_clean=clean,
        **{**defaults, **options},
    )


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def kl(teacher, student):
    """KL(T ‖ S) of each sample, of logits."""
    target = log_softmax(teacher)
    return (np.exp(target) * (target - log_softmax(student))).sum(1)


def start():
    keys = sample_keys(fold_in(SEED, 0), torch.arange(len(X)) + 5)
    return ThreatModel("linf", EPS).random_start(torch.tensor(X).view(-1, 1, 2, 2), keys).flatten(1).numpy()


def attacked(gradient, steps=3):
    """PGD with a gradient (B, pixels) worked out by hand."""
    adversarial = start()
    for _ in range(steps):
        moved = adversarial + STEP * np.sign(gradient(adversarial))
        adversarial = np.clip(moved, X - EPS, X + EPS).clip(0, 1)
    return adversarial


def slope_of_student(target, images):
    """d KL(p ‖ q(S x)) / d x at a fixed target."""
    return (np.exp(log_softmax(images @ S.T)) - np.exp(log_softmax(target))) @ S


def slope_of_target(target, images):
    """d KL(p(t) ‖ q) / d t of each sample, at fixed q."""
    p, ratio = np.exp(log_softmax(target)), log_softmax(target) - log_softmax(images @ S.T)
    return p * (ratio - (p * ratio).sum(1, keepdims=True))


def attacked_by_saad(inner=1.0):
    clean, own = X @ T.T, np.eye(3)[Y]

    def target(images):
        return clean + inner * own * ((images - X) * T[Y]).sum(1, keepdims=True)

    def gradient(images):
        through_teacher = (slope_of_target(target(images), images) * own).sum(1, keepdims=True) * inner * T[Y]
        return slope_of_student(target(images), images) + through_teacher

    return attacked(gradient)


def attacked_by_adaad():
    return attacked(lambda images: slope_of_student(images @ T.T, images) + slope_of_target(images @ T.T, images) @ T)


def values(output):
    return {name: value.item() for name, value in output.terms.items()}


def test_ard_learns_the_teachers_clean_distribution_at_the_worst_case_for_the_labels():
    adversarial = attacked(lambda images: (np.exp(log_softmax(images @ S.T)) - np.eye(3)[Y]) @ S)
    output = OBJECTIVES["ard"](step_on(Linear(S), Teacher()), alpha=0.8, temperature=4.0)
    natural = -log_softmax(X @ S.T)[np.arange(len(Y)), Y].mean()
    distilled = kl(X @ T.T / 4, adversarial @ S.T / 4).mean()
    assert values(output) == {"distillation": pytest.approx(0.8 * 16 * distilled), "natural": pytest.approx(0.2 * natural)}


def test_rslad_attacks_and_learns_one_target():
    target = X @ T.T
    adversarial = attacked(lambda images: slope_of_student(target, images))
    output = OBJECTIVES["rslad"](step_on(Linear(S), Teacher()))
    assert values(output) == {
        "distillation": pytest.approx(5 / 6 * kl(target, adversarial @ S.T).mean()),
        "clean_distillation": pytest.approx(1 / 6 * kl(target, X @ S.T).mean()),
    }
    assert torch.equal(output.clean.features, torch.tensor(X))


def test_adaad_follows_the_teacher_as_the_image_moves():
    adversarial = attacked_by_adaad()
    output = OBJECTIVES["adaad"](step_on(Linear(S), Teacher()), alpha=0.7)
    assert values(output) == {
        "distillation": pytest.approx(0.7 * kl(adversarial @ T.T, adversarial @ S.T).mean()),
        "clean_distillation": pytest.approx(0.3 * kl(X @ T.T, X @ S.T).mean()),
    }


def test_iad_trusts_the_teacher_as_far_as_it_is_right():
    adversarial = attacked(lambda images: (np.exp(log_softmax(images @ S.T)) - np.eye(3)[Y]) @ S)
    step = step_on(Linear(S), Teacher(), progress=0.6)
    trusted = np.exp(log_softmax(adversarial @ T.T))[np.arange(len(Y)), Y] ** 0.5
    distilled, own = kl(adversarial @ T.T, adversarial @ S.T), kl(X @ S.T, adversarial @ S.T)
    output = OBJECTIVES["iad"](step, trust=0.5)
    assert values(output) == {
        "distillation": pytest.approx((trusted * distilled).mean()),
        "introspection": pytest.approx(((1 - trusted) * own).mean()),
    }
    assert output.metrics["teacher_trust"].item() == pytest.approx(trusted.mean())
    early = OBJECTIVES["iad"](dataclasses.replace(step, progress=0.2), trust=0.5)
    assert values(early) == {"distillation": pytest.approx(distilled.mean())}


def gradients_compared(adversarial):
    """KL of the softmaxes of differences, with x − δ as it is, also outside of [0, 1]."""
    mirrored = 2 * X - adversarial
    return kl((adversarial - mirrored) @ T.T, (adversarial - mirrored) @ S.T), mirrored


def test_igdm_compares_differences_of_logits_on_both_sides_of_an_image():
    student, adversarial = Linear(S), attacked_by_adaad()
    compared, mirrored = gradients_compared(adversarial)
    assert mirrored.min() < 0 or mirrored.max() > 1  # not clamped
    output = OBJECTIVES["igdm"](step_on(student, Teacher(), progress=0.25), gradient_weight=10.0)
    assert values(output) == {
        "distillation": pytest.approx(kl(adversarial @ T.T, adversarial @ S.T).mean()),
        "gradient_distillation": pytest.approx(2.5 * compared.mean()),
    }
    passes = [images for mode, images in student.seen if mode == "train"]
    assert [images.shape for images in passes] == [X.shape] * 2  # separate ones
    assert passes[0] == pytest.approx(adversarial)
    assert passes[1] == pytest.approx(mirrored)


@pytest.mark.parametrize(("order", "inner"), [(1.0, 1.0), (2.0, 0.5), (0.5, 0.0)])
def test_saad_weighs_each_sample_by_the_teachers_doubt(order, inner):
    student, adversarial = Linear(S), attacked_by_saad(inner)
    compared, mirrored = gradients_compared(adversarial)
    p = np.exp(log_softmax(adversarial @ T.T))
    doubt = -(p * np.log(p)).sum(1) if order == 1 else np.log((p**order).sum(1)) / (1 - order)
    weights = 3.0 * (doubt - doubt.min())
    output = OBJECTIVES["saad"](
        step_on(student, Teacher(), progress=0.5),
        scale=3.0,
        order=order,
        gradient_weight=2.0,
        clean_weight=0.4,
        inner=inner,
    )
    certain = 1 - weights / weights.max()
    assert values(output) == {
        "distillation": pytest.approx((weights * kl(adversarial @ T.T, adversarial @ S.T)).mean()),
        "gradient_distillation": pytest.approx((weights * compared).mean()),
        "clean_distillation": pytest.approx(0.4 * (certain * kl(X @ T.T, X @ S.T)).mean()),
    }
    assert output.metrics["mean_weight"].item() == pytest.approx(weights.mean())
    moved = (adversarial @ T.T).argmax(1) != (X @ T.T).argmax(1)
    assert output.metrics["teacher_moved"].item() == pytest.approx(moved.mean())
    passes = [images for mode, images in student.seen if mode == "train"]
    for seen, expected in zip(passes, (adversarial, mirrored, X), strict=True):  # the clean one last
        assert seen == pytest.approx(expected)


def test_saad_without_movement_attacks_as_rslad_does():
    images = {}
    for name, options in (("saad", {"inner": 0.0}), ("rslad", {})):
        student = Linear(S)
        OBJECTIVES[name](step_on(student, Teacher()), **options)
        images[name] = next(seen for mode, seen in student.seen if mode == "train")
    assert np.array_equal(images["saad"], images["rslad"])


def test_saad_attacks_as_adaad_does_where_only_the_true_logit_moves():
    # There the first-order model is exact: one row of the teacher is not zero, and it is that of every label.
    weight = np.zeros_like(T)
    weight[1] = T[1]
    images = {}
    for name in ("saad", "adaad"):
        student = Linear(S)
        OBJECTIVES[name](step_on(student, Teacher(weight), labels=np.ones(4, dtype=int)))
        images[name] = next(seen for mode, seen in student.seen if mode == "train")
    assert images["saad"] == pytest.approx(images["adaad"], abs=1e-12)


@pytest.mark.parametrize("name", ["adaad", "igdm", "saad"])
def test_an_attack_that_leaves_out_the_teachers_gradient_is_another_one(name, monkeypatch):
    random = np.random.default_rng(0)
    weights, images = random.normal(size=(2, 3, 4)) * 4, random.uniform(0.2, 0.8, size=(64, 4))
    crafted = []
    for detached in (False, True):
        if detached:
            module = sys.modules[f"hf_robust_transfer.objectives.{'saad' if name == 'saad' else 'adaad'}"]
            monkeypatch.setattr(module, "divergence", lambda target, logits: divergence(target.detach(), logits))
        student = Linear(weights[0])
        OBJECTIVES[name](step_on(student, Teacher(weights[1]), images, random.integers(3, size=64)))
        crafted.append(next(seen for mode, seen in student.seen if mode == "train"))
    assert (np.abs(crafted[0] - crafted[1]) > 1e-6).mean() > 0.02


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", DISTILLING)
def test_examples_stay_in_the_ball_and_the_teacher_as_it_is(name, norm):
    student, teacher, threat = Linear(S), Teacher(), ThreatModel(norm, EPS)
    before = teacher.weight.clone()
    output = OBJECTIVES[name](step_on(student, teacher, threat_model=threat, attack_steps=10, attack_step_size=None))
    sum(output.terms.values()).backward()
    adversarial = next(seen for mode, seen in student.seen if mode == "train")
    lengths = np.abs(adversarial - X).max(1) if norm == "linf" else np.linalg.norm(adversarial - X, axis=1)
    assert lengths.max() <= EPS + 1e-9
    assert lengths.max() > 0.9 * EPS  # ε and step are not swapped
    assert torch.equal(teacher.weight, before)
    assert teacher.weight.grad is None
    assert not teacher.training
    assert {mode for mode, _ in teacher.seen} == {"eval"}
    assert student.training
    assert torch.isfinite(student.weight.grad).all()
    modes = [mode for mode, _ in student.seen]
    assert modes[:10] == ["eval"] * 10  # attacked in eval mode, and trained in train mode
    assert "eval" not in modes[10:]


@pytest.mark.parametrize("name", DISTILLING)
def test_no_attack_is_made_at_eps_0(name):
    output = OBJECTIVES[name](step_on(Linear(S), Teacher(), threat_model=ThreatModel("linf", 0)))
    assert all(math.isfinite(value) for value in values(output).values())


# Passes of a step with k attack steps: the student's forward ones, the teacher's forward and backward ones. Clean logits
# of the teacher count where they are asked for.
@pytest.mark.parametrize(
    ("name", "options", "student_passes", "teacher_passes", "teacher_backward"),
    [
        ("ard", {}, 3 + 1, 1, 0),
        ("rslad", {}, 3 + 2, 1, 0),
        ("iad", {}, 3 + 2, 1, 0),
        ("adaad", {}, 3 + 1, 3 + 1, 3),
        ("igdm", {}, 3 + 2, 3 + 2, 3),
        ("saad", {}, 3 + 2, 3, 1),
        ("saad", {"clean_weight": 1.0}, 3 + 3, 3, 1),
    ],
)
def test_a_step_costs_what_its_docstring_says(name, options, student_passes, teacher_passes, teacher_backward):
    student, teacher = Linear(S), Teacher()
    OBJECTIVES[name](step_on(student, teacher), **options)
    assert (len(student.seen), len(teacher.seen)) == (student_passes, teacher_passes)
    assert teacher.backward_passes == teacher_backward


def test_a_teacher_in_the_same_doubt_about_all_leaves_nothing_to_learn():
    student = Linear(S)
    output = OBJECTIVES["saad"](step_on(student, Teacher(np.zeros_like(T))), clean_weight=1.0)
    assert output.terms["distillation"].item() == pytest.approx(0)
    sum(output.terms.values()).backward()
    assert torch.isfinite(student.weight.grad).all()


@pytest.mark.parametrize("name", DISTILLING)
def test_the_order_of_classes_does_not_matter(name):
    order = np.array([2, 0, 1])
    one = OBJECTIVES[name](step_on(Linear(S), Teacher()))
    other = OBJECTIVES[name](step_on(Linear(S[order]), Teacher(T[order]), labels=np.argsort(order)[Y]))
    assert values(other) == pytest.approx(values(one))


def test_without_a_teacher_an_objective_says_what_it_lacks():
    with pytest.raises(ValueError, match="trait of_teacher"):
        OBJECTIVES["rslad"](TrainingStep(*[None] * 5, threat_model=ThreatModel("linf", EPS)))


_logits = arrays(np.float64, (3, 5), elements=st.floats(-30, 30))


@settings(deadline=None)
@given(_logits, _logits, st.floats(0.5, 20))
def test_a_divergence_is_never_negative_and_no_shift_changes_it(teacher, student, temperature):
    one = divergence(torch.tensor(teacher), torch.tensor(student), temperature)
    assert (one >= -1e-12).all()
    shifted = divergence(torch.tensor(teacher) + 7, torch.tensor(student) - 3, temperature)
    assert torch.allclose(one, shifted, atol=1e-9)
    assert divergence(torch.tensor(teacher), torch.tensor(teacher)).abs().max() < 1e-12


@settings(deadline=None)
@given(_logits, st.floats(0.1, 10))
def test_entropy_is_between_0_and_that_of_no_knowledge_and_falls_with_its_order(logits, order):
    value = entropy(torch.tensor(logits), order)
    assert (value >= -1e-9).all()
    assert (value <= math.log(5) + 1e-9).all()
    assert (entropy(torch.tensor(logits), order + 0.5) <= value + 1e-9).all()


@given(arrays(np.float64, (3, 5), elements=st.floats(-8, 8)))
def test_entropy_of_an_order_close_to_1_is_shannons(logits):
    shannon = entropy(torch.tensor(logits))
    for order in (1 - 1e-4, 1 + 1e-4):
        assert torch.allclose(entropy(torch.tensor(logits), order), shannon, atol=5e-3)


def test_logits_of_half_precision_are_compared_in_float32():
    half = torch.tensor([[30.0, 0.0]], dtype=torch.bfloat16)
    assert divergence(half, half + 1).dtype == entropy(half).dtype == torch.float32
