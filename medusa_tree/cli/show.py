"""medusa-tree show: the tree in the terminal, or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import COUNT, FILE, check_output, stderr, stdout

if TYPE_CHECKING:
    from medusa_runtime.tree import CandidateTree
    from medusa_runtime.treefile import Book, OperatingPoint, TreeFile


@click.command()
@click.argument("tree", type=FILE)
@click.option("--batch", type=COUNT, default=1, show_default=True, help="Which operating point to show.")
@click.option("--context", type=COUNT, help="At which context.  [default: the shortest planned]")
@click.option("--png", type=FILE, help="Draw the tree into this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the operating point and its paths as JSON.")
def show(tree: Path, batch: int, context: int | None, png: Path | None, as_json: bool) -> None:
    """Draw TREE: each node's rank in its head's guesses, and how often decoding reaches it; where heads and lookup go together, each of
    the book's trees and the match lengths at which it is used. A book's nodes have beside them how often all text follows their
    paths, whatever the match length."""
    import json
    from dataclasses import asdict

    from medusa_runtime.treefile import read_tree
    from medusa_tree.reports.books import book_charts, what_numbers_say
    from medusa_tree.reports.charts import tree_chart
    from medusa_tree.reports.plots import tree_plot
    from medusa_tree.reports.tables import path_frequencies

    contents = read_tree(tree)
    point = contents.point(batch, context)
    chosen = contents.tree_of(point)
    frequencies = path_frequencies(contents, chosen)
    if png:
        check_output(png)
        title = f"{chosen.nodes} nodes, depth {chosen.depth}: rank, and how often decoding reaches it"
        if point.book is None:
            tree_plot([tree_chart(chosen, frequencies, title)], png)
        else:
            tree_plot(book_charts(contents, point), png, what_numbers_say(point.book))
        stderr().print(f"Wrote {png}")
    if as_json:
        books = [
            {"match": told.match, "share": told.share, "paths": made.paths, "lookup": made.lookup}
            for told, made in zip(point.book.trees, contents.book_of(point).trees, strict=True)
        ] if point.book else []  # fmt: skip
        print(json.dumps({**asdict(point), "paths": chosen.paths, "path_frequency": frequencies, "trees": books}))
    elif not png:
        _print(contents, point, chosen)


def _print(contents: TreeFile, point: OperatingPoint, chosen: CandidateTree) -> None:
    """The point's book, if it has one, or its tree, and their figures."""
    from medusa_tree.reports.books import OFTEN, book_table, drafted_line, lookup_line, ranges, reads_heads
    from medusa_tree.reports.tables import terminal_tree

    console = stdout()
    if point.book is not None:
        console.print(book_table(contents, point))
        for row in ranges(contents, point):
            console.print(f"[bold]{row.title}[/bold]")
            console.print(terminal_tree(contents, row.tree))
        heads = reads_heads(point.book)
        if heads:
            console.print(f"At a node its rank among the head's guesses, and {OFTEN}.", markup=False)
        console.print(lookup_line(point.book), markup=False)
        console.print(f"Predicted {drafted_line(point.book.drafted, heads)}.")
        console.print(f"{_told(point.book, point)}; {contents.acceptance}", markup=False)
        if point.nodes:
            console.print(f"Heads alone: {point.nodes} nodes, depth {point.depth}; {_told(point, point)}", markup=False)
        return
    console.print(terminal_tree(contents, chosen))
    console.print(f"{point.nodes} nodes, depth {point.depth}; {_told(point, point)}; {contents.acceptance}")


def _told(of: OperatingPoint | Book, point: OperatingPoint) -> str:
    """The figures of a point's tree, or of its book."""
    return (
        f"batch {point.batch}, context {point.context}: acceptance length {of.acceptance_length.value:.2f}, "
        f"{of.step_latency_ms.value:.2f} ms a step, speedup {of.speedup.value:.2f}x ({point.latency} latency)"
    )
