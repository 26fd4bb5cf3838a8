"""medusa-tree report: everything about a tree on one page."""

from __future__ import annotations

from pathlib import Path

import click

from .common import FILE, check_output, stderr


@click.command()
@click.argument("tree", type=FILE)
@click.option("--calibration", type=FILE, help="What TREE was planned from.  [default: the one beside it]")
@click.option(
    "-o", "--output", type=FILE, default=Path("report.html"), show_default=True, help="Where to write the page."
)
def report(tree: Path, calibration: Path | None, output: Path) -> None:
    """Write one self-contained HTML page about TREE: accuracies, curves, latency, the tree, operating points, provenance."""
    from medusa_runtime.treefile import read_tree
    from medusa_tree.calibration import calibration_path, load_calibration
    from medusa_tree.page import write_page

    check_output(output)
    contents = read_tree(tree)
    where = calibration or calibration_path(tree)
    made = load_calibration(where) if calibration is not None or where.is_file() else None
    for warning in write_page(output, contents, made):
        stderr().print(f"[yellow]{warning}[/yellow]")
    stderr().print(f"Wrote {output}: open it in a browser, or send it; it needs no network.")
