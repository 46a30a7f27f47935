import pytest
import torch
from torch import nn

from hf_robust_transfer.transfer import DISTANCES, feature_distance

STUDENT = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0]])
TEACHER = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        ("l1", (7 + 3) / 2),
        ("l2", (5 + 5**0.5) / 2),
        ("squared_l2", (25 + 5) / 2),
        ("cosine", (1 + 1) / 2),
    ],
)
def test_each_distance_is_the_mean_over_the_batch_worked_out_by_hand(distance, expected):
    assert feature_distance(STUDENT, TEACHER, distance).item() == pytest.approx(expected)


def test_every_distance_is_worked_out_above():
    assert DISTANCES.keys() == {"l1", "l2", "squared_l2", "cosine"}


def test_cosine_sees_the_angle_and_not_the_length():
    angle = torch.tensor(0.7)
    student = torch.stack([angle.cos(), angle.sin()])[None]
    for length in (0.1, 1.0, 50.0):
        distance = feature_distance(length * student, torch.tensor([[2.0, 0.0]]), "cosine")
        assert distance.item() == pytest.approx(1 - angle.cos().item(), abs=1e-6)


@pytest.fixture
def student():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_the_gradient_to_the_students_weights_is_that_of_finite_differences(student, distance):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    feature_distance(student(images), teacher, distance).backward()
    for parameter in student.parameters():
        weights = parameter.data.flatten()
        for entry in range(len(weights)):
            kept = weights[entry].item()
            around = []
            for shift in (1e-6, -1e-6):
                weights[entry] = kept + shift
                around.append(feature_distance(student(images), teacher, distance).item())
            weights[entry] = kept
            assert parameter.grad.flatten()[entry].item() == pytest.approx((around[0] - around[1]) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_no_gradient_reaches_the_teacher(student, distance):
    images = torch.randn(3, 5, dtype=torch.float64)
    teacher = nn.Linear(5, 4).double()
    feature_distance(student(images), teacher(images), distance).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.parameters())


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_where_the_features_are_equal_distance_and_gradient_are_zero(distance):
    teacher = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = teacher.clone().requires_grad_()
    reached = feature_distance(features, teacher, distance)
    reached.backward()
    assert reached.item() == pytest.approx(0, abs=1e-12)
    assert features.grad.abs().max() < 1e-12


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_dead_features_give_no_nan(distance):
    features = torch.zeros(2, 8, requires_grad=True)
    feature_distance(features, torch.ones(2, 8), distance).backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("distance", list(DISTANCES))
@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_low_precision_features_are_compared_in_float32(distance, given, taken):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 2048, generator=generator).to(given) for _ in range(2))
    reached = feature_distance(student, teacher, distance)
    exact = feature_distance(student.double(), teacher.double(), distance)
    assert reached.dtype == taken
    assert reached.item() == pytest.approx(exact.item(), rel=1e-5)


def test_large_float16_features_do_not_overflow():
    assert feature_distance(torch.full((1, 4), 600.0).half(), torch.zeros(1, 4).half(), "squared_l2").item() == 4 * 600**2


def test_features_of_different_sizes_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match="size 4 but the student's 3"):
        feature_distance(torch.zeros(2, 3), torch.zeros(2, 4))


def test_an_unknown_distance_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ValueError, match="l1, l2, squared_l2 or cosine"):
        feature_distance(STUDENT, TEACHER, "l3")
