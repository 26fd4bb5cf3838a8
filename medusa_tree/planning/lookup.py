"""Lookup, planned: where to look, whether it pays at a load, and what is to be expected of the book. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medusa_runtime.book import Lookup, TreeBook
from medusa_runtime.tree import CandidateTree, Path
from medusa_runtime.treefile import Book, BookTree, Drafted, Estimate, OperatingPoint

from ..devices.latency import LatencyCurve, Load
from ..search.order import ENOUGH
from ..traces.bootstrap import rate_ratio
from ..traces.lookup import Lookups, look_up
from ..traces.trace import RankTrace
from .book import measured, plan_book
from .budget import Budget, Memory, within
from .calibration import Calibration
from .choose import all_of
from .played import play, rounded
from .steps import Prices

WHERE = ("both", "prompt", "output")
FAR = 0.1  # of a book's rate: where it loses that by looking elsewhere, no book for there is planned
PAYS = 0.005  # of the heads' rate: what a book must bring on the fitting sequences, and another place to look over the first


@dataclass(frozen=True)
class Searched:
    """A place to look, and what is found there at the positions of some fitting sequences; ``beside`` are the tokens of the user's text,
    if it is one."""

    lookup: Lookup
    beside: tuple[int, ...]
    fit: RankTrace
    found: Lookups


def add_books(
    calibration: Calibration, fit: RankTrace, held: RankTrace, budget: Budget, points: Sequence[OperatingPoint],
    trees: Sequence[CandidateTree], paths: tuple[Path, ...], curves: dict[Load, LatencyCurve],
) -> tuple[OperatingPoint, ...]:  # fmt: skip
    """The points with what heads and lookup do together, where that is faster than their trees alone.

    Args:
        fit, held: the calibration's trace in its two parts. trees: of the points. paths: of the file, in its order.
    """
    told = calibration.provenance.get("lookup") or {}
    places = search(fit, calibration.beside, told.get("file"), told.get("digest"))
    numbers = {p: i for i, p in enumerate(paths)}
    made = []
    for point, tree in zip(points, trees, strict=True):
        load = (point.batch, point.context)
        prices = prices_at(curves[load], load, budget, calibration.memory, fit.heads, calibration.latency.gpu)
        found = book_at(places, paths, prices, tree)
        if found is not None:
            point = replace(point, book=predict_book(found, numbers, held, curves[load], load, prices.padded, tree))
        made.append(point)
    return tuple(made)


def search(
    fit: RankTrace, beside: npt.NDArray[np.int32], file: str | None = None, digest: str | None = None
) -> list[Searched]:
    """Every place to look: prompt and output, either alone, and the user's own text besides, where there is one."""
    fit = _some(fit)
    asked = [(Lookup(where), ()) for where in WHERE]
    if len(beside):
        asked.append((Lookup("both", file=file, digest=digest), tuple(beside.tolist())))
    return [Searched(lookup, own, fit, look_up(fit, lookup, own)) for lookup, own in asked]


def _some(trace: RankTrace, seed: int = 0) -> RankTrace:
    """Enough sequences, whole ones, as the text of each is looked through."""
    if trace.positions <= ENOUGH:
        return trace
    order = np.random.default_rng(seed).permutation(len(trace.lengths))
    return trace.take(order[: 1 + int(np.searchsorted(np.cumsum(trace.lengths[order]), ENOUGH))])


def prices_at(
    curve: LatencyCurve, load: Load, budget: Budget, memory: Memory | None, heads: int, padded: bool
) -> Prices:
    """What steps cost at a load, as far as the budget allows.

    Raises:
        InputError: not even plain decoding is within it.
    """
    nodes, read = (a.ravel() for a in np.meshgrid(np.arange(curve.largest + 1), np.arange(heads + 1)))
    seconds = curve.at(nodes, read)
    met = within(budget, load, curve, nodes, read, seconds, memory)
    fits = (read <= nodes) & ((nodes == 0) | all_of(met, len(nodes)))
    return Prices(np.where(fits, seconds, np.inf).reshape(heads + 1, -1), padded, load[0], curve.lookup or 0.0)


def book_at(searched: list[Searched], paths: tuple[Path, ...], prices: Prices, tree: CandidateTree) -> TreeBook | None:
    """The best book at a load; None where the heads' ``tree`` alone is as fast on the fitting sequences."""
    s, *others = searched
    found = plan_book(s.fit, s.found, paths, prices, tree)
    for other in others:
        same = replace(found.book, lookup=other.lookup)
        if measured(same, other.fit, other.found, prices).rate < (1 - FAR) * found.rate:
            continue
        its = plan_book(other.fit, other.found, paths, prices, tree)
        if its.rate > (1 + PAYS) * found.rate:
            s, found = other, its
    alone = measured(TreeBook((tree,), (0,), s.lookup), s.fit, s.found, prices)
    return replace(found.book, beside=s.beside) if found.book.chain and found.rate > (1 + PAYS) * alone.rate else None


def predict_book(
    book: TreeBook,
    numbers: dict[Path, int],
    held: RankTrace,
    curve: LatencyCurve,
    load: Load,
    padded: bool,
    tree: CandidateTree,
) -> Book:
    """What a book would give: replay on held-out sequences, and the latency of the trees that it uses there.

    Args:
        numbers: of the paths in the file. tree: the heads' tree, which it is set against.
    """
    mine, alone = play(book, held, curve, load[0], padded), play(tree, held, curve, load[0])
    ratio = rate_ratio(mine.replay.tokens, mine.seconds, alone.replay.tokens, alone.seconds)
    return Book(
        lookup=book.lookup or Lookup(),
        trees=tuple(
            BookTree(match, tuple(sorted(numbers[p] for p in t.paths)), t.lookup, float(f"{share:.6g}"))
            for match, t, share in zip(book.matches, book.trees, mine.shares, strict=True)
        ),
        acceptance_length=mine.length,
        step_latency_ms=mine.milliseconds,
        tokens_per_s=mine.rate(load[0]),
        speedup=mine.rate(curve.plain.seconds),
        over_heads=rounded(Estimate(*ratio)),
        drafted=mine.drafted or Drafted(0.0, 0.0, 0.0),
    )
