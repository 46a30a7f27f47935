"""Objectives against a linear model small enough to work out by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from hf_robust_transfer.modeling import ClassifierOutput
from hf_robust_transfer.objectives import OBJECTIVES, ReplaySampler, TrainingStep
from hf_robust_transfer.randomness import fold_in, sample_keys
from hf_robust_transfer.threat_model import ThreatModel

W = np.array([[0.5, -1.0, 2.0, 0.25], [-0.5, 1.0, -1.0, 0.5]])  # logits = W x: two classes, four pixels
X = np.array([[0.2, 0.8, 0.5, 0.5], [0.6, 0.4, 0.3, 0.7], [0.5, 0.5, 0.4, 0.6]])
Y = np.array([0, 1, 0])
EPS = 0.1


class Linear(torch.nn.Module):
    """A classifier of 1×2×2 images whose features are the pixels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(W))

    def forward(self, images):
        return images.flatten(1) @ self.weight.T

    def outputs(self, images):
        return ClassifierOutput(self(images), images.flatten(1))


def step_on(model, **options):
    return TrainingStep(
        student=model,
        attacked=model,
        images=torch.tensor(X).view(-1, 1, 2, 2),
        labels=torch.tensor(Y),
        indices=torch.arange(len(X)) + 5,
        threat_model=ThreatModel("linf", EPS),
        **options,
    )


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def cross_entropy(weight, images):
    return -log_softmax(images @ weight.T)[np.arange(len(Y)), Y].mean()


def input_gradient(weight, images):
    """d CE / d x of each sample: Wᵀ (softmax − onehot)."""
    return (np.exp(log_softmax(images @ weight.T)) - np.eye(2)[Y]) @ weight


def weight_gradient(weight, images):
    return (np.exp(log_softmax(images @ weight.T)) - np.eye(2)[Y]).T @ images / len(images)


def start(seed):
    """The random start of the attack: its address is the seed, restart 0, and the sample's index."""
    keys = sample_keys(fold_in(seed, 0), torch.arange(len(X)) + 5)
    return ThreatModel("linf", EPS).random_start(torch.tensor(X).view(-1, 1, 2, 2), keys).flatten(1).numpy()


def test_natural_is_the_cross_entropy_of_clean_images():
    output = OBJECTIVES["natural"](step_on(Linear()))
    assert {name: value.item() for name, value in output.terms.items()} == {"natural": pytest.approx(cross_entropy(W, X))}
    assert torch.equal(output.clean.features, torch.tensor(X))


def test_pgd_reaches_the_worst_corner_of_a_linear_model():
    # For two classes the loss grows along ±(w₁ − w₀), whatever the image, so enough steps end in that corner.
    output = OBJECTIVES["pgd"](step_on(Linear(), attack_steps=20))
    corner = X + EPS * np.sign((W[1] - W[0]) * np.where(Y == 0, 1, -1)[:, None])
    assert output.terms["adversarial"].item() == pytest.approx(cross_entropy(W, corner))
    assert output.clean is None


def test_fast_takes_one_step_of_five_quarters_of_eps_from_its_start():
    output = OBJECTIVES["fast"](step_on(Linear(), seed=3))
    begun = start(3)
    expected = np.clip(begun + 1.25 * EPS * np.sign(input_gradient(W, begun)), X - EPS, X + EPS).clip(0, 1)
    assert output.terms["adversarial"].item() == pytest.approx(cross_entropy(W, expected))


