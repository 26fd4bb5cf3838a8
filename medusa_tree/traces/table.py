"""RankTable: a trace's distinct rows of ranks, sorted, so that counting and replay cost rows, not positions.

A trace of ten million positions with H heads of K candidates has at most (K + 1)^H distinct rows, 161,051 for
K = 10 and H = 5, and far fewer in practice. Rows are sorted, so the positions that follow one path are one run of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medusa_runtime.tree import CandidateTree, Path

MISS = -1  # the token is not among the candidates kept
LARGEST_LOOKUP = 1 << 24  # keys up to here are counted in one array, larger ones sorted


@dataclass(frozen=True)
class RankTable:
    """Distinct rows of ranks, each up to its first MISS: nothing behind a miss can be accepted.

    rows: (U, H) int16, sorted, MISS lowest.
    index: (P,) int32, each position's row.
    """

    rows: npt.NDArray[np.int16]
    index: npt.NDArray[np.int32]

    @classmethod
    def of(cls, ranks: npt.NDArray[np.int16], candidates: int) -> RankTable:
        """Tabulate ranks (P, H) of K = ``candidates``."""
        base = candidates + 1
        keys = np.zeros(len(ranks), dtype=np.int64)
        alive = np.ones(len(ranks), dtype=np.bool_)
        bound = 1  # keys are below this
        for column in ranks.T:
            if bound > np.iinfo(np.int64).max // base:  # many heads: renumber the prefixes seen, keeping their order
                seen, keys = np.unique(keys, return_inverse=True)
                bound = len(seen)
            digits = column.astype(np.int64)
            digits += 1
            digits *= alive
            keys *= base
            keys += digits
            alive &= digits > 0
            bound *= base
        if bound <= max(LARGEST_LOOKUP, 4 * len(keys)):
            present = np.zeros(bound, dtype=np.bool_)
            present[keys] = True
            number = np.cumsum(present, dtype=np.int32)
            number -= 1
            index = number[keys]
        else:
            index = np.unique(keys, return_inverse=True)[1].astype(np.int32)
        first = np.empty(int(index.max(initial=-1)) + 1, dtype=np.int64)
        first[index] = np.arange(len(index))  # some position of each row
        rows = ranks[first]
        rows[np.logical_or.accumulate(rows < 0, axis=1)] = MISS
        return cls(rows, index)

    def weights(self, positions: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        """(U,) how often each row occurs, at all positions or at those given (a position may be given repeatedly)."""
        index = self.index if positions is None else self.index[positions]
        return np.bincount(index, minlength=len(self.rows))

    def reach(self, tree: CandidateTree) -> npt.NDArray[np.int32]:
        """(U, D): the node that each row reaches at each depth; N + 1 where it has left the tree. Of the heads' N paths: what a lookup
        proposes is in no table.

        Node numbers rise along a path, so the tree's first n nodes accept ``(reach <= n).sum(axis=1)`` tokens of
        a row: one pass serves every prefix of the order.
        """
        paths = len(tree.paths)
        dead = paths + 1
        width = 1 + max(tree.width, int(self.rows.max(initial=0)) + 1)
        child = np.full((dead + 1, width), dead, dtype=np.int32)  # the last column is MISS, rank -1
        if paths:
            child[tree.parents[1:dead], tree.ranks[1:dead]] = np.arange(1, dead)
        depth = min(tree.heads, self.rows.shape[1])
        nodes = np.empty((len(self.rows), depth), dtype=np.int32)
        at = np.zeros(len(self.rows), dtype=np.int32)
        for d in range(depth):
            at = child[at, self.rows[:, d]]
            nodes[:, d] = at
        return nodes

    def accepted(self, tree: CandidateTree) -> npt.NDArray[np.uint8]:
        """(U,) tokens of each row that the tree's paths accept, the root not counted."""
        return (self.reach(tree) <= len(tree.paths)).sum(axis=1, dtype=np.uint8)


class PathCounts:
    """How often each path is followed, by bisection in the sorted rows.

    Args:
        rows: (U, H) as in :class:`RankTable`.
        weights: (U,) occurrences of each.
        candidates: K.
    """

    def __init__(self, rows: npt.NDArray[np.int16], weights: npt.NDArray[np.int64], candidates: int) -> None:
        self.columns = np.ascontiguousarray(rows.T)
        self.before = np.concatenate([[0], np.cumsum(weights)])
        self.edges = np.arange(candidates + 1)
        self.runs: dict[Path, tuple[int, int]] = {(): (0, len(rows))}

    @property
    def total(self) -> int:
        return int(self.before[-1])

    def run(self, path: Path) -> tuple[int, int]:
        """First row that starts with the path, and the row behind the last."""
        if path not in self.runs:
            first, last = self.run(path[:-1])
            column = self.columns[len(path) - 1, first:last]
            low, high = np.searchsorted(column, [path[-1], path[-1] + 1])
            self.runs[path] = (first + int(low), first + int(high))
        return self.runs[path]

    def of(self, path: Path) -> int:
        """Positions that follow the path."""
        first, last = self.run(path)
        return int(self.before[last] - self.before[first])

    def children(self, path: Path) -> npt.NDArray[np.int64]:
        """(K,) positions that follow the path and then each rank."""
        first, last = self.run(path)
        edges = first + np.searchsorted(self.columns[len(path), first:last], self.edges)
        return np.diff(self.before[edges])
