"""Plan: rank trace + step latency + budget -> ordered tree and operating points. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree, Path
from medusa_runtime.treefile import OperatingPoint, TreeFile

from ..devices.latency import Latency, LatencyCurve, LatencyGrid, Load
from ..drafters import BOTH, HEADS, LOOKUP
from ..search.order import ENOUGH
from ..search.refine import swap_nodes, visited_tree
from ..traces.probetrace import ProbeTrace
from ..traces.replay import replay
from ..traces.trace import FEW, RankTrace, head_accuracy
from .budget import Budget
from .calibration import Calibration
from .choose import Curve, pick, predict
from .drafts import drafting
from .lookup import add_books
from .offers import Estimator, Offers, engine_offers, estimate, free_offers, full_order, ladder

OWN_GAIN = 0.005  # a point leaves the common order for a tree of its own that replays better by this share
LARGEST_BATCH = 1 << 16  # beyond which no one looks for the batch at which plain decoding wins


@dataclass(frozen=True)
class Task:
    """What is planned from: the calibration, in its two parts, and path frequencies fitted to the first; and what is asked for."""

    calibration: Calibration
    fit: RankTrace
    held: RankTrace
    estimator: Estimator
    budget: Budget
    engine: str | None
    swaps: bool
    drafts: str = BOTH

    @property
    def latency(self) -> Latency:
        return self.calibration.latency

    @property
    def kind(self) -> str:
        """ "measured" or "modelled"."""
        return self.latency.kind


@dataclass(frozen=True)
class Plan:
    """The contents of tree.json and what stands behind them, by (batch, context).

    task: what it was planned from. infeasible: why a load has no operating point. free: what the best tree of any form
    would give, where an engine bounds the form. plain_from: for each context, the batch from which plain decoding is
    fastest, if any was seen.
    """

    contents: TreeFile
    curves: dict[Load, Curve]
    task: Task = field(repr=False, compare=False)
    infeasible: dict[Load, str] = field(default_factory=dict)
    free: dict[Load, tuple[OperatingPoint, CandidateTree]] = field(default_factory=dict)
    plain_from: dict[int, int | None] = field(default_factory=dict)


def plan(
    calibration: Calibration,
    budget: Budget,
    loads: Sequence[Load] | None = None,
    *,
    engine: str | None = None,
    estimator: str = "visited",
    swaps: bool = False,
    drafts: str = BOTH,
) -> Plan:
    """The best N and D for each (batch, context), and the ordered paths that serve them all.

    Sizes are chosen by replay on the fitting sequences; acceptance is reported on the held-out ones.

    Args:
        loads: (batch, context) pairs; by default those measured.
        engine: plan within what this engine accepts, see :mod:`medusa_tree.engines`; then each point has a tree of its own.
        estimator: of path frequencies, see :func:`medusa_tree.planning.offers.estimate`.
        swaps: try single-node swaps on every chosen tree; slower.
        drafts: who drafts: heads, lookup, or both, as far as the trace has what they need.

    Raises:
        InputError: the budget cannot be met at any load, with the bound that binds and what is nearest; swaps with an
            engine, whose bounds they would break.
    """
    if swaps and engine:
        raise InputError(
            f"--swaps: a tree with swapped nodes may be none that {engine} takes; leave out one of the two"
        )
    if isinstance(calibration.trace, ProbeTrace) and (engine or swaps):
        raise InputError(
            f"--{'engine' if engine else 'swaps'} is for greedy acceptance and sampling; plan typical acceptance without it, and export "
            "the tree to an engine that has that rule"
        )
    calibration = replace(calibration, trace=drafting(calibration.trace, drafts))
    if engine and not calibration.trace.heads:
        raise InputError(f"--engine {engine}: takes trees of heads, and none are planned without; leave it out")
    latency = calibration.latency
    curves = {load: latency.curve(*load) for load in loads or latency.loads()}
    fit, held = calibration.trace.split()
    largest = max(c.largest for c in curves.values())
    slowest = 1 + fit.heads  # times plain decoding's step: no tree slower than that can win
    if (budget.max_nodes or 0) > largest and any(
        c.at(c.largest, 1) < slowest * c.plain.seconds for c in curves.values()
    ):
        raise InputError(
            f"--max-nodes {budget.max_nodes}: step latency is known up to {largest} nodes; calibrate with --max-nodes {budget.max_nodes}"
        )
    if fit.heads and isinstance(latency, LatencyGrid) and not any(p.depth for p in latency.points):
        raise InputError(
            "step latency was measured without heads, so that what heads cost is not known; measure with them, or plan with --drafts lookup"
        )
    sizes = ladder(largest, [p.nodes for c in curves.values() for p in c.points])
    fitted = estimate(fit, estimator)
    task = Task(calibration, fit, held, fitted, budget, engine, swaps, drafts)
    order = full_order(fitted, largest, fit.heads, may_be_empty=_looks_up(task))
    free = free_offers(order, fit, held, sizes, fit.heads)
    offers = engine_offers(engine, fitted, fit, held, sizes, fit.heads) if engine else free

    chosen: dict[Load, Curve] = {}
    infeasible: dict[Load, str] = {}
    points: list[tuple[OperatingPoint, CandidateTree]] = []
    unbounded: dict[Load, tuple[OperatingPoint, CandidateTree]] = {}
    for load, curve in curves.items():
        try:
            chosen[load] = pick(offers, curve, load, budget, calibration.memory)
        except InputError as error:
            infeasible[load] = f"{error}{' (modelled)' * (task.kind == 'modelled')}"
            continue
        points.append(_point(task, chosen[load], offers, curve, load))
        if engine:
            best = pick(free, curve, load, budget, calibration.memory)
            unbounded[load] = _point(task, best, free, curve, load)
    if not points:
        raise InputError("\n".join(infeasible.values()))
    if not engine:
        points = [_own(task, point, tree, curves[point.batch, point.context]) for point, tree in points]
    common, why = (CandidateTree(), f"chosen within what {engine} takes") if engine else (order, "")
    paths, numbered = _number_paths(common, points, fitted, why)
    if _looks_up(task):
        numbered = add_books(calibration, fit, held, budget, numbered, [tree for _, tree in points], paths, curves)
    contents = TreeFile(
        paths=paths,
        path_frequency=tuple(round(fitted.frequency(p), 6) for p in paths),
        operating_points=numbered,
        heads=fit.heads,
        candidates=fit.candidates,
        head_accuracy=tuple(tuple(round(float(a), 6) for a in row) for row in head_accuracy(fit)),
        acceptance=fit.acceptance,
        provenance=_record(task, largest),
    )
    return Plan(contents, chosen, task, infeasible, unbounded, _plain_from(task, contents, offers))


def _looks_up(task: Task) -> bool:
    """Whether a lookup is planned: asked for, of a text that is known, by an engine that can, under a rule whose text no draft changes."""
    trace = task.calibration.trace
    known = trace.text is not None or task.drafts == LOOKUP  # which asks for it, and is told what is missing
    return task.drafts != HEADS and not task.engine and known and not isinstance(trace, ProbeTrace)


def _record(task: Task, largest: int) -> dict[str, Any]:
    """The calibration's provenance and how this plan was made."""
    latency, fit, held = task.latency, task.fit, task.held
    return {
        **task.calibration.provenance,
        "device": latency.device,
        "dtype": latency.dtype,
        **({"modelled": latency.to_json()} if task.kind == "modelled" else {}),
        "estimator": task.estimator.to_json(),
        "plan": {
            "budget": task.budget.to_json(),
            "engine": task.engine,
            "swaps": task.swaps,
            "drafts": task.drafts,
            "prefixes_to": None if task.engine else largest,
        },
        "sequences": {"fitting": len(fit.lengths), "held_out": len(held.lengths)},
        "positions": {"fitting": fit.positions, "held_out": held.positions},
    }


