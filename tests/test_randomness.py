import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from hf_robust_transfer.randomness import fold_in, normal, sample_keys, uniform

seeds = st.integers(-(2**63), 2**64)
MASK = 2**64 - 1


def splitmix64(state):
    """Steele et al. (2014), figure 16, in plain Python integers: an endless stream of 64-bit outputs."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def test_the_stream_is_the_published_splitmix64_sequence():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    drawn = uniform(torch.tensor([1234567]), (5,), torch.float64)[0].tolist()
    assert drawn == [(value >> 11) / 2**53 for value in published]


@given(key=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=50)
def test_uniform_equals_splitmix64_in_python_integers(key):
    stream = splitmix64(key & MASK)
    expected = [next(stream) for _ in range(6)]
    keys = torch.tensor([key])
    assert uniform(keys, (2, 3), torch.float64).flatten().tolist() == [(value >> 11) / 2**53 for value in expected]
    assert uniform(keys, (2, 3)).flatten().tolist() == [(value >> 40) / 2**24 for value in expected]


@given(seed=seeds, indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=8), data=st.data())
@settings(max_examples=50)
@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_draw_depends_on_its_index_and_not_on_its_batch(draw, seed, indices, data):
    chosen = data.draw(st.lists(st.integers(0, len(indices) - 1), min_size=1, max_size=8))
    whole = draw(sample_keys(seed, torch.tensor(indices)), (3, 2))
    part = draw(sample_keys(seed, torch.tensor([indices[position] for position in chosen])), (3, 2))
    assert torch.equal(part, whole[chosen])


def test_draws_are_uniform_over_samples_and_within_a_sample():
    draws = uniform(sample_keys(0, torch.arange(20_000)), (8,), torch.float64)
    assert stats.kstest(draws[:, 0].numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(draws[:, 7].numpy(), "uniform").pvalue > 1e-3
    one_sample = uniform(sample_keys(0, torch.tensor([7])), (20_000,), torch.float64)[0]
    assert stats.kstest(one_sample.numpy(), "uniform").pvalue > 1e-3


def test_draws_are_normal():
    draws = normal(sample_keys(0, torch.arange(5_000)), (4,), torch.float64)
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    assert draws.T.corrcoef().fill_diagonal_(0).abs().max() < 0.05


@pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["seed", "epoch", "index"])
def test_neighbouring_addresses_give_uncorrelated_draws(other):
    seed, epoch, shift = other
    here = uniform(sample_keys(fold_in(0, 0), torch.arange(5_000)), (4,), torch.float64).flatten()
    there = uniform(sample_keys(fold_in(seed, epoch), torch.arange(5_000) + shift), (4,), torch.float64).flatten()
    assert not torch.equal(here, there)
    assert torch.stack([here, there]).corrcoef()[0, 1].abs() < 0.03


def test_a_complemented_key_gives_an_independent_stream():
    keys = sample_keys(0, torch.arange(20_000))
    pair = torch.stack([uniform(keys, (), torch.float64), uniform(~keys, (), torch.float64)])
    assert pair.corrcoef()[0, 1].abs() < 0.03


def test_no_two_samples_or_epochs_share_a_key():
    keys = torch.cat([sample_keys(fold_in(0, epoch), torch.arange(50_000)) for epoch in range(4)])
    assert len(keys.unique()) == len(keys)


@given(seed=seeds, first=st.integers(0, 2**40), second=st.integers(0, 2**40))
@settings(max_examples=100)
def test_fold_in_is_a_seed_that_depends_on_every_integer_and_their_order(seed, first, second):
    assert 0 <= fold_in(seed, first, second) < 2**63
    assert fold_in(seed, first, second) == fold_in(seed, first, second)
    assert (fold_in(seed, first, second) == fold_in(seed, second, first)) == (first == second)
    assert fold_in(seed, first) != fold_in(seed, first + 1)
    assert fold_in(seed, first) != fold_in(seed + 1, first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("draw", [uniform, normal])
def test_the_dtype_and_shape_are_as_asked_for(draw, dtype):
    drawn = draw(sample_keys(0, torch.arange(5)), (2, 3, 4), dtype)
    assert drawn.shape == (5, 2, 3, 4) and drawn.dtype == dtype and drawn.isfinite().all()


def test_a_uniform_draw_never_reaches_one_in_float32():
    drawn = uniform(sample_keys(0, torch.arange(2_000)), (500,))
    assert drawn.min() >= 0 and drawn.max() < 1


def test_drawing_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    normal(sample_keys(3, torch.arange(4)), (2,))
    assert torch.equal(before, torch.get_rng_state())
