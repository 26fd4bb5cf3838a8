"""medusa-tree plan: another budget, batch, device or engine on an old calibration or trace; no model, no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from .budget import Bounds, budget_options
from .common import COUNT, FILE
from .drafts import drafts_option
from .source import LatencySource, latency_options, read_source

BATCHES = (1, 2, 4, 8, 16, 32, 64)  # asked of a device model where none are named


@click.command()
@click.argument("source", type=FILE, metavar="CALIBRATION")
@budget_options(None, "as measured; modelled: 256")
@click.option("--max-memory", help="What decoding may hold, e.g. 24GB.  [default: none; modelled: the device's]")
@click.option("--batch", type=COUNT, multiple=True, help="Batch to plan for; repeat for several.")
@click.option("--context", type=COUNT, multiple=True, help="Tokens in the cache; repeat for several.")
@click.option(
    "--engine", help="Plan within what an engine accepts: vllm, tensorrt-llm, medusa, sglang, linear, eagle, hydra."
)
@click.option("--estimator", default="visited", show_default=True, help="Of path frequencies: visited, joint, product.")
@click.option("--swaps", is_flag=True, help="Try single-node swaps on each chosen tree: slower, worth 1% at best.")
@drafts_option
@latency_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "-o", "--output", type=FILE, default=Path("tree.json"), show_default=True, help="Where to write the tree."
)
def plan(
    source: Path, bounds: Bounds, max_memory: str | None, batch: tuple[int, ...], context: tuple[int, ...], engine: str | None, estimator: str,
    swaps: bool, drafts: str, source_of_latency: LatencySource, as_json: bool, output: Path,
) -> None:  # fmt: skip
    """Plan a tree from CALIBRATION (the .calibration.npz that calibrate wrote) in a second: under another budget, for
    other batches, for a device not at hand, or within what an engine accepts.

    A rank trace of another drafter (.npz or .jsonl, see docs/formats.md) can stand for CALIBRATION, with --latency or with
    --device-model and --config.
    """
    from medusa_tree.devices.roofline import gpu
    from medusa_tree.planning.budget import parse_memory
    from medusa_tree.planning.plan import plan as run

    from .finish import check_tree_output, finish_plan

    check_tree_output(output)
    memory, device_model = parse_memory(max_memory), source_of_latency.device_model
    budget = bounds.parse(memory)
    calibration, measured = read_source(source, source_of_latency, bounds.max_nodes)
    if device_model is not None and memory is None:
        budget = replace(budget, memory=gpu(device_model).memory)
    known = [] if measured is None else measured.loads()
    contexts = context or tuple(sorted({c for _, c in known})) or (2048,)
    batches = batch or (BATCHES if device_model else tuple(sorted({b for b, _ in known})))
    loads = [(b, c) for c in contexts for b in batches] if batch or context or device_model else None
    found = run(calibration, budget, loads, engine=engine, estimator=estimator, swaps=swaps, drafts=drafts)
    finish_plan(calibration, found, output, as_json)
