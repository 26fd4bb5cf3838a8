"""Acceptance length, measured beside predicted: whether it is what the plan counts on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medusa_runtime.treefile import Drafted, Estimate

from ..traces.bookreplay import BOTH, HEADS, LOOKUP, BookReplay
from ..traces.bootstrap import rate_ratio, ratio_interval
from ..traces.replay import Replay

MARGIN = 0.05  # less than a twentieth off is nothing that a plan turns on
FEW = 16  # prompts: of fewer, resampling makes intervals too narrow (of 8 right ones on the demo, 3 in 100 draws would fail),
MARGIN_OF_FEW = 0.5  # so that only what is off by half says something


@dataclass(frozen=True)
class Acceptance:
    """Tokens a step over ``prompts`` texts.

    predicted: of the operating point, on all held-out prompts. replayed: on these very prompts, where their trace is at hand.
    ratio: measured over predicted, paired by prompt where it is; else its interval is of all ratios that two intervals allow.
    """

    prompts: int
    measured: Estimate
    predicted: Estimate
    replayed: float | None
    ratio: Estimate

    @classmethod
    def of(cls, emitted: Sequence[Sequence[int]], predicted: Estimate, replayed: Replay | None = None) -> Acceptance:
        """``emitted``: tokens of each step of each text; ``replayed``: the same texts' replay, in the same order."""
        tokens, steps = np.array([sum(row) for row in emitted]), np.array([len(row) for row in emitted])
        value = float(tokens.sum() / steps.sum())
        measured = Estimate(value, *ratio_interval(tokens, steps))
        if replayed is not None:
            ratio = Estimate(*rate_ratio(tokens, steps, replayed.tokens, replayed.steps))
            return cls(len(emitted), measured, predicted, replayed.acceptance_length, ratio)
        ratio = Estimate(value / predicted.value, measured.low / predicted.high, measured.high / predicted.low)
        return cls(len(emitted), measured, predicted, None, ratio)

    @property
    def as_predicted(self) -> bool:
        """Whether the measured length is, up to chance, the predicted one."""
        return near(self.ratio, self.prompts)

    def __str__(self) -> str:
        if self.replayed is not None:
            return f"acceptance length is {self.measured.value:.3f}, where replay predicts {self.replayed:.3f} for these very prompts"
        low, high = self.predicted.low, self.predicted.high
        return f"acceptance length is {self.measured.value:.3f}, where {self.predicted.value:.3f} ({low:.3f} to {high:.3f}) was predicted"

    def to_json(self) -> dict[str, Any]:
        return {
            "predicted": self.predicted.value,
            "predicted_interval": [self.predicted.low, self.predicted.high],
            "measured": self.measured.value,
            "measured_interval": [self.measured.low, self.measured.high],
            "replayed": self.replayed,
            "ratio": asdict(self.ratio),
        }


def near(ratio: Estimate, prompts: int) -> bool:
    """False where chance does not explain how far the ratio is from 1 (its 95% interval leaves 1 out), and it is further than the
    margin."""
    margin = MARGIN if prompts >= FEW else MARGIN_OF_FEW
    return ratio.low <= 1 <= ratio.high or abs(ratio.value - 1) <= margin


@dataclass(frozen=True)
class DraftedBy:
    """Accepted tokens a step behind the root, by who drafted them: of the book's prediction, replayed on these very prompts where their
    trace is at hand, and measured.

    prompts: decoded. ratios: what each drafter had right, alone or with the other, measured over replayed, paired by prompt; empty where
    nothing is replayed. Lookup alone can hide heads that are not those of the calibration from the acceptance length.
    """

    predicted: Drafted
    replayed: Drafted | None
    measured: Drafted
    prompts: int
    ratios: dict[str, Estimate]

    @classmethod
    def of(
        cls,
        emitted: Sequence[Sequence[int]],
        drafted: Sequence[Sequence[int]],
        predicted: Drafted,
        replayed: Replay | None,
    ) -> DraftedBy:
        """``emitted``: tokens of each step of each text; ``drafted``: of each text, as the runtime counts it."""
        mine, steps = np.array(drafted), np.array([len(row) for row in emitted])
        measured = Drafted(*map(float, mine.sum(axis=0) / steps.sum()))
        if not isinstance(replayed, BookReplay):
            return cls(predicted, None, measured, len(steps), {})
        theirs, ratios = replayed.drafted, {}
        for name, column in (("heads", HEADS), ("lookup", LOOKUP)):
            right, known = (counts[:, BOTH] + counts[:, column] for counts in (mine, theirs))
            if min(map(np.count_nonzero, (right, known))) >= FEW:  # so that no draw of them is without any
                ratios[name] = Estimate(*rate_ratio(right, steps, known, replayed.steps))
        exact = Drafted(*map(float, theirs.sum(axis=0) / replayed.steps.sum()))
        return cls(predicted, exact, measured, len(steps), ratios)

    @property
    def reasons(self) -> list[str]:
        """Drafters that are right more or less often than they were; of few prompts nothing is said, as what one of two drafters adds is
        known less well than what both do."""
        if self.prompts < FEW:
            return []
        return [
            f"{'heads' if name == 'heads' else 'the lookup'} had {ratio.value:.2f} times as many tokens right a step as replay predicts for these very prompts"
            for name, ratio in self.ratios.items()
            if not near(ratio, self.prompts)
        ]

    def to_json(self) -> dict[str, Any]:
        told = asdict(self)
        return {name: told[name] for name in ("predicted", "replayed", "measured", "ratios")}
