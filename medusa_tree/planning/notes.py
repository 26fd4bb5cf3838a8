"""Notes on a plan, in sentences: what binds, where plain decoding wins, what an engine costs, how well a roofline fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medusa_runtime.treefile import Estimate, OperatingPoint

from ..devices.latency import Latency, LatencyGrid, Load
from ..devices.roofline import Roofline, describe, fit_roofline, roofline_errors
from ..devices.shape import ModelShape
from ..drafters import HEADS
from ..engines import ENGINES
from ..traces.probetrace import ProbeTrace
from ..traces.trace import FEW
from .budget import Memory, enough
from .calibration import Calibration
from .categories import Categories
from .choose import LARGEST_KNOWN, Curve
from .compare import Compared, compare
from .lookup import prices_at
from .offers import optimality
from .plan import Plan


def notes(calibration: Calibration, plan: Plan, split: Sequence[Categories] = ()) -> list[str]:
    """What the tables do not say: infeasible loads, bounds that bind, own orders, what an engine costs, where plain
    decoding wins; and, of the loads whose trees were ``split`` by category, which categories a common tree does not serve."""
    kind, points = calibration.latency.kind, plan.contents.operating_points
    lines = [f"No operating point: {why}" for why in plan.infeasible.values()]
    held = int(calibration.trace.held_out.sum())
    if held < FEW:
        lines.append(
            f"Only {held} sequence{'s' * (held > 1)} held out: the intervals say little; calibrate on more prompts."
        )
    bound: dict[str, list[Load]] = {}
    for p in points:
        load = (p.batch, p.context)
        if p.nodes and p.limit:
            bound.setdefault(p.limit, []).append(load)
        elif p.limit:
            lines.append(
                f"At {_loads([load])} no tree within the budget beats plain decoding: {p.limit} binds; "
                f"{_nearest_tree(p.limit, plan.curves[load], load, calibration.memory)} ({kind})."
            )
        if p.why_own and not plan.free:  # what an engine takes is said below
            lines.append(f"At {_loads([load])} the tree is no prefix of the common order: {p.why_own}.")
    for limit, loads in bound.items():
        if limit == LARGEST_KNOWN:
            lines.append(
                f"At {_loads(loads)} the largest tree looked at was chosen; a larger one, see --max-nodes, may be faster ({kind})."
            )
        else:
            lines.append(f"At {_loads(loads)} a tree beyond the budget would be faster: {limit} binds ({kind}).")
    costs = []
    for p in points:
        cost = engine_cost(calibration, plan, p)
        if cost is not None and plan.free[p.batch, p.context][0].nodes:
            settings = "".join(f", {k} {v}" for k, v in p.engine.items()) or ", plain decoding" * (not p.nodes)
            costs.append(
                f"  batch {p.batch}, context {p.context}: acceptance {_change(cost.acceptance_ratio)}, tokens/s {_change(cost.rate_ratio)}{settings}"
            )
    if costs:
        engine = plan.contents.provenance["plan"]["engine"]
        lines += [f"What {engine} takes ({ENGINES[engine].bound}) against the free tree, {kind}:", *costs]
    for context, batch in plan.plain_from.items():
        here = [p for p in points if p.context == context]
        if batch is not None:
            planned = batch in {p.batch for p in here}
            there = "tree.json has 0 nodes there" if planned else f"--batch {batch} plans for it"
            lines.append(f"At context {context} plain decoding is fastest from batch {batch} on ({kind}); {there}.")
        elif len(here) > 1 and all(p.nodes or p.book for p in here):
            lines.append(f"At context {context} a tree is faster at every batch tried ({kind}).")
    return lines + _books(plan, kind) + _categories(split, kind) + _typical(calibration, plan)


def _books(plan: Plan, kind: str) -> list[str]:
    """What the lookup brings: how much faster heads and lookup are than the heads' tree, and where it was left out."""
    contents = plan.contents
    without = [(p.batch, p.context) for p in contents.operating_points if p.book is None]
    gains = []
    for p in contents.operating_points:
        if p.book is not None:
            than = (
                "the heads' tree alone"
                if p.nodes
                else f"plain decoding{', which beats any tree of heads' if contents.heads else ''}"
            )
            both = any(t.paths for t in p.book.trees)
            what, be = ("heads and lookup", "are") if both else ("lookup alone", "is")
            told = f"{what} {be} faster than {than}: tokens/s {_change(p.book.over_heads)}"
            if p.book.over_heads.low <= 1:
                told = f"{what} {be} not surely faster than {than}: tokens/s {_change(p.book.over_heads)}"
            gains.append((f"At {_loads([(p.batch, p.context)])}", told))
    lines = [f"{at} {told}, {kind}." for at, told in gains]
    if len(gains) > 1:
        lines = [f"What lookup brings, {kind}:", *(f"  {at[3:]}: {told}" for at, told in gains)]
    return lines + _left_out(plan, kind, without, bool(gains)) + _untimed(plan, kind, bool(gains))


