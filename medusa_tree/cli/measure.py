"""medusa-tree measure: step latency alone, on the device that the model stands on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medusa_tree.drafters import HEADS

from .acceptance import Acceptance, acceptance_options
from .common import COUNT, FILE, NODES, SEED, check_output, leads, progress_bars, stderr, stdout
from .drafts import drafts_option, load_drafting
from .model import ModelSource, model_options

if TYPE_CHECKING:
    from medusa_runtime.acceptance.rules import Rule
    from medusa_runtime.errors import InputError
    from medusa_runtime.model import MedusaModel
    from medusa_tree.devices.latency import LatencyGrid, Load
    from medusa_tree.devices.shape import ModelShape

CONTEXT = 512  # tokens, where none are asked for


@click.command()
@model_options
@click.option(
    "--batch", type=COUNT, multiple=True, default=(1,), show_default=True, help="Sequences; repeat for several."
)
@click.option(
    "--context",
    type=COUNT,
    multiple=True,
    help=f"Tokens in the cache; repeat for several.  [default: {CONTEXT}, or what there is room for]",
)
@click.option("--max-nodes", type=NODES, default=64, show_default=True, help="Nodes of the largest tree.")
@click.option("--candidates", type=COUNT, default=10, show_default=True, help="Ranks a head that trees use.")
@acceptance_options
@drafts_option
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Draws the cached tokens and the order of timing, and samples.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the file's JSON instead of tables.")
@click.option(
    "-o",
    "--output",
    type=FILE,
    default=Path("latency.json"),
    show_default=True,
    help="Where to write the step latency.",
)
def measure(
    source: ModelSource, batch: tuple[int, ...], context: tuple[int, ...], max_nodes: int, candidates: int, accepting: Acceptance, drafts: str,
    seed: int, as_json: bool, output: Path,
) -> None:  # fmt: skip
    """Time MODEL's decoding steps on this device, plainly and with trees of all sizes, as calibrate does, but profile nothing.

    Writes what 'plan --latency' reads: for ranks that were profiled elsewhere, or before.
    """
    from medusa_runtime.acceptance.rules import GREEDY
    from medusa_tree.planning.drafts import check_rule

    rule = accepting.rule(seed) or GREEDY
    source.check_one_work()
    if leads():
        check_output(output)
    model = load_drafting(source, drafts)
    from medusa_runtime.book import Lookup
    from medusa_tree.devices import measure as device
    from medusa_tree.devices.shape import shape_of
    from medusa_tree.progress import counted

    check_rule(rule, model.heads is not None)
    lookup = None if drafts == HEADS or not rule.lossless else Lookup()
    batches, contexts = (
        tuple(dict.fromkeys(batch)),
        device.timed_contexts(model, context, CONTEXT, max_nodes, lookup is not None),
    )
    if not context and contexts != (CONTEXT,):
        stderr().print(
            f"[yellow]At context {contexts[0]}: {model.name} has room for no more beside a tree of {max_nodes} nodes.[/yellow]"
        )

    left_out: list[str] = []

    def leave_out(load: Load, why: InputError) -> None:
        left_out.append(f"batch {load[0]}, context {load[1]}: {why}")

    with progress_bars() as report:
        told = counted(report, "Timing steps (rounds)", device.ROUNDS * len(batches) * len(contexts))
        grid = device.measure(
            model, max_nodes, candidates, batches, contexts, seed=seed, progress=told, rule=rule, leave_out=leave_out, lookup=lookup,
        )  # fmt: skip
    for load in left_out:
        stderr().print(f"[yellow]Left out: {load}.[/yellow]")
    if leads():
        _finish(model, source, grid, shape_of(model), rule, output, as_json)


def _finish(
    model: MedusaModel, source: ModelSource, grid: LatencyGrid, shape: ModelShape, rule: Rule, output: Path, as_json: bool
) -> None:  # fmt: skip
    """Write the file, print what is in it, and say what it is for."""
    from datetime import UTC, datetime

    from medusa_runtime.acceptance.rules import rule_json
    from medusa_runtime.files import write_beside
    from medusa_tree.planning.notes import roofline_beside, roofline_line
    from medusa_tree.profiling.provenance import versions
    from medusa_tree.reports.latency import latency_tables

    from .finish import keep_old

    made: dict[str, Any] = {
        "model": {"name": source.model, "commit": model.commit}, 
        "heads": None if model.heads is None else {"name": source.heads, "commit": model.heads_commit},
        "acceptance": rule_json(rule), **grid.to_json(), "shape": shape.to_json(), "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    keep_old(output)
    with write_beside(output) as beside:
        beside.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    if as_json:
        print(json.dumps(made, indent=2))
    else:
        for table in latency_tables(grid, rule):
            stdout().print(table)
        if (fitted := roofline_beside(grid, shape)) is not None:
            stdout().print(f"[dim]{roofline_line(fitted[1])}[/dim]")
    stderr().print(f"Wrote {output}.\nNext: medusa-tree plan trace.npz --latency {output}", soft_wrap=True)
