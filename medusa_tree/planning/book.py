"""Book: heads' paths and looked-up tokens planned together, a tree for each range of match lengths. NumPy only.

The text is given, so the most tokens a second is the least time over it, and what a tree is worth at a position is exact: the time of
its step, and the time that is left from where the step ends. That second part, the cost to go, is what a token saved is worth there: little
where a long match would have taken it along, much where nothing is found. (A common rate for all tokens, as Dinkelbach's method for ratios
has it, gives easy text what hard text needs.) So a book is improved as a policy is (Howard, 1960): the cost to go with the present book,
backwards through the text; at the steps that it takes, of every match length the tree that makes time and cost to go least; and again
with that book. What is exact in it, and what is not:

- For a given book, replay is exact, and so is its rate at the latency that was measured: what is kept and reported is of whole books.
- For given trees, steps and costs to go, the ranges are the best there are (:func:`medusa_tree.search.ranges.best_ranges`).
- The trees to choose from are found greedily, by :func:`medusa_tree.search.cover.cover`: at the least 1 - 1/e of the best gain of their size.
- The steps are those of the book before: rounds end where no book is better, which need not be the best of all.

On a GPU, where one graph serves all steps, every tree is padded to the largest and costs as much: then the size is chosen first, and
within it every range has the best tree that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medusa_runtime.book import Lookup, TreeBook
from medusa_runtime.tree import LONGEST_CHAIN, CandidateTree, Path

from ..search.cover import Cover, cover
from ..search.ranges import best_ranges
from ..traces.bookreplay import replay_book
from ..traces.lookup import Lookups
from ..traces.trace import RankTrace
from .steps import Prices, Steps

TREES = 6  # of a book, at most
SEEN = 64  # steps: match lengths with fewer have no tree of their own
WORTH = 0.002  # of a book's rate: what a tree must bring to stay in it
PATIENCE = 2  # rounds without a better book
PROBED = 64  # most frequent paths that a tree may have
SIZES = (2, 4, 8, 12, 15, 24, 31, 48, 63, 96, 127, 191, 255)  # of books whose trees are padded to one
ORDERED = 1 << 13  # steps that settle the orders of nodes


@dataclass(frozen=True)
class Found:
    """A book, and its tokens a second and sequence on the sequences it was planned on."""

    book: TreeBook
    rate: float


def plan_book(fit: RankTrace, found: Lookups, paths: tuple[Path, ...], prices: Prices, begin: CandidateTree) -> Found:
    """The book with the most tokens a second on a trace.

    Args:
        found: what the lookup finds there.
        paths: the most frequent ones, parents first; of these the trees' nodes are taken.
        begin: the tree that heads alone would decode with.
    """
    probe = CandidateTree(paths[:PROBED], min(LONGEST_CHAIN, prices.largest))
    best = measured(TreeBook((begin,), (0,), found.lookup), fit, found, prices)
    switched = _switched(fit, found, prices, begin)
    if not prices.padded:
        best = _improved(best, probe, fit, found, prices)
    if switched.rate > best.rate:  # rounds have ended too early, or there were none
        best = switched if prices.padded else _improved(switched, probe, fit, found, prices)
    if prices.padded or prices.batch > 1:
        for heads in range(prices.heads, 0, -1):
            sized = _sized(best, heads, probe, fit, found, prices)
            if sized.rate == best.rate and heads < prices.heads:
                break  # nor do fewer heads pay, but for none
            best = sized
        best = _sized(best, 0, probe, fit, found, prices)
    return _thinned(best, fit, found, prices)


def _switched(fit: RankTrace, found: Lookups, prices: Prices, begin: CandidateTree) -> Found:
    """The best of the heads' tree, or none, and from some match length on a chain."""
    chains = [n for n in SIZES if n <= min(prices.largest, LONGEST_CHAIN) and np.isfinite(prices.seconds[0, n])]
    books = [TreeBook((CandidateTree(),), (0,), found.lookup)]
    for tree in dict.fromkeys((begin, CandidateTree())):
        books += [
            TreeBook((tree, CandidateTree((), n)), (0, m), found.lookup)
            for n in chains
            for m in (1, 2, 4)
            if m <= found.lookup.longest
        ]
    return _best(books, fit, found, prices)


def _sized(best: Found, heads: int, probe: CandidateTree, fit: RankTrace, found: Lookups, prices: Prices) -> Found:
    """The best of a book and those of one size that read so many heads, from its own size up and down as long as they are better."""
    sizes = [
        n for n in sorted({*SIZES, prices.largest}) if n <= prices.largest and np.isfinite(prices.seconds[heads, n])
    ]
    if not sizes:
        return best
    middle = int(np.searchsorted(sizes, best.book.nodes)) if best.book.nodes <= sizes[-1] else len(sizes) - 1
    for ways in (range(middle, len(sizes)), range(middle - 1, -1, -1)):
        for i in ways:
            now = _improved(best, probe, fit, found, prices, prices.flat(sizes[i], heads), patience=1)
            if now.rate == best.rate and i != middle:
                break
            best = now
    return best


