"""medusa-tree show: the tree in the terminal, or as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from .common import COUNT, FILE, check_output, stderr, stdout


@click.command()
@click.argument("tree", type=FILE)
@click.option("--batch", type=COUNT, default=1, show_default=True, help="Which operating point to show.")
@click.option("--context", type=COUNT, help="At which context.  [default: the shortest planned]")
@click.option("--png", type=FILE, help="Draw the tree into this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the operating point and its paths as JSON.")
def show(tree: Path, batch: int, context: int | None, png: Path | None, as_json: bool) -> None:
    """Draw TREE: each node's rank in its head's guesses, and how often decoding reaches it."""
    import json
    from dataclasses import asdict

    from medusa_runtime.treefile import read_tree
    from medusa_tree.reports.plots import tree_plot
    from medusa_tree.reports.tables import path_frequencies, terminal_tree

    contents = read_tree(tree)
    point = contents.point(batch, context)
    chosen = contents.tree_of(point)
    if png:
        check_output(png)
        tree_plot(contents, chosen, png)
        stderr().print(f"Wrote {png}")
    if as_json:
        print(
            json.dumps({**asdict(point), "paths": chosen.paths, "path_frequency": path_frequencies(contents, chosen)})
        )
    elif not png:
        stdout().print(terminal_tree(contents, chosen))
        stdout().print(
            f"{point.nodes} nodes, depth {point.depth}; batch {point.batch}, context {point.context}: acceptance length "
            f"{point.acceptance_length.value:.2f}, {point.step_latency_ms.value:.2f} ms a step, speedup {point.speedup.value:.2f}x ({point.latency} latency); {contents.acceptance}"
        )
