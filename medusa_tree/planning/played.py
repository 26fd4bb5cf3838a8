"""Played: a tree or a book of trees decoded on paper at one load, and what that takes in seconds. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from medusa_runtime.book import TreeBook
from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Drafted, Estimate

from ..devices.latency import LatencyCurve
from ..traces.bookreplay import BookReplay, replay_book, sizes_of_sets
from ..traces.bootstrap import bootstrap
from ..traces.lookup import Lookups, look_up
from ..traces.replay import Replay, replay
from ..traces.trace import RankTrace
from .calibration import Calibration

Contender = CandidateTree | TreeBook


@dataclass(frozen=True)
class Played:
    """A replay; the (S,) seconds of each sequence's steps; and the quartiles of a step over its median."""

    replay: Replay
    seconds: npt.NDArray[np.float64]
    spread: tuple[float, float]

    @property
    def length(self) -> Estimate:
        """Tokens a step, with its 95% interval."""
        (low, _), (high, _) = self._intervals
        return rounded(Estimate(self.replay.acceptance_length, float(low), float(high)))

    @property
    def milliseconds(self) -> Estimate:
        """Of a step, over the trees as they are used, with its quartiles."""
        mean = 1e3 * float(self.seconds.sum() / self.replay.steps.sum())
        return rounded(Estimate(mean, *(mean * s for s in self.spread)))

    def rate(self, scale: float) -> Estimate:
        """Tokens a second times ``scale``; the interval joins that of the tokens with the quartiles of the time."""
        (_, low), (_, high) = self._intervals
        value = float(self.replay.tokens.sum() / self.seconds.sum())
        return rounded(
            Estimate(scale * value, scale * float(low) / self.spread[1], scale * float(high) / self.spread[0])
        )

    @cached_property
    def _intervals(self) -> npt.NDArray[np.float64]:
        """(2, 2) the low and the high ends of tokens a step and of tokens a second, of the same resampled sequences."""
        both = bootstrap(
            lambda t, n, s: np.stack([t / n, t / s], axis=1), self.replay.tokens, self.replay.steps, self.seconds
        )
        return np.stack(both)

    def of(self, keep: npt.NDArray[np.bool_]) -> Played:
        """Of the sequences where ``keep`` (S,) is true."""
        return replace(
            self, replay=Replay(self.replay.tokens[keep], self.replay.steps[keep]), seconds=self.seconds[keep]
        )

    @property
    def drafted(self) -> Drafted | None:
        """Accepted tokens a step by who drafted them; None of a tree alone."""
        if not isinstance(self.replay, BookReplay):
            return None
        return Drafted(*(float(f"{x:.6g}") for x in self.replay.drafted.sum(axis=0) / self.replay.steps.sum()))

    @property
    def shares(self) -> list[float]:
        """Of the steps, by the book's trees; of a tree alone all."""
        if not isinstance(self.replay, BookReplay):
            return [1.0]
        return (self.replay.used.sum(axis=0) / self.replay.steps.sum()).tolist()


def play(what: Contender, held: RankTrace, latency: LatencyCurve, batch: int, padded: bool = False) -> Played:
    """Decode every sequence of a trace with a tree or a book.

    Args:
        padded: every step costs what the book's largest would, as where a graph of one size is captured.

    Raises:
        InputError: a tree larger than step latency is known for, or a lookup in a text that is not there.
    """
    if isinstance(what, CandidateTree):
        played = replay(what, held)
        spent = np.asarray(played.steps * float(latency.at(what.nodes, what.heads)), dtype=np.float64)
        return Played(played, spent, latency.spread(what.nodes))
    price = step_prices(what, latency, padded)
    found = replay_book(what, held, lookups(what, held))
    spent = found.used.sum(axis=0) * price[1 << np.arange(len(what.trees))]
    low, high = (float(q @ spent / spent.sum()) for q in np.array([latency.spread(t.nodes) for t in what.trees]).T)
    return Played(found, found.seconds(price, batch), (low, high))


def step_prices(book: TreeBook, latency: LatencyCurve, padded: bool) -> npt.NDArray[np.float64]:
    """(2^T,) seconds of a step in which just these of a book's trees are in use, as :meth:`BookReplay.seconds` takes them: what a tree of as many
    nodes and heads as any of them has would take, and of a book with a chain what looking up does."""
    nodes, heads = sizes_of_sets(book, padded)
    return latency.at(nodes, heads) + (latency.lookup or 0.0) * bool(book.chain)


def replayed(what: Contender, held: RankTrace) -> Replay:
    """The same without what it takes."""
    return replay(what, held) if isinstance(what, CandidateTree) else replay_book(what, held, lookups(what, held))


def lookups(book: TreeBook, held: RankTrace) -> Lookups | None:
    """What the book's lookup finds at each position of a whole trace; None where it has none.

    Raises:
        InputError: the trace has no text, or the text of the user's own that it looks up in is not at hand.
    """
    if book.lookup is None:
        return None
    if book.lookup.file is not None and not book.beside:
        raise InputError(
            f"{book.lookup.file}: the book looks up in this text, whose tokens are not at hand; give the calibration that it was planned from"
        )
    return look_up(held, book.lookup, book.beside)


def looked_up(calibration: Calibration) -> tuple[int, ...]:
    """Tokens of the user's own text that a calibration holds to look up in; none where there is no such text."""
    return tuple(calibration.beside.tolist())


def rounded(e: Estimate) -> Estimate:
    """To the six digits that files hold."""
    return Estimate(*(float(f"{x:.6g}") for x in (e.value, e.low, e.high)))
