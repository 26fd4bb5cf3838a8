"""Acceptance length, measured beside predicted: whether it is what the plan counts on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medusa_runtime.treefile import Estimate

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
        """False where chance does not explain how far the ratio is from 1 (its 95% interval leaves 1 out), and it is further than the
        margin."""
        margin = MARGIN if self.prompts >= FEW else MARGIN_OF_FEW
        return self.ratio.low <= 1 <= self.ratio.high or abs(self.ratio.value - 1) <= margin

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
