"""RankTrace: where each token the model emits stands in each head's proposal; all else is derived from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from medusa_runtime.acceptance.rules import GREEDY, Rule
from medusa_runtime.errors import InputError

from .bootstrap import bootstrap
from .table import MISS, RankTable
from .text import TraceText, places, starts_of

FEW = 8  # sequences: of fewer, resampling says little, as whole sequences are drawn


@dataclass(frozen=True)
class RankTrace:
    """Ranks at every position of S generated sequences. Of a model without heads, H = 0, the text is what there is.

    Args:
        ranks: (P, H) int16; ``ranks[p, k - 1]`` is where the token emitted at p + 1 + k stands in head k's
            proposal made at p, 0 the first, ``MISS`` if it is not among the K kept.
        starts: (S + 1,) int64; sequence s owns positions ``starts[s]`` to ``starts[s + 1]``, in order.
        held_out: (S,) bool; sequences kept from fitting, on which acceptance is reported.
        candidates: K, candidates kept a head; 1 where there are none.
        acceptance: the rule under which the text was made.
        text: its token ids, where they are known.
        categories: (S,) str, the kind of text that each sequence is, where that is known.

    Raises:
        InputError: names the array that is wrong and how.
    """

    ranks: npt.NDArray[np.int16]
    starts: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.bool_]
    candidates: int
    acceptance: Rule = GREEDY
    text: TraceText | None = None
    categories: npt.NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        if self.ranks.ndim != 2 or not np.issubdtype(self.ranks.dtype, np.integer) or not len(self.ranks):
            raise InputError(
                f"rank trace: ranks must be whole numbers of shape (positions, heads), not {self.ranks.dtype} {self.ranks.shape}"
            )
        if self.ranks.min(initial=MISS) < MISS or self.ranks.max(initial=MISS) >= self.candidates:
            p, k = np.argwhere((self.ranks < MISS) | (self.ranks >= self.candidates))[0]
            raise InputError(
                f"rank trace: position {p}, head {k + 1} has rank {self.ranks[p, k]}; ranks are 0..{self.candidates - 1}, or {MISS} for a miss"
            )
        if (
            self.starts.ndim != 1
            or len(self.starts) < 2
            or self.starts[0] != 0
            or self.starts[-1] != len(self.ranks)
            or (np.diff(self.starts) < 1).any()
        ):
            raise InputError(
                f"rank trace: starts must rise from 0 to {len(self.ranks)}, the number of positions, one entry a sequence and one more"
            )
        if self.held_out.shape != (len(self.starts) - 1,):
            raise InputError(
                f"rank trace: held_out has shape {self.held_out.shape} for {len(self.starts) - 1} sequences"
            )
        if self.text is not None:
            self.text.check(self.lengths)
        if self.categories is not None and self.categories.shape != self.held_out.shape:
            raise InputError(
                f"rank trace: category has shape {self.categories.shape} for {len(self.starts) - 1} sequences"
            )

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[npt.NDArray[np.int16]],
        held_out: Sequence[bool],
        candidates: int,
        acceptance: Rule = GREEDY,
        text: TraceText | None = None,
        categories: npt.NDArray[np.str_] | None = None,
    ) -> RankTrace:
        """Join one (length, H) array a sequence."""
        starts = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        held = np.asarray(held_out, dtype=np.bool_)
        return cls(np.concatenate(sequences), starts, held, candidates, acceptance, text, categories)

    @classmethod
    def merge(cls, traces: Sequence[RankTrace]) -> RankTrace:
        """One trace of several taken with the same heads and rule; K is the smallest of theirs. Text and categories are kept
        where all have them.

        Raises:
            InputError: another number of heads, or another rule.
        """
        if len({(t.heads, t.acceptance) for t in traces}) > 1:
            told = ", ".join(f"{t.heads} heads, {t.acceptance}" for t in traces)
            raise InputError(f"rank traces of one drafter and rule can be merged, not these: {told}")
        candidates = min(t.candidates for t in traces)
        sequences = [np.where(s < candidates, s, MISS).astype(np.int16) for t in traces for s in t.sequences()]
        held_out = np.concatenate([t.held_out for t in traces]).tolist()
        texts, kinds = [t.text for t in traces if t.text], [t.categories for t in traces if t.categories is not None]
        text = TraceText.join(texts) if len(texts) == len(traces) else None
        categories = np.concatenate(kinds) if len(kinds) == len(traces) else None
        return cls.from_sequences(sequences, held_out, candidates, traces[0].acceptance, text, categories)

    @property
    def positions(self) -> int:
        return len(self.ranks)

    @property
    def heads(self) -> int:
        return self.ranks.shape[1]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(S,) positions of each sequence."""
        return np.diff(self.starts)

    @cached_property
    def table(self) -> RankTable:
        """The distinct rows, made once."""
        return RankTable.of(self.ranks, self.candidates)

    def without_heads(self) -> RankTrace:
        """The text alone, as if no heads had been profiled."""
        ranks = np.zeros((self.positions, 0), dtype=np.int16)
        return RankTrace(ranks, self.starts, self.held_out, 1, self.acceptance, self.text, self.categories)

    def sequences(self) -> list[npt.NDArray[np.int16]]:
        """One (length, H) array a sequence."""
        return np.split(self.ranks, self.starts[1:-1])

    def select(self, keep: npt.NDArray[np.bool_]) -> Self:
        """The sequences where ``keep`` (S,) is true."""
        if not keep.any():
            raise InputError("rank trace: no sequence is selected")
        return self.take(np.flatnonzero(keep))

    def take(self, order: npt.NDArray[np.int64]) -> Self:
        """These sequences, in this order."""
        at = places(self.starts, order)
        rows: dict[str, Any] = {name: array[at] for name, array in self.per_position().items()}
        text = None if self.text is None else self.text.take(order)
        kinds = None if self.categories is None else self.categories[order]
        starts = starts_of(self.lengths[order])
        return replace(self, **rows, starts=starts, held_out=self.held_out[order], text=text, categories=kinds)

    def per_position(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays with a row a position."""
        return {"ranks": self.ranks}

    def check_split(self) -> None:
        """InputError where there is nothing to fit on, or nothing held out to report on."""
        if self.held_out.all() or not self.held_out.any():
            raise InputError(
                f"rank trace: {int(self.held_out.sum())} of {len(self.held_out)} sequences are held out; some must be, to report on, "
                "and some not, to fit on: give more sequences, or hold out another share"
            )

    def split(self) -> tuple[Self, Self]:
        """(fitting, held-out) parts."""
        self.check_split()
        return self.select(~self.held_out), self.select(self.held_out)

    def halves(self) -> tuple[Self, Self]:
        """Even and odd sequences, the turns of a conversation together: one to fit on, the other to check on; the trace twice where
        there is one."""
        numbers = np.arange(len(self.lengths)) if self.text is None else self.text.numbers
        numbers = np.unique(numbers, return_inverse=True)[1]
        if numbers.max() < 1:
            return self, self
        even = numbers % 2 == 0
        return self.select(even), self.select(~even)

    def sample(self, positions: int, piece: int = 4096, seed: int = 0) -> Self:
        """About so many positions, sequences drawn at random (first cut into pieces, where they are very long); their text is left."""
        if self.positions <= positions:
            return self
        cuts = [np.arange(a, b, piece) for a, b in zip(self.starts[:-1], self.starts[1:], strict=True) if b - a > piece]
        starts = np.unique(np.concatenate([self.starts, *cuts]))
        owner = np.searchsorted(self.starts, starts[:-1], side="right") - 1
        kinds = None if self.categories is None else self.categories[owner]
        pieces = replace(self, starts=starts, held_out=self.held_out[owner], text=None, categories=kinds)
        order = np.random.default_rng(seed).permutation(len(starts) - 1)
        enough = 1 + int(np.searchsorted(np.cumsum(pieces.lengths[order]), positions))
        keep = np.zeros(len(order), dtype=np.bool_)
        keep[order[:enough]] = True
        return pieces.select(keep)


def head_accuracy(trace: RankTrace, positions: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float64]:
    """A[k, i], (H, K): the fraction of positions with rank i at head k + 1; its cumulative sum is top-i accuracy.

    Over all positions, or over those given.
    """
    ranks = trace.ranks if positions is None else trace.ranks[positions]
    counts = [np.bincount(column + 1, minlength=trace.candidates + 1)[1:] for column in ranks.T.astype(np.int32)]
    return np.array(counts, dtype=np.float64).reshape(-1, trace.candidates) / len(ranks)


def top_k_interval(
    trace: RankTrace, k: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Top-k accuracy of each head with its 95% interval, (H,) each: value, low, high; whole sequences resampled."""
    hits = (trace.ranks >= 0) & (trace.ranks < k)
    per_sequence = np.add.reduceat(hits, trace.starts[:-1], axis=0, dtype=np.int64)
    low, high = bootstrap(lambda hit, length: hit / length[:, None], per_sequence, trace.lengths, resamples=1000)
    return per_sequence.sum(axis=0) / trace.positions, low, high
