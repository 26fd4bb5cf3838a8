"""The end of calibrate and plan: write tree.json and its plot, print the tables."""

from __future__ import annotations

import json
from pathlib import Path

from medusa_runtime.treefile import write_tree
from medusa_tree.planning.calibration import Calibration
from medusa_tree.planning.notes import notes, roofline_beside, roofline_line
from medusa_tree.planning.plan import Plan
from medusa_tree.reports.plots import plan_plot
from medusa_tree.reports.tables import (
    accuracy_table,
    comparison,
    comparison_table,
    points_table,
    summary,
)

from .common import stderr, stdout


def finish_plan(calibration: Calibration, plan: Plan, output: Path, as_json: bool) -> None:
    """Write, print what was chosen beside what people use, and say what to do next."""
    points = plan.contents.operating_points
    rows = {(p.batch, p.context): comparison(calibration, plan, p) for p in points[: 1 if len(points) > 2 else None]}
    picture = output.with_suffix(".png")
    plan_plot(calibration, plan.curves, rows, picture)
    write_tree(output, plan.contents)
    if as_json:
        print(json.dumps(summary(calibration, plan, rows), indent=2))
        return
    console = stdout()
    latency = calibration.latency
    device = f"{latency.device}, {latency.dtype}" + (", modelled" if latency.kind == "modelled" else "")
    device += f"\n{calibration.trace.acceptance}"
    console.print(accuracy_table(calibration.trace))
    for compared in rows.values():
        console.print(comparison_table(compared, device, bold=compared[-1].name))
    if len(points) > 1:
        console.print(points_table(plan.contents, device))
    for line in notes(calibration, plan):
        console.print(f"[yellow]{line}[/yellow]")
    if (fitted := roofline_beside(latency, calibration.shape)) is not None:
        console.print(f"[dim]{roofline_line(fitted[1])}[/dim]")
    modelled = f", with {latency.kind} latency" if latency.kind == "modelled" else ""
    stderr().print(
        f"Wrote {output} and {picture}{modelled}.\nNext: medusa-tree validate {output}   or   medusa-tree report {output}   or   medusa-tree export {output}"
    )
