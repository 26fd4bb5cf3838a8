"""Plan: rank trace + step latency + budget -> ordered tree and operating points. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree, Path
from medusa_runtime.treefile import Estimate, OperatingPoint, TreeFile

from .budget import Budget, Memory, within
from .calibration import Calibration
from .latency import Latency, LatencyCurve, Load
from .offers import Estimator, Offers, engine_offers, estimate, free_offers, full_order, ladder
from .refine import swap_nodes, visited_tree
from .replay import replay
from .search import ENOUGH
from .trace import RankTrace, head_accuracy

OWN_GAIN = 0.005  # a point leaves the common order for a tree of its own that replays better by this share
LARGEST_KNOWN = "largest size known"  # the limit where a tree larger than any considered may be faster
LARGEST_BATCH = 1 << 16  # beyond which no one looks for the batch at which plain decoding wins


@dataclass(frozen=True)
class Curve:
    """What every tree size would give at one batch and context: (n,) arrays, the best tree of each size within the
    budget, or the best at all where none is. ``acceptance`` is replay on held-out sequences; ``chosen`` is the entry
    that the plan takes, found on the fitting ones; ``limit`` names the bounds without which it were another."""

    nodes: np.ndarray
    depth: np.ndarray
    acceptance: np.ndarray
    seconds: np.ndarray
    tokens_per_s: np.ndarray
    speedup: np.ndarray
    chosen: int
    offer: int | None  # the chosen tree among the offers; None for plain decoding
    limit: str


@dataclass(frozen=True)
class Plan:
    """The contents of tree.json and what stands behind them, by (batch, context).

    infeasible: why a load has no operating point. free: what the best tree of any form would give, where an engine
    bounds the form. plain_from: for each context, the batch from which plain decoding is fastest, if any was seen.
    """

    contents: TreeFile
    curves: dict[Load, Curve]
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
) -> Plan:
    """The best N and D for each (batch, context), and the ordered paths that serve them all.

    Sizes are chosen by replay on the fitting sequences; acceptance is reported on the held-out ones.

    Args:
        loads: (batch, context) pairs; by default those measured.
        engine: plan within what this engine accepts, see :mod:`medusa_tree.engines`; then each point has a tree of its own.
        estimator: of path frequencies, see :func:`medusa_tree.offers.estimate`.
        swaps: try single-node swaps on every chosen tree; slower.

    Raises:
        InputError: the budget cannot be met at any load, with the bound that binds and what is nearest; swaps with an
            engine, whose bounds they would break.
    """
    if swaps and engine:
        raise InputError(
            f"--swaps: a tree with swapped nodes may be none that {engine} takes; leave out one of the two"
        )
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
    sizes = ladder(largest, [p.nodes for c in curves.values() for p in c.points])
    fitted = estimate(fit, estimator)
    order = full_order(fitted, largest, fit.heads)
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
            infeasible[load] = str(error)
            continue
        points.append(_point(chosen[load], offers, held, curve, load, latency.kind))
        if engine:
            best = pick(free, curve, load, budget, calibration.memory)
            unbounded[load] = _point(best, free, held, curve, load, latency.kind)
    if not points:
        raise InputError("\n".join(infeasible.values()))
    if not engine:
        points = [_own(p, t, fit, held, curves[p.batch, p.context], fitted, latency.kind, swaps) for p, t in points]
    paths, numbered = _number_paths(order.cut(0 if engine else largest), points, fitted)
    contents = TreeFile(
        paths=paths,
        path_frequency=tuple(round(fitted.frequency(p), 6) for p in paths),
        operating_points=numbered,
        heads=fit.heads,
        candidates=fit.candidates,
        head_accuracy=tuple(tuple(round(float(a), 6) for a in row) for row in head_accuracy(fit)),
        provenance=_record(calibration, fit, held, fitted, budget, engine, swaps),
    )
    return Plan(
        contents, chosen, infeasible, unbounded, _plain_from(contents, latency, offers, budget, calibration.memory)
    )


def _record(
    calibration: Calibration, fit: RankTrace, held: RankTrace, estimator: Estimator, budget: Budget, engine: str | None, swaps: bool
) -> dict[str, Any]:  # fmt: skip
    """The calibration's provenance and how this plan was made."""
    latency = calibration.latency
    return {
        **calibration.provenance,
        "device": latency.device,
        "dtype": latency.dtype,
        **({"modelled": latency.to_json()} if latency.kind == "modelled" else {}),
        "estimator": estimator.to_json(),
        "plan": {"budget": budget.to_json(), "engine": engine, "swaps": swaps},
        "sequences": {"fitting": len(fit.lengths), "held_out": len(held.lengths)},
        "positions": {"fitting": fit.positions, "held_out": held.positions},
    }