def _point(
    task: Task, curve: Curve, offers: Offers, latency: LatencyCurve, load: Load
) -> tuple[OperatingPoint, CandidateTree]:
    """What was picked of the offers at a load, and its tree."""
    if curve.offer is None:
        return predict(CandidateTree(), task.held, latency, load, task.kind, curve.limit), CandidateTree()
    tree = offers.tree(curve.offer)
    return predict(tree, task.held, latency, load, task.kind, curve.limit, offers.settings(curve.offer)), tree


def _own(
    task: Task, point: OperatingPoint, tree: CandidateTree, latency: LatencyCurve
) -> tuple[OperatingPoint, CandidateTree]:
    """The point with a tree of its own, where :func:`refined` has one."""
    own, why = refined(task, tree)
    if not why:
        return point, tree
    new = predict(own, task.held, latency, (point.batch, point.context), task.kind, point.limit)
    return replace(new, why_own=why), own


def refined(task: Task, tree: CandidateTree) -> tuple[CandidateTree, str]:
    """A tree of that size and depth made for what a tree of its size visits, or with nodes swapped, and how much better it is,
    where the common order loses to it on the fitting sequences beyond doubt (the 95% interval) and by more than OWN_GAIN;
    else the tree as it is, and ""."""
    visits = task.estimator.name == "visited"
    if not tree.nodes or not (visits or task.swaps) or len(task.fit.lengths) < FEW:
        return tree, ""
    sample = task.fit.sample(ENOUGH)
    own = visited_tree(sample, tree.nodes, task.estimator.kappa, tree.depth) if visits else tree
    if task.swaps:
        own = swap_nodes(own, *sample.halves(), depth=tree.depth)
    before = replay(tree, sample)
    more, low, _ = replay(own, sample).less(before)
    if low <= 0 or more < OWN_GAIN * before.acceptance_length:
        return tree, ""
    how = [f"for what {tree.nodes} nodes visit"] * visits + ["with nodes swapped"] * task.swaps
    share = 100 * more / before.acceptance_length
    return own, f"a tree {' and '.join(how)} accepts {share:.1f}% more on the fitting sequences"


