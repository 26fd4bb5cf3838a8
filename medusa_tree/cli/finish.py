"""The end of calibrate and plan: write tree.json and its plot, print the tables."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

from medusa_runtime.errors import InputError
from medusa_runtime.treefile import write_tree
from medusa_tree.planning.calibration import Calibration
from medusa_tree.planning.notes import notes, roofline_beside, roofline_line
from medusa_tree.planning.plan import Plan
from medusa_tree.reports.books import book_table, drafted_line, reads_heads
from medusa_tree.reports.categories import categories, category_table
from medusa_tree.reports.plots import plan_plot
from medusa_tree.reports.summary import summary
from medusa_tree.reports.tables import accuracy_table, comparison, comparison_table, points_table

from .common import check_output, stderr, stdout


def check_tree_output(output: Path) -> None:
    """As :func:`check_output`; InputError, too, for a name that what is written beside the tree would take."""
    check_output(output)
    if output.suffix in (".png", ".npz"):
        raise InputError(
            f"-o {output}: beside the tree its plot and calibration are written; name it {output.stem}.json"
        )


def keep_old(output: Path, *beside: Path) -> None:
    """Move an earlier tree, and what of it stands ``beside``, to the first number that is free for all: tree.json to tree.1.json.
    Nobody loses what took minutes, and nobody is stopped."""
    there = [p for p in (output, *beside) if p.exists()]
    if not there:
        return

    def numbered(path: Path, n: int) -> Path:
        return path.with_name(f"{output.stem}.{n}{path.name.removeprefix(output.stem)}")

    n = next(n for n in count(1) if not any(numbered(p, n).exists() for p in (output, *beside)))
    for path in there:
        try:
            path.rename(numbered(path, n))
        except OSError as error:
            raise InputError(f"{path}: is there already and cannot be moved ({error.strerror}); name another") from None
    names = ", ".join(str(numbered(p, n)) for p in there)
    stderr().print(f"[dim]What stood there is kept: {names}.[/dim]", soft_wrap=True)


def finish_plan(calibration: Calibration, plan: Plan, output: Path, as_json: bool) -> None:
    """Write, print what was chosen beside what people use, and say what to do next."""
    points = plan.contents.operating_points
    shown = 1 if len(points) > 2 else len(points)
    rows = {(p.batch, p.context): comparison(calibration, plan, p) for p in points[:shown]}
    split = categories(plan, shown)
    picture = output.with_suffix(".png")
    keep_old(output, picture)
    plan_plot(calibration, plan, rows, picture)
    write_tree(output, plan.contents)
    if as_json:
        print(json.dumps(summary(calibration, plan, rows, split), indent=2))
        return
    console = stdout()
    latency = calibration.latency
    device = f"{latency.device}, {latency.dtype}" + (", modelled" if latency.kind == "modelled" else "")
    device += f"\n{calibration.trace.acceptance}"
    if plan.contents.heads:
        console.print(accuracy_table(calibration.trace))
    for point, compared in zip(points, rows.values(), strict=False):
        console.print(comparison_table(compared, device, bold=compared[-1].name))
        if point.book is not None:
            console.print(book_table(plan.contents, point))
            console.print(f"Tree book, {drafted_line(point.book.drafted, reads_heads(point.book))}.")
    for found in split:
        console.print(category_table(found, calibration))
    if len(points) > 1:
        console.print(points_table(plan.contents, device))
    for line in notes(calibration, plan, split):
        console.print(line, style="yellow", markup=False)  # a category may be called anything
    if (fitted := roofline_beside(latency, calibration.shape)) is not None:
        console.print(f"[dim]{roofline_line(fitted[1])}[/dim]")
    modelled = f", with {latency.kind} latency" if latency.kind == "modelled" else ""
    stderr().print(
        f"Wrote {output} and {picture}{modelled}.\nNext: medusa-tree validate {output}   or   medusa-tree report {output}   or   medusa-tree export {output}"
    )