def _improved(
    best: Found, probe: CandidateTree, fit: RankTrace, found: Lookups, prices: Prices, asked: Prices | None = None, patience: int = PATIENCE
) -> Found:  # fmt: skip
    """The best of a book and those that follow from it, round by round, until some rounds bring none that is better; their trees chosen
    by the prices ``asked``, if given."""
    seen: set[TreeBook] = set()
    book, idle = best.book, 0
    while idle < patience:
        steps = Steps.of(book, fit, found, prices)
        trees = trees_to_choose(probe, steps, asked or prices)
        books = [new for new in books_of(steps, trees, asked or prices, found.lookup) if new not in seen]
        if not books:
            break
        seen |= {*books}
        now = _best(books, fit, found, prices)
        idle = 0 if now.rate > best.rate else idle + 1
        best, book = now if now.rate > best.rate else best, now.book
    return best


def _best(books: Sequence[TreeBook], fit: RankTrace, found: Lookups, prices: Prices) -> Found:
    """The fastest, of as fast ones the first."""
    return max((measured(book, fit, found, prices) for book in books), key=lambda f: f.rate)


def _thinned(best: Found, fit: RankTrace, found: Lookups, prices: Prices) -> Found:
    """Without the trees that bring less than WORTH of the rate: fewer are easier to read, and to keep ready."""
    least = (1 - WORTH) * best.rate
    while len(best.book.trees) > 1:
        books = [_without(best.book, t) for t in range(len(best.book.trees)) if t or not best.book.trees[1].lookup]
        fewer = _best(books, fit, found, prices)
        if fewer.rate < least:
            break
        best = fewer
    return best


def _without(book: TreeBook, tree: int) -> TreeBook:
    """The book without one of its trees, whose match lengths are the one's before, or the first ones the next's."""
    trees = book.trees[:tree] + book.trees[tree + 1 :]
    return replace(book, trees=trees, matches=(0, *(book.matches[:tree] + book.matches[tree + 1 :])[1:]))


def measured(book: TreeBook, trace: RankTrace, found: Lookups, prices: Prices) -> Found:
    """The book's rate, by replay."""
    play = replay_book(book, trace, found)
    return Found(book, float(play.tokens.sum() / play.seconds(prices.of(book), prices.batch).sum()))


def _groups(steps: Steps) -> list[tuple[int, ...]]:
    """Classes that trees are made for: each by itself, two neighbours, and all from one on; of those that are seen often enough."""
    classes = len(steps.starts)
    runs = {(i, j) for i in range(classes) for j in (i + 1, i + 2, classes) if j <= classes}
    counts = steps.counts
    return [tuple(range(i, j)) for i, j in sorted(runs) if counts[i:j].sum() >= SEEN]


def trees_to_choose(probe: CandidateTree, steps: Steps, prices: Prices) -> list[CandidateTree]:
    """Of every group and every number of heads read the tree that saves most time, and none."""
    trees = {CandidateTree()}
    largest = int(np.flatnonzero(np.isfinite(prices.seconds).any(axis=0)).max())
    probe = CandidateTree(probe.paths, min(probe.lookup, largest))
    some = steps.sample(ORDERED)
    accepts, saved = some.chances(probe)
    groups = [np.flatnonzero(np.isin(some.kinds, group)) for group in _groups(steps)]
    deep = probe.depths[1:] * ~probe.chain_nodes[1:]  # heads that each node needs
    priced = np.isfinite(prices.seconds).any(axis=1)
    same = len(np.unique(prices.seconds[np.isfinite(prices.seconds)])) == 1  # heads cost nothing: the most are the best
    for heads in np.flatnonzero(priced)[-1 if same else 0 :]:
        kept = np.flatnonzero(deep <= heads)
        if heads and not (deep == heads).any():
            continue
        within = CandidateTree(tuple(p for p in probe.paths if len(p) <= heads), probe.lookup)
        for mine in groups:
            order = cover(accepts[np.ix_(mine, kept)], saved[: within.depth, mine], within, largest)
            trees.add(_fastest(order, len(mine), prices))
    return sorted(trees, key=lambda t: (t.nodes, t.lookup, t.paths))


def _fastest(order: Cover, steps: int, prices: Prices) -> CandidateTree:
    """The cut of an order that saves most time on so many steps."""
    lengths = np.zeros(len(order.chain), dtype=np.int64)
    lengths[~order.chain] = list(map(len, order.tree.paths))
    nodes = np.arange(1 + min(len(order.chain), prices.largest))
    read = np.maximum.accumulate(np.concatenate([[0], lengths]))[nodes]
    saved = np.concatenate([[0.0], np.cumsum(order.gains)])[nodes] - steps * prices.seconds[read, nodes]
    return order.cut(int(np.argmax(saved)))


def books_of(steps: Steps, trees: list[CandidateTree], prices: Prices, lookup: Lookup) -> list[TreeBook]:
    """The best books of 1, 2, ... of these trees."""
    trees = [tree for tree in trees if np.isfinite(prices.seconds[tree.heads, tree.nodes])]
    cost = np.array([prices.seconds[tree.heads, tree.nodes] for tree in trees])
    left = np.stack([steps.left(tree) for tree in trees], axis=1)
    first = np.array([tree.lookup == 0 for tree in trees])
    cuts = best_ranges(-(left + steps.counts[:, None] * cost), min(TREES, len(steps.starts)), first)
    return [
        TreeBook(tuple(trees[t] for _, t in cut), tuple(int(steps.starts[c]) for c, _ in cut), lookup) for cut in cuts
    ]
