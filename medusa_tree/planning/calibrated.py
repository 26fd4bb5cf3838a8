"""Calibrated: what was profiled and what was timed, here or elsewhere, put together, and the plan that follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..devices.latency import LatencyGrid
from ..devices.shape import ModelShape
from ..traces.trace import RankTrace
from .budget import Budget
from .calibration import Calibration
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
) -> Calibrated:
    """The plan that follows from a trace, of provenance ``record``, and from step latency; ``keep`` is handed the calibration before.

    Raises:
        InputError: a budget that cannot be met.
    """
    calibration = Calibration(trace, timed.grid, record | {"device": timed.grid.device}, timed.shape)
    keep(calibration)
    known = max(p.nodes for p in timed.grid.points)  # larger trees were too slow to win, and not timed
    budget = replace(budget, max_nodes=min(budget.max_nodes or known, known))
    return Calibrated(calibration, plan(calibration, budget), timed.left_out)