def _left_out(plan: Plan, kind: str, without: Sequence[Load], elsewhere: bool) -> list[str]:
    """Why loads have no lookup: it was not planned, the budget has no room for it, or it earns nothing."""
    task, trace = plan.task, plan.task.calibration.trace
    if plan.contents.provenance["plan"].get("drafts", HEADS) == HEADS or not without:
        return []
    if task.engine:
        return [f"No lookup is planned for {task.engine}, which takes one tree."]
    if isinstance(trace, ProbeTrace):
        return ["No lookup is planned under typical acceptance, where each tree makes a text of its own."]
    if trace.text is None:
        return ["No lookup is planned, as the trace holds no token ids."]
    bound: list[Load] = []
    idle: list[Load] = []
    for load in without:
        curve = task.latency.curve(*load)
        prices = prices_at(curve, load, task.budget, task.calibration.memory, trace.heads, task.latency.gpu)
        fits = np.isfinite(prices.seconds[0, 1:]).any()
        (idle if fits else bound).append(load)
    lines = [f"At {_loads(idle)} the lookup earns nothing ({kind}): it was left out."] if idle else []
    for load in bound:
        curve = task.latency.curve(*load)
        least = enough(1e3 * (float(curve.at(1, 0)) + (curve.lookup or 0.0)))
        lines.append(
            f"At {_loads([load])} the budget has no room for a looked-up token, which takes a step of {least} ms ({kind})."
        )
    return lines


def _untimed(plan: Plan, kind: str, looked: bool) -> list[str]:
    """That the time of looking up is in no figure, where it is not."""
    known = any(curve.lookup is not None for curve in map(plan.task.latency.curve, *zip(*plan.curves, strict=True)))
    if not looked or known:
        return []
    return [f"What looking up itself takes is not in these figures: it was not {kind}."]


def _categories(split: Sequence[Categories], kind: str) -> list[str]:
    """Which categories would be better off with a tree of their own, and which without any."""
    lines = []
    for found in split:
        at = f"at {_loads([found.load])} " if len(split) > 1 else ""
        for row in found.rows:
            name = row.name or "text of no category"
            if row.loses and row.own is not None:
                ratio = row.own.common_over_own
                less = [f"{100 * (1 - x):.0f}" for x in (ratio.value, ratio.high, ratio.low)]
                lines.append(
                    f"{name} loses {less[0]}% ({less[1]} to {less[2]}) {at}with the common tree ({kind}): a tree of its own would pay; "
                    "calibrate on its prompts alone for one."
                )
            if row.speedup is not None and row.held_out >= FEW and row.speedup.high < 1:
                lines.append(
                    f"{name} is slower {at}with the common tree than with plain decoding: {row.speedup.value:.2f}x ({kind})."
                )
    return lines


