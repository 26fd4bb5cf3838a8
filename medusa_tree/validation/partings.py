"""Partings: how often texts of the same prompts part, and whether a tree's part more often than plain decoding's own.

Plain decoding in another batch shape adds in another order, too, and parts from itself at the nearest ties. Its rate is the
machine's own, so a tree's is held against it. Both count the first parting of each prompt and the tokens up to there, as what
comes behind belongs to two different texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binom, chi2

# A tree's pass differs from a plain one in more than the number of rows (another attention kernel, a mask), so that a right one
# may part more often than plain decoding does from itself; on the demo's CPU the two rates are alike.
ALLOWED = 2.0
SIGNIFICANT = 0.01

Text = Sequence[int]


def parting(one: Text, other: Text) -> int | None:
    """The first place where two texts differ, an end among tokens being a difference, too; None where they are the same."""
    if list(one) == list(other):
        return None
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class Partings:
    """How many prompts' texts part, and the tokens that could have been the first to."""

    count: int
    tokens: int

    @classmethod
    def between(cls, some: Sequence[Text], others: Sequence[Text]) -> Partings:
        at = [parting(a, b) for a, b in zip(some, others, strict=True)]
        tokens = sum(len(a) if p is None else p + 1 for a, p in zip(some, at, strict=True))
        return cls(sum(p is not None for p in at), tokens)

    @property
    def per_thousand(self) -> float:
        return 1e3 * self.count / self.tokens

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of partings in 1,000 tokens: exact for a Poisson count (Garwood, 1936)."""
        low = chi2.ppf(0.025, 2 * self.count) / 2 if self.count else 0.0
        return 1e3 * float(low) / self.tokens, 1e3 * float(chi2.ppf(0.975, 2 * self.count + 2)) / 2 / self.tokens

    def beyond(self, own: Partings) -> float:
        """The probability of so many partings, or more, if the rate were ALLOWED times that of ``own``.

        Given how many there are in both together, the number in one is binomial (Przyborowski and Wilenski, 1940).
        """
        exposed = ALLOWED * self.tokens
        return float(binom.sf(self.count - 1, self.count + own.count, exposed / (exposed + own.tokens)))

    def to_json(self) -> dict[str, Any]:
        return {
            "partings": self.count,
            "tokens": self.tokens,
            "per_1000_tokens": self.per_thousand,
            "interval": list(self.interval),
        }
