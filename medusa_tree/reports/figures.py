"""What the figures over tree nodes show: acceptance length, speed and step latency, at every load planned for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from medusa_runtime.book import Lookup
from medusa_runtime.tree import LONGEST_CHAIN
from medusa_runtime.treefile import OperatingPoint, TreeFile

from ..devices.latency import Load
from ..planning.calibration import Calibration
from ..planning.choose import Curve
from ..planning.compare import Compared, lookup_alone
from ..planning.notes import roofline_beside, roofline_line
from ..planning.plan import Plan
from ..planning.played import looked_up, step_prices
from ..traces.bookreplay import BookReplay, replay_book
from ..traces.lookup import look_up
from .charts import Chart, Mark, Series
from .tables import comparison

SHOWN = 7  # loads told apart in one figure of the page
GREY = 7  # the style of what is no load: the roofline
SHAPES = ("square", "diamond", "ring")  # of the trees that people use
OF_BOOKS = ("triangle", "cross")  # of lookup alone, and of heads and lookup together

Curves = dict[Load, Curve]


@dataclass(frozen=True)
class Figures:
    """The page's figures, and what their captions say.

    kind: of latency, "measured" or "modelled".
    first: the name of the first load; what people use is set beside the plan there, in ``compared``.
    shown, planned: the loads drawn, and how many there are.
    roofline: a sentence on the one fitted to the measured points; "" where there is none.
    """

    kind: str
    first: str
    shown: Sequence[Load]
    planned: int
    acceptance: Chart
    speed: Chart
    latency: Chart
    compared: Sequence[Compared]
    roofline: str


def figures(contents: TreeFile, calibration: Calibration, plan: Plan) -> Figures:
    """The page's figures, and the trees that people use beside the first operating point's."""
    curves, books = drawn(calibration, plan), booked(plan)
    loads = list(curves)
    shown = loads if len(loads) <= SHOWN else [load for load in loads if load[1] == loads[0][1]][:SHOWN]
    curves = {load: curves[load] for load in shown}
    point = contents.operating_points[0]
    compared = comparison(calibration, plan, point)
    beside, kind = {(point.batch, point.context): compared}, calibration.latency.kind
    steps, roofline = latency(curves, calibration)
    return Figures(
        kind, load_names(shown)[shown[0]], shown, len(loads),
        acceptance(curves, beside, kind, books), speed(curves, beside, kind, books), steps, compared, roofline,
    )  # fmt: skip


def load_names(loads: Sequence[Load]) -> dict[Load, str]:
    """What loads are called beside one another: without the context where all have the same."""
    one_context = len({context for _, context in loads}) == 1
    return {(b, c): f"batch {b}" + ("" if one_context else f", context {c:,}") for b, c in loads}


def booked(plan: Plan) -> set[Load]:
    """The loads at which heads and lookup go together, or lookup alone."""
    return {(p.batch, p.context) for p in plan.contents.operating_points if p.book is not None}


def drawn(calibration: Calibration, plan: Plan) -> Curves:
    """The lines of the figures: the plan's curves; where no heads are planned with, which then are plain decoding alone, chains of each
    length, used wherever anything is found. Their ``seconds`` are of a step with the chain."""
    if plan.contents.heads:
        return plan.curves
    held, beside = plan.task.held, looked_up(calibration)
    books = {(p.batch, p.context): p.book for p in plan.contents.operating_points}
    played: dict[Lookup, dict[int, BookReplay]] = {}  # the same at every load but for the time
    curves = {}
    for load in plan.curves:
        known, book = calibration.latency.curve(*load), books.get(load)
        lookup = Lookup() if book is None else book.lookup
        lengths = _lengths(known.largest)
        replays = played.setdefault(lookup, {})
        if missing := [n for n in lengths if n not in replays]:
            found = look_up(held, lookup, beside if lookup.file else ())
            replays |= {n: replay_book(lookup_alone(n, lookup), held, found) for n in missing}
        curves[load] = _chains({n: replays[n] for n in lengths}, lookup, calibration, load)
    return curves


def _lengths(largest: int) -> list[int]:
    """Of chains drawn, two to a doubling."""
    most = min(largest, LONGEST_CHAIN)
    return sorted({most, *(n for k in range(8) for n in (2**k, 3 * 2**k // 2) if n <= most)})


def _chains(replays: dict[int, BookReplay], lookup: Lookup, calibration: Calibration, load: Load) -> Curve:
    known = calibration.latency.curve(*load)
    nodes = np.array([0, *replays])
    seconds = np.array([known.plain.seconds, *(known.at(nodes[1:], np.zeros_like(nodes[1:])) + (known.lookup or 0.0))])
    rates, acceptance = [1 / known.plain.seconds], [1.0]
    for n, replay in replays.items():
        price = step_prices(lookup_alone(n, lookup), known, calibration.latency.gpu)
        rates.append(float(replay.tokens.sum() / replay.seconds(price, load[0]).sum()))
        acceptance.append(replay.acceptance_length)
    rate = np.array(rates)
    return Curve(
        nodes, np.zeros_like(nodes), np.array(acceptance), seconds, load[0] * rate, rate * known.plain.seconds, 0, None, ""
    )  # fmt: skip


def acceptance(curves: Curves, beside: dict[Load, list[Compared]], kind: str, books: Collection[Load] = ()) -> Chart:
    """Acceptance length over nodes; see :func:`speed`."""
    lines, marks = _over_nodes(curves, beside, kind, books, lambda c: c.acceptance, lambda p: p.acceptance_length.value)
    return Chart(lines, marks, "Acceptance length over tree nodes", "tokens a step", floor=1)


def speed(curves: Curves, beside: dict[Load, list[Compared]], kind: str, books: Collection[Load] = ()) -> Chart:
    """Speedup over nodes: a line a load, a disc where the plan chose, other marks for what people use.

    Args:
        beside: the trees compared, at the loads where they were.
        kind: of latency, "measured" or "modelled".
        books: loads that have one, where a disc for plain decoding would say what is not so.
    """
    lines, marks = _over_nodes(curves, beside, kind, books, lambda c: c.speedup, lambda p: p.speedup.value)
    return Chart(lines, marks, "Speedup over plain decoding over tree nodes", f"speedup, {kind} latency")


def _over_nodes(
    curves: Curves,
    beside: dict[Load, list[Compared]],
    kind: str,
    books: Collection[Load],
    of_curve: Callable[[Curve], np.ndarray],
    of_point: Callable[[OperatingPoint], float],
) -> tuple[list[Series], list[Mark]]:
    names = load_names(list(curves))
    lines, chosen, others = [], [], []
    for i, (load, curve) in enumerate(curves.items()):
        at, values = curve.chosen, of_curve(curve)
        lines.append(Series(names[load], curve.nodes, values, i))
        tip = f"chosen for {names[load]}: {curve.nodes[at]} nodes, {curve.acceptance[at]:.2f} tokens a step, {curve.tokens_per_s[at]:,.0f} tokens/s, {curve.speedup[at]:.2f}x ({kind})"
        if at or load not in books:
            chosen.append(Mark(float(curve.nodes[at]), float(values[at]), tip, i))
        used = [row for row in beside.get(load, []) if row.point.nodes and not row.name.startswith("chosen")]
        trees, looking = ([row for row in used if (row.book is None) == alone] for alone in (True, False))
        shown = [*zip(trees, SHAPES, strict=False), *zip(looking, OF_BOOKS[-len(looking) :], strict=False)]
        for row, shape in shown:
            p = row.point
            tip = f"{row.name}: {p.acceptance_length.value:.2f} tokens a step, {p.speedup.value:.2f}x at {names[load]} ({kind})"
            others.append(Mark(p.nodes, of_point(p), tip, i, shape, row.name if i == 0 else ""))
    return lines, chosen + others


def latency(curves: Curves, calibration: Calibration) -> tuple[Chart, str]:
    """Step latency: what the plan takes, the points measured, and the roofline fitted to them, with what is to say of it."""
    names = load_names(list(curves))
    lines, marks = [], []
    for i, (load, curve) in enumerate(curves.items()):
        lines.append(Series(names[load], curve.nodes, 1e3 * curve.seconds, i))
        known = calibration.latency.curve(*load)
        for p in (known.plain, *known.points) if known.points else ():
            if (p.batch, p.context) == load and (curve.depth.any() or not p.depth):
                ms, low, high = 1e3 * p.seconds, 1e3 * p.low, 1e3 * p.high
                tip = f"measured at {names[load]}: {p.nodes} nodes, depth {p.depth}: {ms:.2f} ms, quartiles {low:.2f} to {high:.2f}"
                marks.append(Mark(p.nodes, ms, tip, i, "dot", low=low, high=high))
    fitted = roofline_beside(calibration.latency, calibration.shape)
    if fitted is not None:
        load, curve = next(iter(curves.items()))
        modelled = 1e3 * fitted[0].seconds(curve.nodes, curve.depth, *load)
        lines.append(Series(f"roofline, modelled, {names[load]}", curve.nodes, modelled, GREY))
    told = "" if fitted is None else roofline_line(fitted[1])
    return Chart(lines, marks, "Step latency over tree nodes", f"ms a step, {calibration.latency.kind}"), told
