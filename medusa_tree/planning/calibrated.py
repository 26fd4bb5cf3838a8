"""Calibrated: what was profiled and what was timed, here or elsewhere, put together, and the plan that follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..devices.latency import LatencyGrid
from ..devices.shape import ModelShape
from ..drafters import BOTH, LOOKUP
from ..traces.beside import Beside
from ..traces.trace import RankTrace
from .budget import Budget
from .calibration import Calibration
from .drafts import drafting
from .plan import Plan, plan


@dataclass(frozen=True)
class Timed:
    """Step latency, the shape of the model that was timed, and the loads that memory did not suffice for."""

    grid: LatencyGrid
    shape: ModelShape | None
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Calibrated:
    """What was measured, the plan made of it, and the loads that memory did not suffice for."""

    calibration: Calibration
    plan: Plan
    left_out: list[str] = field(default_factory=list)


def planned(
    trace: RankTrace,
    record: dict[str, Any],
    timed: Timed,
    budget: Budget,
    keep: Callable[[Calibration], object] = lambda measured: None,
    drafts: str = BOTH,
    beside: Beside | None = None,
) -> Calibrated:
    """The plan that follows from a trace, of provenance ``record``, and from step latency; ``keep`` is handed the calibration before.

    Args:
        drafts: see :func:`medusa_tree.planning.plan.plan`. beside: a text of the user's own that is looked up in besides.

    Raises:
        InputError: a budget that cannot be met.
    """
    trace = drafting(trace, drafts)
    if drafts == LOOKUP:  # what was timed read no heads
        record = record | {"heads": None}
    record = record | {"device": timed.grid.device} | ({} if beside is None else {"lookup": beside.to_json()})
    calibration = Calibration(trace, timed.grid, record, timed.shape)
    if beside is not None:
        calibration = replace(calibration, beside=beside.ids)
    keep(calibration)
    known = max(p.nodes for p in timed.grid.points)  # larger trees were too slow to win, and not timed
    budget = replace(budget, max_nodes=min(budget.max_nodes or known, known))
    return Calibrated(calibration, plan(calibration, budget, drafts=drafts), timed.left_out)
