"""Steps: what a step costs at a load, which steps decoding with a book takes, and what time is left behind each. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medusa_runtime.book import TreeBook
from medusa_runtime.tree import CandidateTree

from ..traces.bookreplay import accepted, sizes_of_sets
from ..traces.lookup import Lookups
from ..traces.replay import visited
from ..traces.trace import RankTrace

CLASSES = (0, 1, 2, 3, 4, 5, 6, 8, 11, 16)  # match lengths from which steps are looked at apart


@dataclass(frozen=True)
class Prices:
    """Seconds of a step at one load, (H + 1, N + 1) by heads read and nodes; infinite where the budget has no room or there is no such
    tree. ``lookup``: what looking up adds to each step of a book that has a chain. ``padded``: every step costs what the book's largest tree
    does. ``batch``: sequences that wait for one another."""

    seconds: npt.NDArray[np.float64]
    padded: bool = False
    batch: int = 1
    lookup: float = 0.0

    @property
    def largest(self) -> int:
        """Nodes."""
        return self.seconds.shape[1] - 1

    @property
    def heads(self) -> int:
        return self.seconds.shape[0] - 1

    def of(self, book: TreeBook) -> npt.NDArray[np.float64]:
        """(2^T,) seconds of a step in which just these of the book's trees are in use (:meth:`BookReplay.seconds`): what a tree of as many
        nodes and heads as any of them has would take."""
        nodes, read = sizes_of_sets(book, self.padded)
        return self.seconds[read, nodes] + self.lookup * bool(book.chain)

    def each(self, book: TreeBook) -> npt.NDArray[np.float64]:
        """(T,) of a step with each of the book's trees alone."""
        return self.of(book)[1 << np.arange(len(book.trees))]

    def flat(self, nodes: int, heads: int) -> Prices:
        """For books of one size that read so many heads: every tree within it costs what the largest does."""
        fits = np.isfinite(self.seconds) & (np.arange(self.largest + 1) <= nodes)
        fits &= np.arange(self.heads + 1)[:, None] <= heads
        return replace(self, seconds=np.where(fits, self.seconds[heads, nodes], np.inf))


@dataclass(frozen=True)
class Steps:
    """The V steps that decoding with a book takes, in C classes by match length.

    starts: (C,) least match length of each class. kinds: (V,) each step's class. at: (V,) its position. ends: (V,) of its sequence.
    to_go: (P + 1,) seconds from each position to its sequence's end, with this book.
    """

    trace: RankTrace
    hits: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    to_go: npt.NDArray[np.float64]

    @classmethod
    def of(cls, book: TreeBook, trace: RankTrace, found: Lookups, prices: Prices) -> Steps:
        number, heads, chain = accepted(book, trace, found)
        gained = np.maximum(heads, chain)
        at = visited(gained, trace.starts)
        starts = np.array([m for m in CLASSES if m <= found.lookup.longest])
        kinds = np.searchsorted(starts, found.match[at], side="right") - 1
        ends = np.repeat(trace.starts[1:], trace.lengths)
        to_go = cost_to_go(prices.each(book)[number], gained, ends)
        return cls(trace, found.hits[at], starts, kinds, at, ends[at], to_go)

    def behind(self, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """(V,) seconds to go once each step has emitted so many tokens; at its sequence's end none."""
        there = self.at + tokens
        return np.where(there < self.ends, self.to_go[np.minimum(there, self.ends - 1)], 0.0)

    def left(self, tree: CandidateTree) -> npt.NDArray[np.float64]:
        """(C,) seconds to go behind the steps of each class, were they taken with this tree."""
        table = self.trace.table
        gained = np.maximum(table.accepted(tree)[table.index[self.at]], np.minimum(self.hits, tree.lookup))
        left = self.behind(1 + gained.astype(np.int64))
        return np.bincount(self.kinds, weights=left, minlength=len(self.starts)).astype(np.float64)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(C,) steps of each class."""
        return np.bincount(self.kinds, minlength=len(self.starts))

    def sample(self, count: int, seed: int = 0) -> Steps:
        """So many of the steps, drawn at random; all where there are not as many."""
        if len(self.at) <= count:
            return self
        some = np.random.default_rng(seed).choice(len(self.at), count, replace=False)
        return replace(self, hits=self.hits[some], kinds=self.kinds[some], at=self.at[some], ends=self.ends[some])

    def chances(self, probe: CandidateTree) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
        """(V, N) which of the probe's nodes each step would accept; (D, V) seconds saved by the token accepted at each depth."""
        table = self.trace.table
        reach = table.reach(CandidateTree(probe.paths))[table.index[self.at]]
        paths = np.zeros((len(reach), len(probe.paths) + 2), dtype=np.bool_)
        np.put_along_axis(paths, reach.astype(np.int64), True, axis=1)
        chain = self.hits[:, None] > np.arange(probe.lookup)
        to_go = np.stack([self.behind(np.full(len(self.at), d)) for d in range(1, probe.depth + 2)])
        saved = np.maximum(
            to_go[:-1] - to_go[1:], 0.0
        )  # a text may be slower from one token on than from the one before
        return np.concatenate([paths[:, 1:-1], chain], axis=1), saved


def cost_to_go(
    seconds: npt.NDArray[np.float64], gained: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """(P,) seconds from each position to its sequence's end.

    Args:
        seconds: (P,) of the step that begins at each position. gained: (P,) tokens it accepts. ends: (P,) of the position's sequence.
    """
    there = np.minimum(np.arange(len(gained)) + 1 + gained, ends).tolist()
    last = ends.tolist()
    to_go = seconds.tolist()
    for p in range(len(to_go) - 1, -1, -1):
        if there[p] < last[p]:
            to_go[p] += to_go[there[p]]
    return np.array(to_go)
