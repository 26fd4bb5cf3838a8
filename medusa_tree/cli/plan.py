"""medusa-tree plan: another budget, batch, device or engine on an old calibration or trace; no model, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import FILE, budget_options, check_output, stderr

if TYPE_CHECKING:
    from medusa_tree.latency import LatencyGrid
    from medusa_tree.roofline import Roofline
    from medusa_tree.shape import ModelShape
    from medusa_tree.trace import RankTrace

BATCHES = (1, 2, 4, 8, 16, 32, 64)  # asked of a device model where none are named


@click.command()
@click.argument("source", type=FILE, metavar="CALIBRATION")
@budget_options
@click.option("--max-nodes", type=click.IntRange(min=1), help="Largest tree.  [default: as measured; modelled: 256]")
@click.option("--max-memory", help="What decoding may hold, e.g. 24GB.  [default: none; modelled: the device's]")
@click.option("--batch", type=click.IntRange(min=1), multiple=True, help="Batch to plan for; repeat for several.")
@click.option("--context", type=click.IntRange(min=1), multiple=True, help="Tokens in the cache; repeat for several.")
@click.option("--engine", help="Plan within what an engine accepts: vllm, tensorrt-llm, medusa, sglang, linear.")
@click.option("--estimator", default="visited", show_default=True, help="Of path frequencies: visited, joint, product.")
@click.option("--swaps", is_flag=True, help="Try single-node swaps on each chosen tree: slower, worth 1% at best.")
@click.option("--latency", "latency_file", type=FILE, help="Step latency from this JSON instead of CALIBRATION's.")
@click.option("--device-model", help="Model the latency of a device, e.g. h100-sxm; an unknown one lists them.")
@click.option("--config", type=FILE, help="config.json of the model to put there.  [default: the calibrated one]")
@click.option("--weight-dtype", help="Of the modelled weights.  [default: as calibrated]")
@click.option("--kv-dtype", help="Of the modelled KV cache.  [default: as the weights]")
@click.option(
    "--launch-overhead", type=float, metavar="MS", help="Modelled launches a step.  [default: fitted as measured]"
)
@click.option("--achieved", type=float, help="Share of the data sheet's rates that is reached.  [default: 0.8]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "-o", "--output", type=FILE, default=Path("tree.json"), show_default=True, help="Where to write the tree."
)
def plan(
    source: Path, budget: str | None, max_depth: int | None, max_nodes: int | None, max_memory: str | None, batch: tuple[int, ...],
    context: tuple[int, ...], engine: str | None, estimator: str, swaps: bool, latency_file: Path | None, device_model: str | None,
    config: Path | None, weight_dtype: str | None, kv_dtype: str | None, launch_overhead: float | None, achieved: float | None,
    as_json: bool, output: Path,
) -> None:  # fmt: skip
    """Plan a tree from CALIBRATION (the .calibration.npz that calibrate wrote) in a second: under another budget, for
    other batches, for a device not at hand, or within what an engine accepts.

    A rank trace of another drafter (.npz or .jsonl, see docs/formats.md) can stand for CALIBRATION, with --latency or with
    --device-model and --config.
    """
    from medusa_runtime.errors import InputError
    from medusa_tree.budget import Budget, parse_budget, parse_memory
    from medusa_tree.calibration import Calibration
    from medusa_tree.latency import LatencyGrid
    from medusa_tree.plan import plan as run
    from medusa_tree.roofline import gpu

    from .finish import finish_plan

    check_output(output)
    ratio, seconds = parse_budget(budget)
    memory = parse_memory(max_memory)
    modelling = {
        "--config": config, "--weight-dtype": weight_dtype, "--kv-dtype": kv_dtype, "--launch-overhead": launch_overhead, "--achieved": achieved,
    }  # fmt: skip
    if device_model is None and (idle := [name for name, value in modelling.items() if value is not None]):
        raise InputError(f"{idle[0]} is for a modelled device; name one with --device-model")
    if device_model is not None and latency_file is not None:
        raise InputError("--latency and --device-model both give step latency; use one")
    trace, measured, made, shape = _read(source)
    if latency_file is not None:
        measured = LatencyGrid.from_json(_read_json(latency_file), str(latency_file))
    if device_model is not None:
        roofline = _model(
            device_model, trace, measured, shape, config, weight_dtype, kv_dtype, launch_overhead, achieved, max_nodes
        )
        source_of_shape = {} if config is None else {"shape": f"of {config.name}"}
        calibration = Calibration(trace, roofline, made | source_of_shape, roofline.shape)
        memory = memory or gpu(device_model).memory
    elif measured is not None:
        calibration = Calibration(trace, measured, made, shape)
    else:
        raise InputError(
            f"{source}: a rank trace has no step latency; give --latency FILE, or --device-model NAME with --config"
        )
    known = [] if measured is None else measured.loads()
    contexts = context or tuple(sorted({c for _, c in known})) or (2048,)
    batches = batch or (BATCHES if device_model else tuple(sorted({b for b, _ in known})))
    loads = [(b, c) for c in contexts for b in batches] if batch or context or device_model else None
    found = run(
        calibration,
        Budget(ratio, seconds, max_nodes, max_depth, memory),
        loads,
        engine=engine,
        estimator=estimator,
        swaps=swaps,
    )
    finish_plan(calibration, found, output, as_json)


def _read(source: Path) -> tuple[RankTrace, LatencyGrid | None, dict[str, Any], ModelShape | None]:
    """A calibration's parts, or a rank trace, whose latency and shape nobody measured."""
    from medusa_tree.calibration import load_calibration
    from medusa_tree.tracefile import load_arrays, read_trace

    if source.suffix == ".npz" and "meta" in load_arrays(source):
        made = load_calibration(source)
        return made.trace, made.grid, made.provenance, made.shape
    return read_trace(source), None, {"trace": source.name}, None


