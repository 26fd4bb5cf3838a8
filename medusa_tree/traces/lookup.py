"""Lookups: what the text itself would have proposed at every position of a trace, from its token ids alone. NumPy only.

The same as :mod:`medusa_runtime.lookup` finds while decoding, for all positions at once: texts are compared by their n-grams,
n from 1 on, and of those that occur once no longer ones are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medusa_runtime.book import Lookup
from medusa_runtime.errors import InputError
from medusa_runtime.tree import LONGEST_CHAIN

from .trace import RankTrace

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lookups:
    """At each of P positions: match (P,) uint8, tokens up to the root that stood earlier, too, 0 to ``lookup.longest``; hits (P,) uint8, how
    many of the tokens behind their most recent occurrence are those that the model emits behind the root, up to LONGEST_CHAIN."""

    lookup: Lookup
    match: npt.NDArray[np.uint8]
    hits: npt.NDArray[np.uint8]

    def at(self, positions: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Lookups:
        """Those of these positions."""
        return Lookups(self.lookup, self.match[positions], self.hits[positions])


def look_up(trace: RankTrace, lookup: Lookup, beside: Sequence[int] = ()) -> Lookups:
    """What a lookup finds at each position of a trace.

    Args:
        beside: tokens of the user's own text.

    Raises:
        InputError: the trace has no text.
    """
    # Kept with the trace, as cached properties are: a plan and its tables ask again and again.
    kept, key = trace.__dict__.setdefault("_looked_up", {}), (lookup, tuple(beside))
    if key in kept:
        known: Lookups = kept[key]
        return known
    if trace.text is None:
        raise InputError(
            "rank trace: holds no token ids, so that a lookup cannot be planned; profile again"
            + ", or plan with --drafts heads" * bool(trace.heads)
        )
    prompts, outputs = trace.text.prompts, trace.text.outputs
    counts = np.stack([prompts.lengths, outputs.lengths], axis=1).ravel()
    parts = [part for s in range(len(prompts)) for part in (prompts[s], outputs[s])]
    tokens = np.concatenate([np.asarray(beside, dtype=np.int64), *parts]).astype(np.int64)
    starts = len(beside) + np.concatenate([[0], np.cumsum(counts)])
    owner = np.concatenate(
        [np.full(len(beside), -1), np.repeat(np.arange(len(prompts)), counts.reshape(-1, 2).sum(axis=1))]
    )
    generated = np.concatenate(
        [np.zeros(len(beside), dtype=np.bool_), np.repeat(np.arange(len(counts)) % 2 == 1, counts)]
    )
    allowed = {"both": owner >= 0, "prompt": (owner >= 0) & ~generated, "output": generated}[lookup.where]
    match, source = _matches(tokens, owner, allowed, lookup.longest)
    ends = np.repeat(starts[2::2], trace.lengths)  # of each position's sequence
    at = np.repeat(starts[1:-1:2] - trace.starts[:-1], trace.lengths) + np.arange(trace.positions)
    hits = _hits(tokens, at, source[at], ends, len(beside))
    found = Lookups(lookup, match[at].astype(np.uint8), np.where(match[at] > 0, hits, 0).astype(np.uint8))
    kept[key] = found
    return found


def _matches(tokens: Places, owner: Places, allowed: npt.NDArray[np.bool_], longest: int) -> tuple[Places, Places]:
    """For each place of the joined texts the longest match that ends there, and the last place of its most recent occurrence: an
    earlier one of the same owner where ``allowed``, or, where that is longer, one of owner -1."""
    count = len(tokens)
    match, source = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    gram = np.unique(tokens, return_inverse=True)[1].astype(np.int64)
    letters, kinds = gram.copy(), int(gram.max(initial=0)) + 1
    alive = np.arange(count)  # places whose grams of this length occur more than once
    for length in range(1, longest + 1):
        if length > 1:
            before = alive - 1
            follows = (before >= 0) & (owner[before] == owner[alive]) & (gram[before] >= 0)
            alive, before = alive[follows], before[follows]
            longer = gram[before] * kinds + letters[alive]
            gram = np.full(count, -1)
            gram[alive] = np.unique(longer, return_inverse=True)[1]
        order = alive[np.argsort(gram[alive], kind="stable")]  # by gram, and among the same in the order of the texts
        if not len(order):
            break
        new = np.concatenate([[True], np.diff(gram[order]) != 0])
        first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        for these, same in ((owner[order] == -1, False), (allowed[order], True)):  # one's own text has the last word
            last = np.maximum.accumulate(np.where(these, np.arange(len(order)), -1))
            last = np.concatenate([[-1], last[:-1]])
            found = (last >= first) & (owner[order] >= 0)
            if same:
                found &= owner[order[last]] == owner[order]
            match[order[found]], source[order[found]] = length, order[last[found]]
        repeated = ~(new & np.concatenate([new[1:], [True]]))
        gram[order[~repeated]] = -1
        alive = np.sort(order[repeated])
    return match, source


def _hits(tokens: Places, at: Places, source: Places, ends: Places, beside: int) -> Places:
    """(P,) how many tokens behind ``source`` are those behind ``at``, up to each text's end. Drafts that run on into themselves are the
    text again as long as they are right, so comparing the text with itself is enough."""
    hits = np.zeros(len(at), dtype=np.int64)
    going = np.arange(len(at))
    for n in range(1, LONGEST_CHAIN + 1):
        there = source[going] + n
        there = np.where(source[going] < beside, np.minimum(there, beside - 1), there)
        inside = at[going] + n < ends[going]
        going, there = going[inside], there[inside]
        going = going[tokens[there] == tokens[at[going] + n]]
        hits[going] = n
        if not len(going):
            break
    return hits
