"""Calibrate: a model's heads ranked on prompts, its steps timed, and the tree that follows: the whole main job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel

from ..devices import measure as device
from ..devices.latency import LatencyGrid, Load
from ..planning.budget import Budget
from ..planning.calibration import Calibration
from ..planning.choose import contenders
from ..planning.plan import Plan, plan
from ..progress import Report, counted, unseen
from ..traces.probetrace import ProbeTrace
from ..traces.trace import RankTrace
from .job import Profiling, Timing
from .probe import retake, take_trace
from .provenance import provenance
from .tokens import Fitted

ALWAYS_TIMED = 64  # nodes: the size that people copy, to be compared with whatever is planned


@dataclass(frozen=True)
class Calibrated:
    """What was measured, the plan made of it, and the loads that memory did not suffice for."""

    calibration: Calibration
    plan: Plan
    left_out: list[str] = field(default_factory=list)


def calibrate(
    model: MedusaModel,
    prompts: Fitted,
    held_out: npt.NDArray[np.bool_],
    profiling: Profiling,
    timing: Timing,
    budget: Budget,
    names: tuple[str, str | None] | None = None,
    report: Report = unseen,
    keep: Callable[[RankTrace | Calibration], object] = lambda measured: None,
) -> Calibrated:
    """Profile, time, plan; under typical acceptance the held-out text is then made anew with the tree that was chosen.

    Args:
        prompts: what ``profiling`` reads, see :func:`medusa_tree.profiling.tokens.fitted`.
        held_out: (S,) which of them are kept from fitting.
        names: of model and heads as the user gave them, for provenance; by default as the model knows them.
        keep: handed what must not be lost: the calibration once all is measured, or the trace alone where timing ends early.

    Raises:
        InputError: a context that the model has no room for, not enough memory, or a budget that cannot be met.
    """
    rows, new = prompts.rows, profiling.max_new_tokens
    timing = replace(timing, contexts=_contexts(model, timing, rows, new, budget))
    profiled = counted(report, "Profiling heads (prompts)", len(rows))
    trace = take_trace(model, rows, held_out, new, profiling.candidates, profiling.rule, profiled)
    try:
        latency, left_out = _time(model, trace, profiling, timing, budget, report)
    except (InputError, KeyboardInterrupt):
        keep(trace)
        raise
    record = provenance(model, names or (model.name, model.heads_name), profiling, prompts)
    calibration = Calibration(trace, latency, record, device.shape_of(model))
    keep(calibration)
    known = max(p.nodes for p in latency.points)  # larger trees were too slow to win, and not timed
    budget = replace(budget, max_nodes=min(budget.max_nodes or known, known))
    found = plan(calibration, budget)
    own = next((t for p in found.contents.operating_points if (t := found.contents.tree_of(p)).nodes), None)
    if isinstance(trace, ProbeTrace) and own is not None:
        probed = counted(report, "Probing the tree's own text", int(held_out.sum()))
        record["corpus"]["tokens"] += f"; held-out text made with the tree of {own.nodes} nodes"
        calibration = replace(calibration, trace=retake(model, rows, trace, own, new, probed))
        keep(calibration)
        found = plan(calibration, budget)
    return Calibrated(calibration, found, left_out)


def middle_context(rows: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Tokens that the middle prompt has in the cache half-way through its text."""
    return sorted(map(len, rows))[len(rows) // 2] + max_new_tokens // 2


def _largest(budget: Budget) -> int:
    """Nodes of the largest tree that is timed."""
    return max(ALWAYS_TIMED, budget.max_nodes or 0)


def _contexts(
    model: MedusaModel, timing: Timing, rows: Sequence[Sequence[int]], max_new_tokens: int, budget: Budget
) -> tuple[int, ...]:
    """The contexts to time at, all of which leave room for timing.

    Raises:
        InputError: one asked for does not.
    """
    largest = _largest(budget)
    room = max(1, (model.max_context or 1 << 30) - device.room_for(model, largest))
    if timing.contexts and (longest := max(timing.contexts)) > room:
        raise InputError(
            f"--context {longest}: with a tree of {largest} nodes {model.name} has room for {room}; give less"
        )
    return timing.contexts or (min(middle_context(rows, max_new_tokens), room),)


def _time(
    model: MedusaModel, trace: RankTrace, profiling: Profiling, timing: Timing, budget: Budget, report: Report
) -> tuple[LatencyGrid, list[str]]:
    """Step latency at every load, and which of them memory did not suffice for, and why."""
    left_out: list[str] = []
    rounds, largest = device.ROUNDS, _largest(budget)
    told = counted(report, "Timing steps (rounds)", rounds * len(timing.batches) * len(timing.contexts))

    def leave_out(load: Load, why: InputError) -> None:
        left_out.append(f"batch {load[0]}, context {load[1]}: {why}")

    latency = device.measure(
        model, largest, profiling.candidates, timing.batches, timing.contexts, rounds, profiling.seed, rule=profiling.rule,
        contenders=contenders(trace, largest, budget), leave_out=leave_out, progress=told,
    )  # fmt: skip
    return latency, left_out
