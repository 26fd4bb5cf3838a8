"""Rounds: what was timed in turns, brought to one level -> latency points. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medusa_runtime.tree import CandidateTree

from .latency import LatencyPoint, Load


def points_of(
    trees: Sequence[tuple[CandidateTree, bool]], load: Load, seconds: npt.NDArray[np.float64]
) -> list[LatencyPoint]:
    """What steps take, timed over (rounds, repeats, trees): medians and quartiles, brought to the mean by one factor for all trees. Of each
    run of repeats the first is not counted; not a number where a tree was not in a round. With each tree stands whether its step looks up.

    A machine that is slow for some rounds would favour the trees that sat them out. So each round is brought to the usual
    level by the trees that are in all of them; the quartiles have the levels' spread in them again. Tokens a second are over
    the mean step, slow ones included; a tree's own mean would be noise, but how far means are above medians is the machine's.
    """
    counted = seconds[:, 1:]
    round_medians = np.median(counted, axis=1)
    in_all = round_medians[:, np.isfinite(round_medians).all(axis=0)]
    level = np.median(in_all / np.median(in_all, axis=0), axis=1)
    steady = counted / level[:, None, None]
    median = np.nanmedian(steady, axis=(0, 1))
    to_mean = float(np.nanmean(steady / median) * level.mean())
    points = []
    for i, (t, looks) in enumerate(trees):
        each = steady[:, :, i][np.isfinite(round_medians[:, i])]
        low, high = np.percentile(np.outer(each, level), [25, 75])
        low, middle, high = (to_mean * float(x) for x in (min(low, median[i]), median[i], max(high, median[i])))
        points.append(LatencyPoint(t.nodes, t.heads, *load, middle, low, high, looks))
    return points
