"""Threads: how many pay on a CPU that other processes may hold cores of."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import torch

CLEAR = 1.5  # so many times faster before fewer threads are taken: what noise does not make
LONG = 0.15  # seconds for a count: some turns of the scheduler


def settle_threads() -> str:
    """Have torch use fewer threads where more of them are slower, and say so; "" where nothing changes.

    The threads of a product wait for one another at its end, busily. Where another process holds a core, one of them waits for its
    turn on it, and all the others for that one, at every product: on two cores beside one busy process a step takes ten times
    as long with two threads as with one. A user who sets OMP_NUM_THREADS has chosen.
    """
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return ""
    counts = [most >> i for i in range(most.bit_length())]
    try:
        chosen = best_threads({n: _burst(n) for n in counts})
    finally:
        torch.set_num_threads(most)
    if chosen == most:
        return ""
    torch.set_num_threads(chosen)
    return (
        f"Other processes hold cores of this machine: {chosen} thread{'s' * (chosen > 1)} instead of {most}, which are slower now. "
        "Times taken beside other work are that work's, too; OMP_NUM_THREADS sets another number."
    )


def best_threads(seconds: Mapping[int, float]) -> int:
    """The count to take, of ``seconds`` a product by count: the largest, unless a smaller one is CLEAR times as fast."""
    most = max(seconds)
    fastest = min(seconds, key=lambda n: (seconds[n], -n))
    return fastest if seconds[fastest] * CLEAR < seconds[most] else most


def _burst(threads: int) -> float:
    """Seconds a product of a decoding step's kind, the mean of a burst, its first not counted."""
    torch.set_num_threads(threads)
    x, weight = torch.ones(16, 256), torch.ones(256, 1024)
    x @ weight
    begin, done, took = time.perf_counter(), 0, 0.0
    while took < LONG:
        x @ weight
        done, took = done + 1, time.perf_counter() - begin
    return took / done
