"""Replay of a tree book: walk a trace the way decoding with heads and lookup would. Exact, as what a lookup finds follows from the text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medusa_runtime.book import TreeBook

from .lookup import Lookups
from .replay import Replay, visited
from .trace import RankTrace

BOTH, HEADS, LOOKUP = 0, 1, 2  # columns of ``drafted``


@dataclass(frozen=True)
class BookReplay(Replay):
    """used: (S, T) int64, steps by the tree that was used. drafted: (S, 3) int64, accepted tokens that both drafted, the heads alone, and
    the lookup alone; with the steps' roots they are the tokens."""

    used: npt.NDArray[np.int64]
    drafted: npt.NDArray[np.int64]

    def seconds(self, price: npt.NDArray[np.float64], batch: int = 1) -> npt.NDArray[np.float64]:
        """(S,) time of each sequence's steps.

        Args:
            price: (2^T,) seconds of a step in which just these of the T trees are in use, by the sum of 2^t over them.
            batch: sequences that wait for one another. A step's mean is then taken as if each one's tree were drawn by itself from all steps'.
        """
        if batch == 1:
            return np.asarray(self.used @ price[1 << np.arange(self.used.shape[1])], dtype=np.float64)
        share = self.used.sum(axis=0) / self.used.sum()
        return np.asarray(self.steps * float(in_use(share, batch) @ price), dtype=np.float64)


def in_use(share: npt.NDArray[np.float64], batch: int) -> npt.NDArray[np.float64]:
    """(2^T,) how likely it is that of so many independent draws from T trees just these are drawn, numbered as a step's price is."""
    chance = (sets_of(len(share)) @ share) ** batch  # none but these
    for tree in range(len(share)):
        with_it = (np.arange(len(chance)) >> tree & 1).astype(np.bool_)
        chance[with_it] -= chance[np.flatnonzero(with_it) - (1 << tree)]
    return chance


def sets_of(trees: int) -> npt.NDArray[np.int64]:
    """(2^T, T): which of the trees each set has."""
    return np.arange(1 << trees)[:, None] >> np.arange(trees) & 1


def sizes_of_sets(book: TreeBook, padded: bool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(2^T,) nodes, and heads read, of a step in which just these of a book's trees are in use: the most that any of them has; where all are
    ``padded`` to one size, the most of all."""
    used = (sets_of(len(book.trees)) > 0) | padded
    nodes, heads = (np.array([getattr(tree, name) for tree in book.trees]) for name in ("nodes", "heads"))
    return np.where(used, nodes, 0).max(axis=1), np.where(used, heads, 0).max(axis=1)


def accepted(
    book: TreeBook, trace: RankTrace, found: Lookups | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(P,) each: which tree a step at this position uses, how many tokens of its heads' paths are accepted, and how many of its chain."""
    number = np.zeros(trace.positions, dtype=np.int64) if found is None else book.numbers()[found.match]
    table = trace.table
    heads = np.stack([table.accepted(tree) for tree in book.trees])[number, table.index]
    if found is None:
        return number, heads, np.zeros_like(heads)
    chain = np.array([tree.lookup for tree in book.trees], dtype=np.uint8)[number]
    return number, heads, np.minimum(chain, found.hits)


def replay_book(book: TreeBook, trace: RankTrace, found: Lookups | None) -> BookReplay:
    """Decode every sequence of the trace with the book, on paper.

    Args:
        found: by the book's lookup at each position of this trace; None where it has none.
    """
    number, heads, chain = accepted(book, trace, found)
    at = visited(np.maximum(heads, chain), trace.starts)
    sequence = np.searchsorted(trace.starts, at, side="right") - 1
    sequences, trees = len(trace.lengths), len(book.trees)
    used = np.bincount(sequence * trees + number[at], minlength=sequences * trees).reshape(sequences, trees)
    left = trace.starts[1:][sequence] - at - 1  # what a step may accept before the text ends
    by_heads, by_lookup = np.minimum(heads[at], left), np.minimum(chain[at], left)
    both = np.minimum(by_heads, by_lookup)
    drafted = np.stack(
        [np.bincount(sequence, weights=x, minlength=sequences) for x in (both, by_heads - both, by_lookup - both)],
        axis=1,
    )
    return BookReplay(trace.lengths, used.sum(axis=1), used, drafted.astype(np.int64))
