"""Turns: contestants on the same prompts, one after another in random order, so that a drift of the machine falls on all."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Way = TypeVar("Way", bound=Hashable)


def in_turns(ways: Sequence[Way], prompts: int, rounds: int, seed: int = 0) -> Iterator[tuple[int, int, Way]]:
    """(round, number of the prompt, way): a prompt at a time, every way on it in a new random order."""
    rng = np.random.default_rng(seed)
    for r in range(rounds):
        for i in range(prompts):
            for w in rng.permutation(len(ways)):
                yield r, i, ways[w]