def pick(offers: Offers, latency: LatencyCurve, load: Load, budget: Budget, memory: Memory | None) -> Curve:
    """The fastest offer within the budget at one load, and the best of every size.

    Raises:
        InputError: not even plain decoding is within the budget.
    """
    known = np.flatnonzero(offers.nodes <= latency.largest)
    nodes, depth = offers.nodes[known], offers.depth[known]
    seconds = latency.at(nodes, depth)
    met = within(budget, load, latency, nodes, depth, seconds, memory)
    feasible = np.logical_and.reduce([np.ones(len(known), dtype=np.bool_), *met.values()])
    plain = latency.plain.seconds
    rate = offers.fitted[known] / seconds
    # Every size's best: within the budget where it can be, for the plot also beyond.
    order = np.lexsort((-rate, ~feasible, nodes))
    best = order[np.unique(nodes[order], return_index=True)[1]]
    winner = int(np.argmax(np.where(feasible, rate, 0))) if feasible.any() else None
    if winner is not None and rate[winner] <= 1 / plain:
        winner = None
    free = int(np.argmax(rate))
    limit = "" if free == winner or rate[free] <= 1 / plain else ", ".join(n for n, ok in met.items() if not ok[free])
    if winner is not None and not limit and nodes[winner] == latency.largest:
        limit = LARGEST_KNOWN
    at = 0 if winner is None else 1 + int(np.searchsorted(nodes[best], nodes[winner]))
    acceptance = np.concatenate([[1.0], offers.seen[known[best]]])
    time = np.concatenate([[plain], seconds[best]])
    return Curve(
        nodes=np.concatenate([[0], nodes[best]]),
        depth=np.concatenate([[0], depth[best]]),
        acceptance=acceptance,
        seconds=time,
        tokens_per_s=load[0] * acceptance / time,
        speedup=acceptance / time * plain,
        chosen=at,
        offer=None if winner is None else int(known[winner]),
        limit=limit,
    )


def predict(
    tree: CandidateTree,
    held: RankTrace,
    latency: LatencyCurve,
    load: Load,
    kind: str = "measured",
    limit: str = "",
    settings: dict[str, object] | None = None,
) -> OperatingPoint:
    """What any tree would give: replay on held-out sequences and the latency curve. The intervals of rates
    combine the acceptance interval with the latency's quartiles."""
    played = replay(tree, held)
    length = Estimate(played.acceptance_length, *played.interval())
    seconds = float(latency.at(tree.nodes, tree.depth))
    low, high = latency.spread(tree.nodes)
    step = Estimate(seconds, seconds * low, seconds * high)
    plain = latency.plain.seconds

    def rate(scale: float) -> Estimate:
        return _rounded(
            Estimate(scale * length.value / step.value, scale * length.low / step.high, scale * length.high / step.low)
        )

    milliseconds = Estimate(1e3 * step.value, 1e3 * step.low, 1e3 * step.high)
    return OperatingPoint(
        *load, tree.nodes, tree.depth, _rounded(length), _rounded(milliseconds), rate(load[0]), rate(plain),
        latency=kind, limit=limit, engine=dict(settings or {}),
    )  # fmt: skip


def _point(
    curve: Curve, offers: Offers, held: RankTrace, latency: LatencyCurve, load: Load, kind: str
) -> tuple[OperatingPoint, CandidateTree]:
    if curve.offer is None:
        return predict(CandidateTree(), held, latency, load, kind, curve.limit), CandidateTree()
    tree = offers.tree(curve.offer)
    return predict(tree, held, latency, load, kind, curve.limit, offers.settings(curve.offer)), tree