def _read_json(path: Path) -> Any:
    from medusa_runtime.errors import InputError

    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None


def _model(
    name: str, trace: RankTrace, measured: LatencyGrid | None, shape: ModelShape | None, config: Path | None, weight_dtype: str | None,
    kv_dtype: str | None, launch_overhead: float | None, achieved: float | None, max_nodes: int | None,
) -> Roofline:  # fmt: skip
    """The device's roofline; launches cost what they cost where there was something to fit them on."""
    from medusa_runtime.errors import InputError
    from medusa_tree.report import roofline_beside
    from medusa_tree.roofline import ACHIEVED, model_device
    from medusa_tree.shape import BYTES, ModelShape

    fitted = roofline_beside(measured, shape)
    own_layers = shape.layers if shape else 0
    if config is not None:
        shape = ModelShape.from_config(_read_json(config), trace.heads, where=str(config))
    if shape is None:
        raise InputError("--device-model: the model's shape is not in this file; give its config.json with --config")
    overhead, per_head = (launch_overhead or 0.0) / 1e3, 0.0
    if launch_overhead is None and fitted is None:
        stderr().print(
            "[yellow]No launch overhead is known: modelled with none; --launch-overhead MS sets one.[/yellow]"
        )
    elif launch_overhead is None and fitted is not None:
        overhead, per_head = fitted[0].overhead * shape.layers / own_layers, fitted[0].per_head_overhead
        stderr().print(
            f"Modelled launch overhead: {1e3 * overhead:.3g} ms a step, as fitted on {fitted[0].device}; --launch-overhead MS sets another."
        )
    known = measured.dtype if measured is not None and measured.dtype in BYTES else "bfloat16"
    return model_device(
        name, shape, dtype=weight_dtype or known, kv_dtype=kv_dtype, overhead=overhead, per_head_overhead=per_head,
        achieved=ACHIEVED if achieved is None else achieved, max_nodes=max_nodes or 256,
    )  # fmt: skip