def _number_paths(
    common: CandidateTree, points: list[tuple[OperatingPoint, CandidateTree]], estimator: Estimator, why: str
) -> tuple[tuple[Path, ...], tuple[OperatingPoint, ...]]:
    """All paths in one order by frequency, and the points, each a prefix or with its own list of path numbers, for the
    point's own reason or for ``why``."""
    kept = {*common.paths, *(p for _, tree in points for p in tree.paths)}
    paths = tuple(sorted(kept, key=estimator.place))
    number = {p: i for i, p in enumerate(paths)}
    whole = CandidateTree(paths)
    numbered = []
    for point, tree in points:
        mine = tuple(sorted(number[p] for p in tree.paths))
        prefix = set(whole.cut(point.nodes, point.depth).paths) == set(tree.paths)
        numbered.append(point if prefix else replace(point, own=mine, why_own=point.why_own or why))
    return paths, tuple(numbered)


def _plain_from(task: Task, contents: TreeFile, offers: Offers) -> dict[int, int | None]:
    """For each context the smallest batch from which no larger one planned wants a tree, if it could have one. Where the
    latency is modelled, batches beyond those planned are tried, too."""
    found: dict[int, int | None] = {}
    for context in sorted({p.context for p in contents.operating_points}):
        here = sorted(
            (p.batch, bool(p.nodes or p.limit or p.book)) for p in contents.operating_points if p.context == context
        )
        trees = [b for b, wanted in here if wanted]
        later = [b for b, _ in here if b > max(trees, default=0)]
        found[context] = min(later, default=None)
        looked = any(p.book for p in contents.operating_points if p.context == context)
        if task.kind == "modelled" and not later and not looked:
            found[context] = _plain_beyond(task, offers, here[-1][0], context)
    return found


def _plain_beyond(task: Task, offers: Offers, batch: int, context: int) -> int | None:
    """The first batch above ``batch`` at which no tree wins, by bisection; a longer step and more memory are granted
    to it, as no batch that large was asked for. None if there is none up to LARGEST_BATCH."""
    granted = replace(task.budget, seconds=None, memory=None)

    def plain_wins(batch: int) -> bool:
        load = batch, context
        return pick(offers, task.latency.curve(*load), load, granted, task.calibration.memory).offer is None

    low = high = batch
    while not plain_wins(high):
        low, high = high, 2 * high
        if high > LARGEST_BATCH:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if plain_wins(middle) else (middle, high)
    return high
