"""medusa-tree report: everything about a tree on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import FILE, check_output, stderr
from .source import read_grid, read_parts

if TYPE_CHECKING:
    from medusa_runtime.treefile import TreeFile
    from medusa_tree.planning.calibration import Calibration


@click.command()
@click.argument("tree", type=FILE)
@click.option(
    "--calibration", type=FILE, help="What TREE was planned from, or the rank trace.  [default: the one beside it]"
)
@click.option("--latency", type=FILE, help="The step latency it was planned with, where that came from a JSON file.")
@click.option(
    "-o", "--output", type=FILE, default=Path("report.html"), show_default=True, help="Where to write the page."
)
def report(tree: Path, calibration: Path | None, latency: Path | None, output: Path) -> None:
    """Write one self-contained HTML page about TREE: accuracies, curves, latency, the tree, operating points, provenance."""
    from medusa_runtime.treefile import read_tree
    from medusa_tree.planning.calibration import calibration_path
    from medusa_tree.reports.page import how_planned, write_page

    check_output(output)
    contents = read_tree(tree)
    how_planned(contents, str(tree))  # what is wrong in it is told before any work
    where = calibration or calibration_path(tree)
    made = _read(where, latency, contents, tree) if calibration is not None or where.is_file() else None
    for warning in write_page(output, contents, made):
        stderr().print(f"[yellow]{warning}[/yellow]")
    stderr().print(f"Wrote {output}: open it in a browser, or send it; it needs no network.")


def _read(where: Path, latency: Path | None, contents: TreeFile, tree: Path) -> Calibration:
    """What the tree was planned from: ranks, and step latency as measured, as given, or as its provenance models it."""
    from medusa_runtime.errors import InputError
    from medusa_tree.devices.roofline import Roofline
    from medusa_tree.planning.calibration import Calibration

    trace, grid, made, shape, beside = read_parts(where)
    if "modelled" in contents.provenance:
        roofline = Roofline.from_json(contents.provenance["modelled"], f'{tree}: field "provenance", "modelled"')
        return Calibration(trace, roofline, made, roofline.shape, beside)
    if latency is not None:
        grid, its_shape = read_grid(latency)
        shape = shape or its_shape
    if grid is None:
        raise InputError(f"{where}: a rank trace has no step latency; give the file it was planned with, by --latency")
    return Calibration(trace, grid, made, shape, beside)
