"""Randomness with an address: what is drawn depends on (seed, epoch or restart, sample index) and on nothing else.

A counter-based generator (SplitMix64, Steele et al. 2014) written in integer tensor operations, so that a draw is the
same on every device and does not depend on the position in the batch, on the process, or on what was drawn before.
No global random state is read or advanced.
"""

import math

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def fold_in(seed: int, first: int, *more: int) -> int:
    """Derive a new seed from ``seed`` and further integers (an epoch, a restart, the id of a purpose).

    Args:
        seed: any integer.
        first, more: integers; their order matters.

    Returns:
        A seed in [0, 2⁶³).

    Example:
        >>> fold_in(0, 1) != fold_in(0, 2)
        True
    """
    state = seed & _MASK
    for value in (first, *more):
        state = _mix_int(state ^ _mix_int((value + _GOLDEN) & _MASK))
    return state >> 1


def sample_keys(seed: int, indices: Tensor) -> Tensor:
    """One 64-bit key per sample.

    Args:
        seed: the address shared by the batch, usually ``fold_in(seed, epoch)``.
        indices: sample indices in the data set, int64 of shape (B,).

    Returns:
        int64 keys of shape (B,), on the device of ``indices``.
    """
    return _mix(indices.to(torch.int64) * _signed(_GOLDEN) + _signed(_mix_int(seed & _MASK)))


def uniform(keys: Tensor, shape: torch.Size | tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform draws in [0, 1), one independent stream per key.

    Args:
        keys: int64 of shape (B,), from `sample_keys`.
        shape: the shape of one sample's draw, without the batch dimension.
        dtype: a floating type; the draw has 24 random bits, or 53 in float64, before it is rounded to the type.

    Returns:
        A tensor of shape (B, \\*shape).

    Example:
        >>> uniform(sample_keys(0, torch.tensor([3, 5])), (2,)).shape
        torch.Size([2, 2])
    """
    counter = torch.arange(1, math.prod(shape) + 1, device=keys.device, dtype=torch.int64)
    bits = _mix(keys[:, None] + counter * _signed(_GOLDEN))
    precision = 53 if dtype == torch.float64 else 24
    integers = (bits >> (64 - precision)) & ((1 << precision) - 1)
    return (integers.to(torch.promote_types(dtype, torch.float32)) / (1 << precision)).to(dtype).reshape(len(keys), *shape)


def normal(keys: Tensor, shape: torch.Size | tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal draws by the Box–Muller transform; arguments and result as for `uniform`."""
    radius, angle = uniform(keys, (2, *shape), torch.promote_types(dtype, torch.float32)).unbind(1)
    return ((-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()).to(dtype)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MIX[1]) & _MASK
    return value ^ (value >> 31)


def _mix(values: Tensor) -> Tensor:
    # int64 multiplication wraps modulo 2⁶⁴, as SplitMix64 needs; its right shifts are logical, torch's arithmetic.
    for shift, factor in ((30, _MIX[0]), (27, _MIX[1])):
        values = (values ^ _logical_shift(values, shift)) * _signed(factor)
    return values ^ _logical_shift(values, 31)


def _logical_shift(values: Tensor, shift: int) -> Tensor:
    return (values >> shift) & ((1 << (64 - shift)) - 1)