def _typical(calibration: Calibration, plan: Plan) -> list[str]:
    """What is to be known of typical acceptance: that it is not lossless, and how near to the best tree ours is."""
    fit = calibration.trace.select(~calibration.trace.held_out)
    if not isinstance(fit, ProbeTrace):
        return []
    lines = [
        "Typical acceptance is not lossless: the text is not the model's own, and each tree makes another. validate shows what the "
        "base model thinks of it. Acceptance is exact in replay for the tree that made the held-out text, and near for those like it."
    ]
    for p in plan.contents.operating_points:
        if p.nodes:
            share = optimality(plan.contents.tree_of(p), fit)
            lines.append(
                f"At {_loads([(p.batch, p.context)])} the best {p.nodes} of the probed nodes could accept at most {100 * (1 / share - 1):.0f}% more "
                "at the positions that this one visits."
            )
    return lines


def _loads(loads: Sequence[Load]) -> str:
    """ "batch 1, 2, context 512; batch 1, context 2048"."""
    batches: dict[int, list[str]] = {}
    for batch, context in loads:
        batches.setdefault(context, []).append(str(batch))
    return "; ".join(f"batch {', '.join(b)}, context {context}" for context, b in batches.items())


def _nearest_tree(limit: str, curve: Curve, load: Load, memory: Memory | None) -> str:
    """The bounds that would admit the cheapest tree that is faster than plain decoding."""
    faster = np.flatnonzero(curve.speedup > 1)
    i = int(faster[curve.seconds[faster].argmin()]) if len(faster) else 1
    needed = []
    if "latency" in limit:
        needed.append(f"--budget {enough(1e3 * float(curve.seconds[i]))}ms")
    if "memory" in limit and memory is not None:
        needed.append(f"--max-memory {enough(float(memory.at(curve.nodes[i], load)) / 1e9)}GB")
    size = int(curve.nodes[i])
    if "nodes" in limit:
        needed.append(f"--max-nodes {size}")
    if "depth" in limit:
        needed.append(f"--max-depth {curve.depth[i]}")
    return f"nearest feasible: {' and '.join(needed)}, for {size} node{'s' * (size > 1)}"


def engine_cost(calibration: Calibration, plan: Plan, point: OperatingPoint) -> Compared | None:
    """The chosen tree over the best of any form, paired; None where no engine bounds the plan."""
    load = (point.batch, point.context)
    if load not in plan.free:
        return None
    _, held = calibration.trace.split()
    trees = [("free tree", plan.free[load][1]), ("chosen", plan.contents.tree_of(point))]
    return compare(trees, held, calibration.latency.curve(*load), load, calibration.latency.kind)[1]


def roofline_beside(latency: Latency | None, shape: ModelShape | None) -> tuple[Roofline, dict[str, Any]] | None:
    """The roofline fitted to a measured grid, and its figures with its error; None where nothing was measured, the
    model's shape is not known, or it has no heads: a grid of chains alone does not tell bandwidth from launches."""
    if not isinstance(latency, LatencyGrid) or shape is None or not shape.heads:
        return None
    fitted = fit_roofline(latency, shape)
    return fitted, describe(fitted, roofline_errors(fitted, latency))


def roofline_line(told: dict[str, Any]) -> str:
    """What :func:`roofline_beside` found, in a sentence."""
    bandwidth, rate, overhead = (_three_digits(told[name]) for name in ("bandwidth_gb_s", "tflops", "overhead_ms"))
    return (
        f"Roofline fitted to the measured grid: {bandwidth} GB/s, {rate} TFLOP/s, {overhead} ms launches; "
        f"off by {100 * told['median_error']:.2g}% in the middle, {100 * told['worst_error']:.2g}% at worst."
    )


def _three_digits(value: float) -> str:
    """ "1,400", "55.2", "0.00012": never with an exponent."""
    return f"{value:,.0f}" if value >= 999.5 else f"{float(f'{value:.3g}'):.9f}".rstrip("0").rstrip(".")


def _change(ratio: Estimate) -> str:
    return f"{100 * (ratio.value - 1):+.1f}% ({100 * (ratio.low - 1):+.1f} to {100 * (ratio.high - 1):+.1f})"