def _own(
    point: OperatingPoint,
    tree: CandidateTree,
    fit: RankTrace,
    held: RankTrace,
    latency: LatencyCurve,
    estimator: Estimator,
    kind: str,
    swaps: bool,
) -> tuple[OperatingPoint, CandidateTree]:
    """A tree of the point's own (made for what a tree of its size visits, or with nodes swapped), where the common
    order loses to it on the fitting sequences beyond doubt (the 95% interval) and by more than OWN_GAIN."""
    visits = estimator.name == "visited"
    if not tree.nodes or not (visits or swaps):
        return point, tree
    sample = fit.sample(ENOUGH)
    own = visited_tree(sample, tree.nodes, estimator.kappa, tree.depth) if visits else tree
    if swaps:
        own = swap_nodes(own, *sample.halves(), depth=tree.depth)
    before = replay(tree, sample)
    more, low, _ = replay(own, sample).less(before)
    if low <= 0 or more < OWN_GAIN * before.acceptance_length:
        return point, tree
    how = [f"for what {tree.nodes} nodes visit"] * visits + ["with nodes swapped"] * swaps
    why = (
        f"a tree {' and '.join(how)} accepts {100 * more / before.acceptance_length:.1f}% more on the fitting sequences"
    )
    new = predict(own, held, latency, (point.batch, point.context), kind, point.limit)
    return replace(new, why_own=why), own


def _number_paths(
    common: CandidateTree, points: list[tuple[OperatingPoint, CandidateTree]], estimator: Estimator
) -> tuple[tuple[Path, ...], tuple[OperatingPoint, ...]]:
    """All paths in one order by frequency, and the points, each a prefix or with its own list of path numbers."""
    kept = {*common.paths, *(p for _, tree in points for p in tree.paths)}
    paths = tuple(sorted(kept, key=lambda p: (-estimator.frequency(p), len(p), p)))
    number = {p: i for i, p in enumerate(paths)}
    whole = CandidateTree(paths)
    numbered = []
    for point, tree in points:
        mine = tuple(sorted(number[p] for p in tree.paths))
        prefix = set(whole.cut(point.nodes, point.depth).paths) == set(tree.paths)
        numbered.append(replace(point, own=None if prefix else mine))
    return paths, tuple(numbered)


def _plain_from(
    contents: TreeFile, latency: Latency, offers: Offers, budget: Budget, memory: Memory | None
) -> dict[int, int | None]:
    """For each context the smallest batch from which no larger one planned wants a tree. Where the latency is modelled,
    batches beyond those planned are tried, too."""
    found: dict[int, int | None] = {}
    for context in sorted({p.context for p in contents.operating_points}):
        here = sorted((p.batch, p.nodes) for p in contents.operating_points if p.context == context)
        trees = [b for b, nodes in here if nodes]
        later = [b for b, _ in here if b > max(trees, default=0)]
        found[context] = min(later, default=None)
        if latency.kind == "modelled" and not later:
            found[context] = _plain_beyond(here[-1][0], context, latency, offers, budget, memory)
    return found


def _plain_beyond(
    batch: int, context: int, latency: Latency, offers: Offers, budget: Budget, memory: Memory | None
) -> int | None:
    """The first batch above ``batch`` at which no tree wins, by bisection; a longer step and more memory are granted
    to it, as no batch that large was asked for. None if there is none up to LARGEST_BATCH."""
    granted = Budget(budget.ratio, None, budget.max_nodes, budget.max_depth)

    def plain_wins(batch: int) -> bool:
        return pick(offers, latency.curve(batch, context), (batch, context), granted, memory).offer is None

    low = high = batch
    while not plain_wins(high):
        low, high = high, 2 * high
        if high > LARGEST_BATCH:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if plain_wins(middle) else (middle, high)
    return high


def _rounded(e: Estimate) -> Estimate:
    return Estimate(*(float(f"{x:.6g}") for x in (e.value, e.low, e.high)))
