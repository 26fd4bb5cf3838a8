"""95% intervals by resampling: positions of one sequence are not independent, so whole sequences are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

GROUPS = 1000  # more sequences than this are pooled at random into so many, which changes nothing but the time


def bootstrap(
    statistic: Callable[..., npt.NDArray[np.float64]], *columns: npt.ArrayLike, resamples: int = 2000, seed: int = 0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The 2.5th and 97.5th percentile of ``statistic`` over resampled sequences.

    Args:
        statistic: of one sum a column, each (resamples, ...): ratios of sums, and what is made of them.
        columns: (S, ...) values a sequence, drawn together, so that ratios and differences are paired.
    """
    data = [np.asarray(c, dtype=np.float64) for c in columns]
    rng = np.random.default_rng(seed)
    items = len(data[0])
    if items > GROUPS:
        group = rng.permutation(items) % GROUPS
        pooled = [np.zeros((GROUPS, *c.shape[1:])) for c in data]
        for into, values in zip(pooled, data, strict=True):
            np.add.at(into, group, values)
        data, items = pooled, GROUPS
    weights = rng.multinomial(items, np.full(items, 1 / items), size=resamples).astype(np.float64)
    low, high = np.percentile(statistic(*(weights @ c for c in data)), [2.5, 97.5], axis=0)
    return low, high


def ratio_interval(above: npt.ArrayLike, below: npt.ArrayLike) -> tuple[float, float]:
    """Interval of sum(above) / sum(below) over (S,) sequences."""
    low, high = bootstrap(lambda a, b: a / b, above, below)
    return float(low), float(high)


def rate_ratio(
    made: npt.ArrayLike, seconds: npt.ArrayLike, other_made: npt.ArrayLike, other_seconds: npt.ArrayLike
) -> tuple[float, float, float]:
    """One rate (tokens over seconds) over another, both measured on the same (S,) items: value, low, high."""

    def ratio(a: Any, b: Any, c: Any, d: Any) -> Any:
        return a / b * d / c

    columns = made, seconds, other_made, other_seconds
    low, high = bootstrap(ratio, *columns)
    return float(ratio(*(np.sum(c) for c in columns))), float(low), float(high)
