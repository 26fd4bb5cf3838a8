"""Ranges: neighbouring classes of steps share a tree; the best few, by dynamic programming. NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def best_ranges(worth: npt.NDArray[np.float64], most: int, first: npt.NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """For 1, 2, ..., ``most`` ranges the best way to cut C classes, in their order, into so many, each served by one of T trees. Exact.

    Args:
        worth: (C, T) what each tree is worth on the steps of each class; adds up over classes. -inf where it may not serve.
        most: ranges at most; fewer where there are not so many classes.
        first: (T,) trees that may serve the range in which class 0 is.

    Returns:
        for each number of ranges [(first class, tree), ...], in order.
    """
    classes, trees = worth.shape
    total = np.concatenate([np.zeros((1, trees)), np.cumsum(worth, axis=0)])
    value = np.full((most + 1, classes + 1), -np.inf)
    value[0, 0] = 0.0
    step = np.zeros((most + 1, classes + 1, 2), dtype=np.int64)  # where the last range begins, and its tree
    for ranges in range(1, most + 1):
        for end in range(ranges, classes + 1):
            for begin in range(ranges - 1, end):
                gain = total[end] - total[begin]
                if begin == 0:
                    gain = np.where(first, gain, -np.inf)
                tree = int(np.argmax(gain))
                if (new := value[ranges - 1, begin] + gain[tree]) > value[ranges, end]:
                    value[ranges, end], step[ranges, end] = new, (begin, tree)
    found = []
    for ranges in range(1, min(most, classes) + 1):
        end, cuts = classes, []
        for n in range(ranges, 0, -1):
            begin, tree = step[n, end].tolist()
            cuts.append((begin, tree))
            end = begin
        found.append(cuts[::-1])
    return found
