"""Partings: how often texts of the same prompts part, and whether a tree's part more often than rounding explains.

A tie by itself is no fault, but many are: a fault that only turns close calls makes nothing else. Two things say how many to
expect. Plain decoding of the same prompts in another batch shape adds in another order, too, and parts from itself at the machine's own
rate. But shapes may share their kernels by chance, and then hardly part. So the measured noise says it as well: at a position where the
reference's choice has margin m, two passes that each round on their own, with noise s, part with probability 2 F(m/s) F(-m/s), F the
normal distribution function; real passes share most of their rounding, and part less often. A tree fails that parts too often for both.

The first parting of each prompt counts, and the tokens up to there, as what comes behind belongs to two different texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binom, chi2, norm, poisson
from torch import Tensor

# A tree's pass differs from a plain one in more than the number of rows (another attention kernel, a mask), so that a right one
# may part more often than plain decoding does from itself; on the demo the two rates are alike.
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

    def by_rounding(self, rate: float) -> float:
        """The probability of so many partings, or more, if each token had this chance of being one."""
        return float(poisson.sf(self.count - 1, rate * self.tokens))

    def to_json(self) -> dict[str, Any]:
        return {
            "partings": self.count,
            "tokens": self.tokens,
            "per_1000_tokens": self.per_thousand,
            "interval": list(self.interval),
        }


def rounding_rate(margins: Tensor, noise: float) -> float:
    """How likely two passes part at a position, on average, if their roundings have nothing in common.

    Args:
        margins: (T,) of the reference's choice at each position. noise: root mean square of what rounding does to them.
    """
    behind = norm.sf(margins.double().numpy() / noise)
    return float((2 * behind * (1 - behind)).mean())
