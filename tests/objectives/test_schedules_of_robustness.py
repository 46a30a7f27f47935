"""What of robustness grows or comes from a source: the anchor, β by accuracy, ε by steps."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_robust_transfer.modeling import ClassifierOutput
from hf_robust_transfer.objectives import OBJECTIVES, TrainingStep, anchor, trades
from hf_robust_transfer.threat_model import ThreatModel
from hf_robust_transfer.transfer.distillation import feature_distances

W = torch.tensor([[0.5, -1.0, 2.0, 0.25], [-0.5, 1.0, -1.0, 0.5], [1.0, 0.3, -0.2, -0.6]], dtype=torch.float64)
V = torch.tensor([[1.0, -0.5, 0.25], [-1.0, 0.5, 0.75]], dtype=torch.float64)  # logits = V z, z = W x
X = torch.tensor([[0.2, 0.8, 0.5, 0.5], [0.6, 0.4, 0.3, 0.7], [0.5, 0.5, 0.4, 0.6]], dtype=torch.float64)
Y = torch.tensor([0, 1, 0])
EPS = 0.05


class Linear(torch.nn.Module):
    """A classifier of 1×2×2 images with three linear features, that counts its passes."""

    def __init__(self):
        super().__init__()
        self.weight, self.passes = torch.nn.Parameter(W.clone()), 0

    def outputs(self, images):
        self.passes += 1
        features = images.flatten(1) @ self.weight.T
        return ClassifierOutput(features @ V.T, features)

    def forward(self, images):
        return self.outputs(images).logits


def step_of(student, eps=EPS, **options):
    images = X.reshape(-1, 1, 2, 2)
    given = {"threat_model": ThreatModel("linf", eps), "attack_steps": 20, "attack_step_size": EPS / 4, **options}
    return TrainingStep(student=student, attacked=student, images=images, labels=Y, indices=torch.arange(3), **given)


@pytest.mark.parametrize("distance", ["l2", "squared_l2"])
def test_the_anchor_is_the_distance_at_the_farthest_corner_of_the_ball(distance):
    # A convex function of x' is largest in a corner of the box; there are 16 of them.
    source = (X @ W.T) + torch.tensor([3.0, -3.0, 3.0])  # far off: the same corner is the farthest from everywhere
    corners = torch.cartesian_prod(*[torch.tensor([-EPS, EPS], dtype=torch.float64)] * 4)
    expected = torch.stack([(((x + corners) @ W.T) - z0).norm(dim=1).amax() for x, z0 in zip(X, source, strict=True)])
    expected = expected if distance == "l2" else expected**2
    student = Linear()
    to_source = partial(feature_distances, teacher=source, distance=distance)
    output = anchor(step_of(student, distance_to_source=to_source), weight=2.0, labels=0.5)
    natural = F.cross_entropy(X @ W.T @ V.T, Y)
    assert output.terms["anchor"].item() == pytest.approx(2 * expected.mean().item(), rel=1e-9)
    assert output.terms["natural"].item() == pytest.approx(0.5 * natural.item())
    output.terms["anchor"].backward()
    assert student.weight.grad.abs().sum() > 0
    assert list(anchor(step_of(student, distance_to_source=to_source), labels=0.0).terms) == ["anchor"]


def test_the_anchor_needs_a_source():
    with pytest.raises(ValueError, match="give it the trait of_source"):
        anchor(step_of(Linear()))


@pytest.mark.parametrize("name", ["pgd", "trades", "fast", "anchor"])
def test_at_eps_0_no_attack_is_made(name):
    student = Linear()
    options = {"distance_to_source": partial(feature_distances, teacher=X @ W.T)}
    terms = OBJECTIVES[name](step_of(student, eps=0.0, **options)).terms
    natural = F.cross_entropy(X @ W.T @ V.T, Y).item()
    assert student.passes == (2 if name == "anchor" else 1)
    assert sum(term.item() for term in terms.values()) == pytest.approx(natural)


def test_beta_is_six_times_the_clean_accuracy_of_the_epoch_before():
    # Labels of three batches in each of three epochs, of which so many are right by the model.
    predicted = (X @ W.T @ V.T).argmax(1)
    carried, weights, shares = {}, [], []
    for epoch, rights in enumerate([(1, 3, 2), (0, 1, 0), (3, 3, 3)]):
        for number, right in enumerate(rights):
            labels = torch.where(torch.arange(3) < right, predicted, 1 - predicted)
            step = TrainingStep(
                student=Linear(), attacked=Linear(), images=X.reshape(-1, 1, 2, 2), labels=labels, indices=torch.arange(3),
                threat_model=ThreatModel("linf", EPS), carried=carried, epoch=epoch,
            )  # fmt: skip
            terms = trades(step, beta="auto").terms
            one = trades(TrainingStep(**{**vars(step), "carried": {}}), beta=1.0).terms
            weights.append((terms["trades"] / one["trades"]).item())
            so_far = [1 / 3, 4 / 6, 6 / 9][number] if epoch == 0 else [6 / 9, 1 / 9][epoch - 1]
            shares.append(6 * so_far)
    assert weights == pytest.approx(shares)


def test_what_processes_count_is_added_up():
    step = step_of(Linear(), summed=lambda counts: counts + torch.tensor([5, 7]))
    predicted = (X @ W.T @ V.T).argmax(1)
    right = int((predicted == Y).sum())
    ratio = trades(step, beta="auto").terms["trades"] / trades(step_of(Linear()), beta=1.0).terms["trades"]
    assert ratio.item() == pytest.approx(6 * (right + 5) / 10)
    assert np.array_equal(step.carried["trades_accuracy"].numpy(), [0, right + 5, 10, -1])
