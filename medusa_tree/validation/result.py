"""Validation: what was measured of one operating point beside what was predicted, and the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from medusa_runtime.acceptance.rules import Rule, rule_json
from medusa_runtime.book import TreeBook
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Book, Estimate, OperatingPoint

from .acceptance import Acceptance, DraftedBy
from .partings import SIGNIFICANT, Partings
from .texts import Unruly
from .ties import Difference


@dataclass(frozen=True)
class Lossless:
    """Texts of a rule that promises plain decoding's.

    differences: from the plain text. tree: partings of tree and plain texts. plain: of plain texts in batches of ``batch`` from those
    in the point's batch. rounding: how likely a token is to be a parting by rounding alone. All but ``tree`` are made, as
    ``reference`` is, only where some text parts.
    """

    prompts: int
    differences: list[Difference] = field(default_factory=list)
    tree: Partings | None = None
    plain: Partings | None = None
    batch: int | None = None
    rounding: float | None = None
    reference: str | None = None

    @property
    def no_ties(self) -> int:
        return sum(not d.near_tie for d in self.differences)

    @property
    def chance(self) -> float | None:
        """The probability of so many partings by what explains them better: plain decoding's own rate, or rounding."""
        if self.tree is None or self.plain is None or self.rounding is None:
            return None
        return max(self.tree.beyond(self.plain), self.tree.by_rounding(self.rounding))

    @property
    def too_often(self) -> bool:
        return self.chance is not None and self.chance < SIGNIFICANT

    def to_json(self) -> dict[str, Any]:
        compared = None
        if self.tree and self.plain and self.rounding is not None:
            compared = {
                "tree": self.tree.to_json(),
                "plain": {"batch": self.batch, **self.plain.to_json()},
                "rounding_per_1000_tokens": 1e3 * self.rounding,
                "p": self.chance,
            }
        return {
            "prompts": self.prompts,
            "identical": self.prompts - len(self.differences),
            "near_ties": len(self.differences) - self.no_ties,
            "reference": self.reference,
            "differences": [d.to_json() for d in self.differences],
            "partings": compared,
        }


@dataclass(frozen=True)
class Ruled:
    """Texts of typical acceptance. likelihood: what the base model gives them in nats a token, "plain", "tree", and their
    "difference", paired by prompt. tokens: how many were held to the rule. unruly: those that it would not have let stand."""

    likelihood: dict[str, Estimate]
    tokens: int
    unruly: list[Unruly]
    reference: str

    def to_json(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "reference": self.reference, "broken": [asdict(u) for u in self.unruly]}


@dataclass(frozen=True)
class Full:
    """Of batches of more than one sequence, as large as the point's: how many sequences had not ended in a step with the tree, on
    average, and what tokens/s these steps make by their tokens and time, were all at work, as predictions have it."""

    at_work: float
    tokens_per_s: float


@dataclass(frozen=True)
class Validation:
    """Measured figures of one operating point, of its book where it has one, and the predictions they stand beside."""

    point: OperatingPoint
    rule: Rule
    prompts: int
    text: Lossless | Ruled
    acceptance: Acceptance
    step_latency_ms: dict[str, Estimate]  # "plain", "tree"
    tokens_per_s: dict[str, Estimate]
    speedup: Estimate
    device: str
    dtype: str
    drafted: DraftedBy | None = None
    full: Full | None = None
    decoded: CandidateTree | TreeBook | None = None  # by which the texts were made

    @property
    def predicted(self) -> OperatingPoint | Book:
        """The figures predicted of what was decoded with."""
        return self.point.book or self.point

    @property
    def reasons(self) -> list[str]:
        """Why this is not as predicted; empty where it is. Times are shown, not judged: they are the machine's, and what else it
        does changes them."""
        found = []
        if isinstance(self.text, Lossless):
            if self.text.no_ties:
                found.append(
                    f"{_count(self.text.no_ties, 'text')} of {self.prompts} left the plain text where there was no tie"
                )
            if self.text.too_often and self.text.tree and self.text.plain:
                found.append(
                    f"texts left the plain text {self.text.tree.per_thousand:.2g} times in 1,000 tokens, plain decoding itself, in "
                    f"another batch shape, {self.text.plain.per_thousand:.2g} times, and rounding explains "
                    f"{1e3 * (self.text.rounding or 0):.2g} (p = {self.text.chance:.1g})"
                )
        elif self.text.unruly:
            found.append(
                f"the rule would not have let stand {_count(len(self.text.unruly), 'token')} of {self.text.tokens:,}"
            )
        if not self.acceptance.as_predicted:
            found.append(str(self.acceptance))
        elif self.drafted is not None:
            found += self.drafted.reasons
        return found

    def to_json(self) -> dict[str, Any]:
        """The object ``validate --json`` prints, versions aside. "nodes" and "depth" are of what was decoded with: of a book, the most nodes
        and the most heads of its trees."""

        def all_of(measured: dict[str, Estimate], predicted: Estimate) -> dict[str, float]:
            return {**{name: e.value for name, e in measured.items()}, "predicted_tree": predicted.value}

        lossless = isinstance(self.text, Lossless)
        speedup = self.predicted.speedup
        book = self.decoded if isinstance(self.decoded, TreeBook) else None
        planned = () if self.point.book is None else self.point.book.trees
        return {
            "verdict": {"passed": not self.reasons, "reasons": self.reasons},
            "acceptance": rule_json(self.rule),
            "prompts": self.prompts,
            "lossless": self.text.to_json() if lossless else None,
            "rule_kept": None if lossless else self.text.to_json(),
            "log_likelihood_per_token": None if isinstance(self.text, Lossless) else {k: asdict(e) for k, e in self.text.likelihood.items()},
            "acceptance_length": self.acceptance.to_json(),
            "step_latency_ms": all_of(self.step_latency_ms, self.predicted.step_latency_ms),
            "tokens_per_s": all_of(self.tokens_per_s, self.predicted.tokens_per_s),
            "full_batches": None if self.full is None else asdict(self.full),
            "speedup": {
                "predicted": speedup.value, "predicted_interval": [speedup.low, speedup.high],
                "measured": self.speedup.value, "measured_interval": [self.speedup.low, self.speedup.high],
            },
            "batch": self.point.batch,
            "context": self.point.context,
            "nodes": (book or self.point).nodes,
            "depth": self.point.depth if book is None else book.heads,
            "lookup": book and book.lookup and asdict(book.lookup),
            "book": book and [
                {"match": match, "nodes": tree.nodes, "heads": tree.heads, "lookup": tree.lookup, "share": told.share}
                for match, tree, told in zip(book.matches, book.trees, planned, strict=True)
            ],
            "drafted": None if self.drafted is None else self.drafted.to_json(),
            "device": self.device,
            "dtype": self.dtype,
        }  # fmt: skip


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)
