"""medusa-tree compare: any trees side by side on one trace."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from .common import COUNT, FILE, stdout
from .source import LatencySource, latency_options, read_source


@click.command()
@click.argument("trees", nargs=-1, required=True)
@click.option(
    "--calibration",
    type=FILE,
    required=True,
    help="What to replay on: a .calibration.npz, or a rank trace with --latency or --device-model.",
)
@click.option("--batch", type=COUNT, help="[default: the first measured, or 1]")
@click.option("--context", type=COUNT, help="[default: the first measured, or 2048]")
@latency_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def compare(
    trees: tuple[str, ...], calibration: Path, batch: int | None, context: int | None, source_of_latency: LatencySource, as_json: bool
) -> None:  # fmt: skip
    """Replay TREES on held-out sequences: acceptance, step time, tokens/s, and each against the first, paired.

    A tree is a tree.json (what the runtime does with it, heads and lookup together; tree.json#heads is its heads' tree alone), a
    JSON file with a list of paths, 'plain', 'chain:N', 'lookup:N' (a chain of N looked-up tokens wherever one is found), or a
    published list by its name, such as mc_sim_7b_63 (an unknown name lists them).
    """
    from medusa_tree.devices.roofline import Roofline
    from medusa_tree.planning.categories import acceptance_by_category
    from medusa_tree.planning.compare import compare as run
    from medusa_tree.planning.compare import contender, fit_to_heads
    from medusa_tree.planning.played import looked_up
    from medusa_tree.reports.books import drafted_line
    from medusa_tree.reports.categories import acceptance_by_category_table
    from medusa_tree.reports.summary import acceptance_by_category_json, compared_json
    from medusa_tree.reports.tables import comparison_table

    read, measured = read_source(calibration, source_of_latency)
    _, held = read.trace.split()
    first = (1, 2048) if measured is None else measured.loads()[0]
    load = (batch or first[0], context or first[1])
    beside = looked_up(read)
    contenders = [fit_to_heads(*contender(text, load, beside), held) for text in trees]
    latency = read.latency
    if isinstance(latency, Roofline):  # knows any size
        latency = replace(latency, max_nodes=max(latency.max_nodes, *(tree.nodes for _, tree in contenders)))
    rows = run(contenders, held, latency.curve(*load), load, latency.kind, latency.gpu)
    names = [name for name, _ in contenders]
    by_category = acceptance_by_category([tree for _, tree in contenders], held)
    if as_json:
        told = acceptance_by_category_json(names, by_category)
        print(json.dumps({"compared": [compared_json(row) for row in rows], "categories": told}, indent=2))
        return
    console = stdout()
    console.print(
        comparison_table(rows, f"{read.latency.device}, {read.latency.dtype}\n{read.trace.acceptance}", first="first")
    )
    for row in rows:
        if row.drafted is not None:
            console.print(
                f"{row.name}, {drafted_line(row.drafted, row.book is None or row.book.heads > 0)}.", markup=False
            )
    if by_category:
        console.print(acceptance_by_category_table(names, by_category))
