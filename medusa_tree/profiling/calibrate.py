"""Calibrate: a model's heads ranked on prompts, its steps timed, and the tree that follows: the whole main job."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medusa_runtime.book import Lookup
from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel
from medusa_runtime.processes import agreed

from ..devices import measure as device
from ..devices.latency import Load
from ..devices.shape import shape_of
from ..drafters import BOTH, HEADS
from ..origin import differ, profiled_with
from ..planning.budget import Budget
from ..planning.calibrated import Calibrated, Timed, planned
from ..planning.calibration import Calibration
from ..planning.choose import contenders
from ..progress import Report, counted, unseen
from ..traces.beside import Beside
from ..traces.probetrace import ProbeTrace
from ..traces.trace import RankTrace
from .job import Timing
from .memory import tokens_at_once
from .probe import replaced
from .provenance import weight_digest
from .run import Job, prober, profile_run, take_in_turns
from .shards import collect

NOTHING = RankTrace(np.zeros((1, 1), dtype=np.int16), np.array([0, 1]), np.array([False]), 1)  # another process has it
ALWAYS_TIMED = 64  # nodes: the size that people copy, to be compared with whatever is planned


def calibrate(
    job: Job,
    timing: Timing,
    budget: Budget,
    report: Report = unseen,
    keep: Callable[[RankTrace | Calibration], object] = lambda measured: None,
    folder: Path | None = None,
    latency: Timed | None = None,
    drafts: str = BOTH,
    beside: Beside | None = None,
) -> Calibrated:
    """Profile, time, plan; under typical acceptance the held-out text is then made anew with the tree that was chosen.

    Args:
        keep: handed what must not be lost: the calibration once all is measured, or the trace alone where timing ends early.
        folder: the run's, see :mod:`medusa_tree.profiling.shards`; by default one that is gone at the end.
        latency: what was timed before.
        drafts: who may draft, see :func:`medusa_tree.planning.plan.plan`; steps are timed for that.
        beside: a text of the user's own that is looked up in besides.

    Raises:
        InputError: a context that the model has no room for, not enough memory, or a budget that cannot be met.
    """
    rows, new = job.prompts.rows, job.profiling.max_new_tokens
    if latency is None:
        timing = _settled(job.model, timing, middle_context(rows, new), budget, drafts)
    trace, record = _profiled(job, folder, report)
    try:
        timed = latency or time_steps(job.model, trace, job.profiling.seed, timing, budget, report, drafts, beside)
    except (InputError, KeyboardInterrupt):
        keep(trace)
        raise
    made = planned(trace, record, timed, budget, keep, drafts, beside)
    own = next((t for p in made.plan.contents.operating_points if (t := made.plan.contents.tree_of(p)).nodes), None)
    if not isinstance(trace, ProbeTrace) or own is None:
        return made
    held = np.flatnonzero(job.held_out).tolist()
    probed = counted(report, "Probing the tree's own text", sum(job.prompts.turns[i] for i in held))
    again = take_in_turns(
        job,
        held,
        prober(job, job.profiling.tokens or agreed(job.model, tokens_at_once(job.model)), own, trace.probe),
        probed,
    )
    if not isinstance(again, ProbeTrace):
        raise TypeError("what was probed is a probe trace")
    record["corpus"]["tokens"] += f"; held-out text made with the tree of {own.nodes} nodes"
    return planned(replaced(trace, again), record, timed, budget, keep, drafts, beside)


def check_profiled(model: MedusaModel, record: Mapping[str, Any], where: str) -> None:
    """InputError where a model is another one, or has other heads, than a trace was taken with; in another dtype weights are rounded
    otherwise, and nothing can be said.

    Args:
        record: the trace's provenance. where: its place, for errors.
    """
    if "model" not in record:
        return
    was, heads = profiled_with(record, where)
    if was.dtype != model.dtype_name:
        return
    for what, module, then in (("model", model.base, was), ("heads", model.heads, heads)):
        if module is None or then is None or then.weights is None:
            continue
        if differ(weight_digest(module), then.weights):
            raise InputError(f"{where}: was profiled with another {what}; name the one of then, with --{what}")


def time_profiled(
    model: MedusaModel, trace: RankTrace, seed: int, timing: Timing, budget: Budget, report: Report = unseen, drafts: str = BOTH,
    beside: Beside | None = None,
) -> Timed:  # fmt: skip
    """Step latency for a trace that was taken before, by default at the middle context of its own texts."""
    text, usual = trace.text, 1
    if text is not None:
        usual = int(np.median(text.prompts.lengths) + np.median(trace.lengths) // 2)
    timing = _settled(model, timing, usual, budget, drafts)
    return time_steps(model, trace, seed, timing, budget, report, drafts, beside)


def middle_context(rows: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Tokens that the middle prompt has in the cache half-way through its text."""
    return sorted(map(len, rows))[len(rows) // 2] + max_new_tokens // 2


def _profiled(job: Job, folder: Path | None, report: Report) -> tuple[RankTrace, dict[str, Any]]:
    """The trace, and its provenance."""
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            return _profiled(replace(job, writes=True), Path(name), report)
    run = profile_run(job, folder, report)
    return agreed(job.model, collect(folder) if job.writes else NOTHING), run.provenance


def _largest(budget: Budget) -> int:
    """Nodes of the largest tree that is timed."""
    return max(ALWAYS_TIMED, budget.max_nodes or 0)


def _settled(model: MedusaModel, timing: Timing, usual: int, budget: Budget, drafts: str) -> Timing:
    """The loads to time, each once, with the contexts that were asked for or the ``usual`` one; InputError where there is no room."""
    contexts = device.timed_contexts(model, timing.contexts, usual, _largest(budget), drafts != HEADS)
    return replace(timing, batches=tuple(dict.fromkeys(timing.batches)), contexts=contexts)


def time_steps(
    model: MedusaModel, trace: RankTrace, seed: int, timing: Timing, budget: Budget, report: Report = unseen, drafts: str = BOTH,
    beside: Beside | None = None,
) -> Timed:  # fmt: skip
    """Step latency at every load, in full where trees that may be the fastest are timed; with a lookup unless heads alone draft, in
    text ``beside``, too."""
    left_out: list[str] = []
    rounds, largest = device.ROUNDS, _largest(budget)
    told = counted(report, "Timing steps (rounds)", rounds * len(timing.batches) * len(timing.contexts))

    def leave_out(load: Load, why: InputError) -> None:
        left_out.append(f"batch {load[0]}, context {load[1]}: {why}")

    lookup = None if drafts == HEADS or isinstance(trace, ProbeTrace) else Lookup()
    # Of a book trees of many sizes are wanted, so all are timed as often; of heads alone one.
    near = contenders(trace, largest, budget) if lookup is None else None
    grid = device.measure(
        model, largest, trace.candidates, timing.batches, timing.contexts, rounds, seed, rule=trace.acceptance, contenders=near,
        leave_out=leave_out, progress=told, lookup=lookup, beside=() if beside is None else beside.tokens,
    )  # fmt: skip
    return Timed(grid, shape_of(model), left_out)
