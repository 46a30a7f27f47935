import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from hf_robust_transfer.errors import UsageError
from hf_robust_transfer.randomness import sample_keys
from hf_robust_transfer.threat_model import ThreatModel, parse_eps

norms = st.sampled_from(["linf", "l2"])


@st.composite
def threat_models(draw):
    norm = draw(norms)
    return ThreatModel(norm, draw(st.floats(0, 1 if norm == "linf" else 5)))


@st.composite
def situations(draw, dtype=torch.float32):
    """A threat model, images that touch the box here and there, and a generator for what else is needed."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = [draw(st.integers(1, most)) for most in (4, 3, 9, 9)]
    images = (torch.rand(shape, generator=generator, dtype=dtype) * 1.4 - 0.2).clamp(0, 1)
    return draw(threat_models()), images, generator


def distances(adversarial, images, norm):
    delta = (adversarial.double() - images.double()).flatten(1)
    return torch.linalg.vector_norm(delta, ord=math.inf if norm == "linf" else 2, dim=1)


@given(
    situation=situations(),
    scales=st.lists(st.sampled_from([0.0, 1e-30, 1e-8, 1.0, 1e6, 1e30]), min_size=1, max_size=6),
    step_size=st.floats(1e-4, 10),
    random_start=st.booleans(),
)
@settings(max_examples=200)
def test_no_steps_whatever_the_gradients_leave_the_ball_or_the_box(situation, scales, step_size, random_start):
    threat_model, images, generator = situation
    adversarial = images
    if random_start:
        adversarial = threat_model.random_start(images, sample_keys(0, torch.arange(len(images))))
    for scale in scales:
        gradient = torch.randn(images.shape, generator=generator) * scale
        gradient[0] = 0
        adversarial = threat_model.project(adversarial + threat_model.step(gradient, step_size), images)
        assert distances(adversarial, images, threat_model.norm).max() <= threat_model.eps
        assert adversarial.min() >= 0 and adversarial.max() <= 1


@given(situation=situations(torch.float64))
def test_projecting_twice_is_projecting_once(situation):
    threat_model, images, generator = situation
    once = threat_model.project(images + 3 * torch.randn(images.shape, generator=generator, dtype=torch.float64), images)
    torch.testing.assert_close(threat_model.project(once, images), once, rtol=0, atol=1e-12)


@given(situation=situations(torch.float64))
def test_what_is_inside_already_is_not_moved(situation):
    threat_model, images, _ = situation
    inside = threat_model.random_start(images, sample_keys(1, torch.arange(len(images))))
    torch.testing.assert_close(threat_model.project(inside, images), inside, rtol=0, atol=1e-12)


@given(situation=situations(torch.float64))
def test_the_linf_projection_is_the_nearest_allowed_point(situation):
    threat_model, images, generator = situation
    threat_model = ThreatModel("linf", min(threat_model.eps, 1))
    outside = images + torch.randn(images.shape, generator=generator, dtype=torch.float64)
    projected = threat_model.project(outside, images)
    # A projection onto a convex set is where every allowed direction is at an obtuse angle to the way outside.
    for _ in range(10):
        allowed = images + threat_model.eps * (2 * torch.rand(images.shape, generator=generator, dtype=torch.float64) - 1)
        inner = ((outside - projected) * (allowed.clamp(0, 1) - projected)).flatten(1).sum(1)
        assert inner.max() <= 1e-9


@given(situation=situations(torch.float64))
def test_the_l2_clip_is_the_nearest_point_of_the_ball(situation):
    threat_model, images, generator = situation
    threat_model = ThreatModel("l2", threat_model.eps)
    delta = 2 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    clipped = threat_model.clip(delta)
    for _ in range(10):
        other = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        length = distances(other, torch.zeros_like(other), "l2").view(-1, 1, 1, 1)
        other *= threat_model.eps * torch.rand((), generator=generator, dtype=torch.float64) / length
        assert ((delta - clipped) * (other - clipped)).flatten(1).sum(1).max() <= 1e-9


@given(situation=situations(torch.float64), step_size=st.floats(1e-3, 10))
def test_a_step_has_its_length_and_no_other_of_that_length_climbs_more(situation, step_size):
    threat_model, images, generator = situation
    gradient = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    step = threat_model.step(gradient, step_size)
    lengths = distances(step, torch.zeros_like(step), threat_model.norm)
    torch.testing.assert_close(lengths, torch.full_like(lengths, step_size))
    climbed = (gradient * step).flatten(1).sum(1)
    for _ in range(20):
        other = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        other *= (step_size / distances(other, torch.zeros_like(other), threat_model.norm)).view(-1, 1, 1, 1)
        assert ((gradient * other).flatten(1).sum(1) <= climbed + 1e-9).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e-8, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_has_its_length_however_small_or_large_the_gradient(norm, scale):
    # A confident network's gradient is tiny; an attack that then stands still reports robustness that is not there.
    gradient = scale * torch.linspace(-1, 1, 24).view(2, 3, 2, 2)
    step = ThreatModel(norm, 1.0).step(gradient, 0.25)
    assert distances(step, torch.zeros_like(step), norm).tolist() == pytest.approx([0.25, 0.25], rel=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_zero_gradient_gives_a_zero_step(norm):
    assert torch.equal(ThreatModel(norm, 1.0).step(torch.zeros(2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4))


def test_the_linf_start_is_uniform_in_every_pixel():
    eps = 0.3
    images = torch.full((2_000, 2, 1, 2), 0.5, dtype=torch.float64)
    delta = ThreatModel("linf", eps).random_start(images, sample_keys(0, torch.arange(2_000))) - images
    for pixel in delta.flatten(1).T:
        assert stats.kstest(pixel.numpy(), stats.uniform(-eps, 2 * eps).cdf).pvalue > 1e-3
    assert delta.flatten(1).T.corrcoef().fill_diagonal_(0).abs().max() < 0.1


def test_the_l2_start_is_uniform_in_the_ball():
    eps, dimensions = 0.4, 12
    images = torch.full((3_000, 3, 2, 2), 0.5, dtype=torch.float64)
    delta = ThreatModel("l2", eps).random_start(images, sample_keys(0, torch.arange(3_000))) - images
    delta = delta.flatten(1)
    radius = delta.norm(dim=1)
    assert stats.kstest((radius / eps).numpy() ** dimensions, "uniform").pvalue > 1e-3
    for coordinate in (0, 11):
        share = (delta[:, coordinate] / radius).numpy() ** 2
        assert stats.kstest(share, stats.beta(0.5, (dimensions - 1) / 2).cdf).pvalue > 1e-3
    direction = delta / radius[:, None]
    for values in (direction, direction.abs()):
        assert torch.stack([radius, *values.T]).corrcoef()[0, 1:].abs().max() < 0.1
    assert direction.T.corrcoef().fill_diagonal_(0).abs().max() < 0.1


@given(situation=situations())
def test_a_random_start_is_allowed(situation):
    threat_model, images, _ = situation
    start = threat_model.random_start(images, sample_keys(0, torch.arange(len(images))))
    assert start.dtype == images.dtype
    assert distances(start, images, threat_model.norm).max() <= threat_model.eps
    assert start.min() >= 0 and start.max() <= 1


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
shapes = st.sampled_from([(1, 1, 1), (1, 28, 28), (3, 8, 8), (3, 32, 32), (3, 64, 64), (3, 224, 224), (3, 384, 384)])
radii = st.sampled_from([0.0, 1e-12, 1e-6, 1e-4, 1 / 255, 8 / 255, 0.5, 1.0, 3.0, 5.0])


@given(
    shape=shapes | st.just((3, 512, 512)) | st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    norm=norms,
    eps=radii | st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_in_every_type_and_at_every_size_attacks_end_inside_the_ball(shape, norm, eps, dtype, scale, seed):
    threat_model = ThreatModel(norm, min(eps, 1.0) if norm == "linf" else eps)
    generator = torch.Generator().manual_seed(seed)
    images = (torch.rand((2, *shape), generator=generator) * 1.4 - 0.2).clamp(0, 1).to(dtype)
    away = scale * threat_model.eps * torch.randn(images.shape, generator=generator)
    start = threat_model.random_start(images, sample_keys(seed, torch.arange(2)))
    for ended in (start, threat_model.project((images + away).to(dtype), images), threat_model.project(1 - images, images)):
        assert ended.dtype == dtype and ended.min() >= 0 and ended.max() <= 1
        assert (distances(ended, images, norm) <= threat_model.eps).all()
        assert torch.equal(threat_model.project(ended, images), ended)
    clipped = threat_model.clip(away.to(dtype))
    assert clipped.dtype == dtype and (distances(clipped, torch.zeros_like(clipped), norm) <= threat_model.eps).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_to_a_type_costs_no_more_than_a_step_of_it(dtype):
    images = (torch.rand((4, 3, 8, 8)) * 0.8 + 0.1).to(dtype)
    signs = (torch.rand(images.shape) - 0.5).sign().to(dtype)
    threat_model = ThreatModel("linf", 0.1)
    moved = (threat_model.project(images + signs, images).double() - images.double()).abs()
    assert (moved >= 0.1 - torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_in_a_gradient_gives_no_image_that_is_none(norm, value):
    images = torch.full((2, 3, 2, 2), 0.5)
    gradient = torch.ones_like(images)
    gradient[0, 0, 0, 0] = value
    threat_model = ThreatModel(norm, 0.1)
    moved = threat_model.project(images + threat_model.step(gradient, 0.05), images)
    assert moved.isfinite().all() and not torch.equal(moved[1], images[1])


@given(situation=situations())
def test_distance_is_that_of_the_norm(situation):
    threat_model, images, generator = situation
    other = torch.rand(images.shape, generator=generator)
    measured = threat_model.distance(other, images)
    torch.testing.assert_close(measured, distances(other, images, threat_model.norm))


def test_other_bounds_are_kept_too():
    threat_model = ThreatModel("linf", 3.0, bounds=(-1.0, 3.0))
    projected = threat_model.project(torch.tensor([[[[9.0, -9.0, 0.5]]]]), torch.tensor([[[[2.5, 1.0, 0.0]]]]))
    assert projected.flatten().tolist() == [3.0, -1.0, 0.5]


def test_scaling_changes_the_radius_and_nothing_else():
    assert ThreatModel("l2", 2.0, bounds=(0.0, 2.0)).scaled(0.25) == ThreatModel("l2", 0.5, bounds=(0.0, 2.0))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("8/255", 8 / 255),
        (8 / 255, 8 / 255),
        ("0.031", 0.031),
        (" 8 / 255 ", 8 / 255),
        ("1e-2", 0.01),
        (0, 0.0),
        ("0", 0.0),
    ],
)
def test_a_radius_is_read_as_written(written, expected):
    assert parse_eps(written) == expected
    assert ThreatModel("linf", written).eps == expected


@pytest.mark.parametrize("written", ["abc", "8/0", "", "8/", "nan", "inf", math.nan, math.inf, -0.1, "-8/255", None])
def test_what_is_no_radius_is_refused(written):
    with pytest.raises(ValueError, match="eps"):
        ThreatModel("linf", written)


@pytest.mark.parametrize("written", [8, "8", 1.001, "255/8"])
def test_a_linf_radius_in_steps_of_255_is_refused_and_the_message_says_what_to_write(written):
    with pytest.raises(ValueError, match=r"/255"):
        ThreatModel("linf", written)


def test_an_l2_radius_may_exceed_one():
    assert ThreatModel("l2", 3).eps == 3.0


def test_an_unknown_norm_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ValueError, match="linf, l2"):
        ThreatModel("l1", 0.1)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.5, 0.5)])
def test_empty_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds"):
        ThreatModel("linf", 0.0, bounds=bounds)


@pytest.mark.parametrize(("norm", "widest"), [("linf", 2.0), ("l2", 2 * 48**0.5)])
def test_a_radius_beyond_the_diagonal_of_the_box_is_refused(norm, widest):
    assert ThreatModel(norm, 1.0, bounds=(-1.0, 1.0)).widest((3, 4, 4)) == pytest.approx(widest)
    ThreatModel("l2", 48**0.5).check_radius((3, 4, 4))
    with pytest.raises(UsageError, match=r"eps=8 is larger than .*6\.928.*8/255"):
        ThreatModel("l2", 8).check_radius((3, 4, 4))
