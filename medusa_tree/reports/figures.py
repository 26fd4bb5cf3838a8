"""The report page's figures over tree nodes: acceptance length, speed and step latency at every load planned for."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from medusa_runtime.treefile import TreeFile

from ..devices.latency import Load
from ..planning.calibration import Calibration
from ..planning.choose import Curve
from ..planning.compare import Compared
from ..planning.notes import roofline_beside, roofline_line
from ..planning.plan import Plan
from .charts import Mark, Series, chart, key
from .markup import acceptance, pair, said, section, table
from .tables import comparison

SHOWN = 7  # loads told apart in one figure
GREY = 7  # the style of what is no load: trees that people use, the roofline
SHAPES = ("square", "diamond", "ring")  # of the trees that people use


def figures(contents: TreeFile, calibration: Calibration, plan: Plan) -> list[str]:
    """All figures, and the trees that people use beside the first operating point's."""
    loads = list(plan.curves)
    shown = loads if len(loads) <= SHOWN else [load for load in loads if load[1] == loads[0][1]][:SHOWN]
    left_out = ""
    if len(shown) < len(loads):
        left_out = f" Shown: {len(shown)} of {len(loads)} loads, at context {shown[0][1]:,}; the table below has all."
    one_context = len({c for _, c in shown}) == 1
    curves = {f"batch {b}" + ("" if one_context else f", context {c:,}"): plan.curves[b, c] for b, c in shown}
    compared = comparison(calibration, plan, contents.operating_points[0])
    return [
        pair(*_over_nodes(curves, compared, left_out)),
        pair(_latency(shown, curves, calibration), section("Beside what people use", _compared(compared))),
    ]


def _over_nodes(curves: dict[str, Curve], compared: list[Compared], left_out: str) -> tuple[str, str]:
    """Acceptance length, and speed: lines a load, discs where the plan chose, other marks for what people use."""
    kind = compared[0].point.latency
    lengths, rates, length_marks, rate_marks = [], [], [], []
    for i, (name, curve) in enumerate(curves.items()):
        at = curve.chosen
        tip = f"chosen for {name}: {curve.nodes[at]} nodes, {curve.acceptance[at]:.2f} tokens a step, {curve.tokens_per_s[at]:,.0f} tokens/s, {curve.speedup[at]:.2f}x ({kind})"
        lengths.append(Series(name, curve.nodes, curve.acceptance, i))
        rates.append(Series(name, curve.nodes, curve.speedup, i))
        length_marks.append(Mark(float(curve.nodes[at]), float(curve.acceptance[at]), tip, i))
        rate_marks.append(Mark(float(curve.nodes[at]), float(curve.speedup[at]), tip, i))
    others = [row for row in compared if row.point.nodes and not row.name.startswith("chosen")]
    for row, look in zip(others, SHAPES, strict=False):
        p = row.point
        tip = f"{row.name}: {p.acceptance_length.value:.2f} tokens a step, {p.speedup.value:.2f}x at {next(iter(curves))} ({kind})"
        length_marks.append(Mark(p.nodes, p.acceptance_length.value, tip, GREY, look))
        rate_marks.append(Mark(p.nodes, p.speedup.value, tip, GREY, look))
    below = key(lengths, [(row.name, look, GREY) for row, look in zip(others, SHAPES, strict=False)])
    return (
        section("Acceptance length over nodes", _figure(
            chart(lengths, length_marks, "Acceptance length over tree nodes", "tokens a step", floor=1), below,
            f"Replay on held-out sequences; discs are the chosen trees.{left_out}",
        )),
        section("Speed over nodes", _figure(
            chart(rates, rate_marks, "Speedup over plain decoding over tree nodes", f"speedup, {kind} latency"), below,
            f"Tokens a second over those of plain decoding, predicted from replay and {said(kind)} latency; plain decoding is 1.",
        )),
    )  # fmt: skip


def _latency(shown: Sequence[Load], curves: dict[str, Curve], calibration: Calibration) -> str:
    """Step latency: what the plan takes, the points measured, and the roofline fitted to them."""
    kind = calibration.latency.kind
    lines, marks, beside = [], [], ""
    for i, (load, (name, curve)) in enumerate(zip(shown, curves.items(), strict=True)):
        lines.append(Series(name, curve.nodes, 1e3 * curve.seconds, i))
        latency = calibration.latency.curve(*load)
        for p in (latency.plain, *latency.points) if latency.points else ():
            if (p.batch, p.context) == load:
                tip = f"measured at {name}: {p.nodes} nodes, depth {p.depth}: {1e3 * p.seconds:.2f} ms, quartiles {1e3 * p.low:.2f} to {1e3 * p.high:.2f}"
                marks.append(Mark(p.nodes, 1e3 * p.seconds, tip, i, "dot", 1e3 * p.low, 1e3 * p.high))
    fitted = roofline_beside(calibration.latency, calibration.shape)
    if fitted is not None:
        name, curve = next(iter(curves.items()))
        modelled = 1e3 * fitted[0].seconds(curve.nodes, curve.depth, *shown[0])
        lines.append(Series(f"roofline, modelled, {name}", curve.nodes, modelled, GREY))
        beside = f"<p>{escape(roofline_line(fitted[1]))} The dashed grey curve is that roofline, <em>modelled</em>, at {name}.</p>"
    points = (
        "Dots are measured medians with their quartiles, at several depths; the lines are what the plan takes, at the best depth of each size."
        if marks
        else f"Nothing here was measured: latency is {said(kind)} from a data sheet."
    )
    drawn = chart(lines, marks, "Step latency over tree nodes", f"ms a step, {kind}")
    return section("Step latency", _figure(drawn, key(lines, []), points), beside)


def _compared(rows: list[Compared]) -> str:
    p = rows[0].point
    cells = [
        [
            escape(r.name), str(r.point.nodes), acceptance(r.point), f"{r.point.step_latency_ms.value:.2f}",
            f"{r.point.tokens_per_s.value:,.0f}", f"{r.point.speedup.value:.2f}x",
        ]
        for r in rows
    ]  # fmt: skip
    return table(
        ["tree", "nodes", "acceptance", "step ms", "tokens/s", "speedup"],
        cells,
        f"at batch {p.batch}, context {p.context:,}; acceptance: tokens a step, replay on held-out sequences, ± half the 95% interval; "
        f"step latency, tokens/s and speedup from {said(p.latency)} latency",
    )


def _figure(drawing: str, below: str, caption: str) -> str:
    return f"<figure>{drawing}{below}<figcaption>{caption}</figcaption></figure>"