def test_trades_is_cross_entropy_plus_beta_times_the_maximised_divergence():
    model = Linear()
    output = OBJECTIVES["trades"](step_on(model, attack_steps=4, attack_step_size=0.03, seed=7), beta=3.0)
    clean, adversarial = log_softmax(X @ W.T), start(7)
    for _ in range(4):
        # d KL(p ‖ q(x')) / d x' = Wᵀ (q − p)
        gradient = (np.exp(log_softmax(adversarial @ W.T)) - np.exp(clean)) @ W
        adversarial = np.clip(adversarial + 0.03 * np.sign(gradient), X - EPS, X + EPS).clip(0, 1)
    divergence = (np.exp(clean) * (clean - log_softmax(adversarial @ W.T))).sum(1).mean()
    assert output.terms["natural"].item() == pytest.approx(cross_entropy(W, X))
    assert output.terms["trades"].item() == pytest.approx(3.0 * divergence)
    assert divergence > 0.001

    sum(output.terms.values()).backward()
    numerical = np.zeros_like(W)
    for index in np.ndindex(W.shape):  # the gradient reaches the weights through both sides of the divergence
        for sign in (1, -1):
            moved = W.copy()
            moved[index] += sign * 1e-6
            p, q = log_softmax(X @ moved.T), log_softmax(adversarial @ moved.T)
            loss = cross_entropy(moved, X) + 3.0 * (np.exp(p) * (p - q)).sum(1).mean()
            numerical[index] += sign * loss / 2e-6
    assert model.weight.grad.numpy() == pytest.approx(numerical, abs=1e-6)


def test_free_moves_weights_and_perturbation_with_one_backward_pass_per_replay():
    model, carried, rate = Linear(), {}, 0.3
    weight, delta = W.copy(), np.zeros_like(X)
    for _ in range(4):
        output = OBJECTIVES["free"](step_on(model, carried=carried))
        model.zero_grad()
        output.terms["adversarial"].backward()
        with torch.no_grad():
            model.weight -= rate * model.weight.grad

        images = np.clip(X + delta, 0, 1)
        assert output.terms["adversarial"].item() == pytest.approx(cross_entropy(weight, images))
        pixel_gradient = input_gradient(weight, images)
        weight = weight - rate * weight_gradient(weight, images)
        delta = np.clip(delta + EPS * np.sign(pixel_gradient), -EPS, EPS)
        assert model.weight.detach().numpy() == pytest.approx(weight)
        assert carried["free_perturbation_0"].flatten(1).numpy() == pytest.approx(delta)


def test_free_keeps_the_perturbations_of_accumulated_batches_apart():
    carried = {}
    for slot in (0, 1):
        sum(OBJECTIVES["free"](step_on(Linear(), carried=carried, slot=slot)).terms.values()).backward()
    assert set(carried) == {"free_perturbation_0", "free_perturbation_1"}


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_terms_are_finite_scalars_with_gradients(objective):
    model = Linear()
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, dtype=torch.float64)).requires_grad_(False)
    step = dataclasses.replace(step_on(model), distance_to_source=lambda features: features.norm(dim=1))
    step = dataclasses.replace(step, teacher=teacher, teacher_clean=lambda: teacher(step.images))
    output = OBJECTIVES[objective](step)
    assert all(value.shape == () and torch.isfinite(value) for value in output.terms.values())
    sum(output.terms.values()).backward()
    assert model.weight.grad.abs().sum() > 0


def test_replays_follow_each_other_and_passes_cover_the_data():
    sampler = ReplaySampler(22, group=4, replays=3, seed=1)
    assert len(sampler) == 24  # 5 whole groups a pass, 2 of them an epoch, 3 times each
    shown = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        epoch_indices = list(sampler)
        assert len(epoch_indices) == len(sampler)
        for group in range(2):
            replays = [tuple(epoch_indices[group * 12 + replay * 4 :][:4]) for replay in range(3)]
            assert len(set(replays)) == 1
            shown.append(replays[0])
    passes = [[index for group in shown[first : first + 5] for index in group] for first in (0, 5)]
    assert [len(set(indices)) for indices in passes] == [20, 20]
    assert passes[0] != passes[1]
    sampler.set_epoch(0)
    assert list(sampler)[:4] == list(shown[0])


def test_a_training_set_smaller_than_a_group_is_refused():
    with pytest.raises(ValueError, match="lower per_device_train_batch_size"):
        ReplaySampler(7, group=8, replays=2, seed=0)
