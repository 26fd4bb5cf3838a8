"""medusa-tree compare: any trees side by side on one trace."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .common import FILE, stdout


@click.command()
@click.argument("trees", nargs=-1, required=True)
@click.option(
    "--calibration", type=FILE, required=True, help="The .calibration.npz to replay on and to take step times from."
)
@click.option("--batch", type=click.IntRange(min=1), help="[default: the first measured]")
@click.option("--context", type=click.IntRange(min=1), help="[default: the first measured]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def compare(trees: tuple[str, ...], calibration: Path, batch: int | None, context: int | None, as_json: bool) -> None:
    """Replay TREES on held-out sequences: acceptance, step time, tokens/s, and each against the first, paired.

    A tree is a tree.json, a JSON file with a list of paths, 'plain', 'chain:N', or a published list by its name, such as
    mc_sim_7b_63 (an unknown name lists them).
    """
    from medusa_tree.calibration import load_calibration
    from medusa_tree.compare import compare as run
    from medusa_tree.compare import contender, fit_to_heads
    from medusa_tree.report import compared_json, comparison_table

    read = load_calibration(calibration)
    _, held = read.trace.split()
    first = read.latency.loads()[0]
    load = (batch or first[0], context or first[1])
    contenders = [fit_to_heads(*contender(text, load), held.heads) for text in trees]
    rows = run(contenders, held, read.latency.curve(*load), load, read.latency.kind)
    if as_json:
        print(json.dumps({"compared": [compared_json(row) for row in rows]}, indent=2))
        return
    table = comparison_table(rows, f"{read.latency.device}, {read.latency.dtype}", first="first")
    stdout().print(table)
