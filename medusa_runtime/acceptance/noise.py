"""Random numbers by counter: a pure function of seed, stream and place, the same on every device, in any order, in graphs.

SplitMix64 (Steele, Lea and Flood, 2014, doi 10.1145/2660193.2660195), whose n-th output is a hash of its start plus n steps; the
start is a hash of seed and stream, and then of the place.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 1 << 64


def _signed(value: int) -> int:
    """The int64 with the lowest 64 bits of ``value``."""
    value %= _BITS
    return value - _BITS if value >= _BITS // 2 else value


def _shifted(z: Tensor, by: int) -> Tensor:
    """Logical right shift of int64, whose own shift is arithmetic."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _hash(z: Tensor) -> Tensor:
    """SplitMix64's output function, a bijection of 64 bits; int64 products wrap around."""
    z = (z ^ _shifted(z, 30)) * _signed(_FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(_SECOND)
    return z ^ _shifted(z, 31)


def uniform(seed: int, streams: Tensor, places: Tensor, count: int) -> Tensor:
    """``count`` numbers in (0, 1) for each place of each stream.

    Args:
        streams: (B,) int64. places: (B, L) int64.

    Returns:
        (B, L, count) float32: 63 random bits rounded, so that small numbers are as precise as large ones.
    """
    keys = _hash(streams * _signed(_GOLDEN) + _signed(seed * _FIRST + _SECOND))
    keys = _hash(keys[:, None] + places * _signed(_GOLDEN))
    counter = torch.arange(1, count + 1, device=streams.device)
    bits = _hash(keys[..., None] + counter * _signed(_GOLDEN))
    return (_shifted(bits, 1).float() * 2.0**-63).clamp(2.0**-63, 1 - 2.0**-24)


def gumbel(seed: int, streams: Tensor, places: Tensor, count: int) -> Tensor:
    """(B, L, count) float32 standard Gumbel numbers, -log of exponential ones; arguments as for :func:`uniform`.

    The argmax of log p + Gumbel noise is a draw from p. What makes an unlikely token win is an exponential number close to
    0, which is where :func:`uniform` is precise.
    """
    return -(-torch.log1p(-uniform(seed, streams, places, count))).log()
