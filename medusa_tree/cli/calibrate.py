"""medusa-tree calibrate: profile the heads, measure the device, plan the tree."""

from __future__ import annotations

from pathlib import Path

import click

from .acceptance import Acceptance, acceptance_options
from .common import FILE, budget_options, check_output, device_options, load_model, progress_bars, stderr


@click.command()
@click.option("--model", required=True, help="Folder or Hub id of the model; 'demo' is the bundled one.")
@click.option("--heads", help="Folder or Hub id of its Medusa heads.  [default: with the model]")
@click.option(
    "--corpus",
    default="demo",
    show_default=True,
    help="Prompts: .jsonl, .json or one a line; hf:OWNER/NAME[:SPLIT]; 'demo' is Python code.",
)
@click.option("--prompts", type=click.IntRange(min=2), help="Use only the first N prompts.  [default: all]")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens to generate a prompt."
)
@click.option(
    "--held-out", type=float, default=0.25, show_default=True, help="Fraction of prompts kept for the reported figures."
)
@budget_options
@click.option("--max-nodes", type=click.IntRange(min=1), default=64, show_default=True, help="Largest tree.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Batch to plan for; repeat for several.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    multiple=True,
    help="Tokens in the cache when timing; repeat for several.  [default: the prompts' own middle]",
)
@click.option("--candidates", type=click.IntRange(min=1), default=10, show_default=True, help="Ranks kept a head.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the held-out prompts, and samples.")
@acceptance_options
@device_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "-o", "--output", type=FILE, default=Path("tree.json"), show_default=True, help="Where to write the tree."
)
def calibrate(
    model: str, heads: str | None, corpus: str, prompts: int | None, max_new_tokens: int, held_out: float, budget: str | None, max_depth: int | None,
    max_nodes: int, batch: tuple[int, ...], context: tuple[int, ...], candidates: int, seed: int, accepting: Acceptance, device: str | None,
    dtype: str | None, trust_remote_code: bool, as_json: bool, output: Path,
) -> None:  # fmt: skip
    """Measure MODEL's heads on its own output and the step latency of this device, and plan the tree. With --acceptance the
    output, the times and the tree are those of that rule, which is kept in the tree.

    Writes the tree, beside it the calibration (tree.calibration.npz, for 'plan') and a plot (tree.png).
    """
    from medusa_runtime.acceptance.rules import GREEDY
    from medusa_runtime.errors import InputError
    from medusa_tree.bundled import resolve_corpus
    from medusa_tree.planning.budget import Budget, parse_budget
    from medusa_tree.planning.calibration import Calibration, calibration_path, save_calibration
    from medusa_tree.planning.choose import contenders
    from medusa_tree.planning.plan import plan
    from medusa_tree.profiling.corpus import hold_out, read_corpus, tokenize
    from medusa_tree.traces.tracefile import save_trace

    from .finish import finish_plan

    check_output(output)
    rule = accepting.rule(seed) or GREEDY
    ratio, seconds = parse_budget(budget)
    texts = read_corpus(resolve_corpus(corpus))[:prompts]
    held = hold_out(texts, held_out, seed)
    if corpus == "demo" and model != "demo":
        stderr().print(
            "[yellow]No --corpus given: calibrating on the bundled Python code. Use prompts like those you will serve.[/yellow]"
        )

    loaded = load_model(model, heads, device, dtype, trust_remote_code)
    from medusa_tree.devices.measure import ROUNDS, measure, room_for, shape_of
    from medusa_tree.profiling.probe import retake, take_trace
    from medusa_tree.profiling.provenance import provenance
    from medusa_tree.traces.probetrace import ProbeTrace

    places, largest, rounds = loaded.max_context or 1 << 30, max(64, max_nodes), ROUNDS
    rows = tokenize(texts, loaded.tokenizer, max(1, places - max_new_tokens - loaded.num_heads))
    middle = sorted(map(len, rows))[len(rows) // 2] + max_new_tokens // 2
    room = max(1, places - room_for(loaded, largest))
    if context and max(context) > room:
        raise InputError(
            f"--context {max(context)}: with a tree of {largest} nodes {model} has room for {room}; give less"
        )
    contexts = context or (min(middle, room),)
    with progress_bars() as bars:
        profiling = bars.add_task("Profiling heads (prompts)", total=len(rows))
        timing = bars.add_task("Timing steps (rounds)", total=rounds * len(batch) * len(contexts), start=False)
        trace = take_trace(loaded, rows, held, max_new_tokens, candidates, rule, lambda n: bars.advance(profiling, n))
        bars.start_task(timing)
        left_out: list[str] = []
        try:
            latency = measure(
                loaded, largest, candidates, batch, contexts, rounds, seed, lambda n: bars.advance(timing, n), rule,
                contenders(trace, largest, Budget(ratio, seconds, max_nodes, max_depth)),
                lambda load, why: left_out.append(f"batch {load[0]}, context {load[1]}: {why}"),
            )  # fmt: skip
        except (InputError, KeyboardInterrupt):
            kept = output.with_name(f"{output.stem}.trace.npz")
            save_trace(kept, trace)
            stderr().print(f"Wrote {kept}, the ranks profiled so far: plan from it with --latency or --device-model.")
            raise
    for load in left_out:
        stderr().print(f"[yellow]Left out: {load}.[/yellow]")
    record = provenance(
        loaded, model, heads, corpus, texts, held_out=held_out, seed=seed, max_new_tokens=max_new_tokens, rule=rule
    )
    calibration = Calibration(trace, latency, record, shape_of(loaded))
    save_calibration(calibration_path(output), calibration)
    stderr().print(f"Wrote {calibration_path(output)}: plan again from it under another budget, in a second.")
    known = max(p.nodes for p in latency.points)  # larger trees were too slow to win, and not timed
    bounds = Budget(ratio, seconds, min(max_nodes, known), max_depth)
    found = plan(calibration, bounds)
    own = next((t for p in found.contents.operating_points if (t := found.contents.tree_of(p)).nodes), None)
    if isinstance(trace, ProbeTrace) and own is not None:
        with progress_bars() as bars:
            again = bars.add_task("Probing the tree's own text", total=int(held.sum()))
            trace = retake(loaded, rows, trace, own, max_new_tokens, lambda n: bars.advance(again, n))
        record["corpus"]["tokens"] += f"; held-out text made with the tree of {own.nodes} nodes"
        calibration = Calibration(trace, latency, record, calibration.shape)
        save_calibration(calibration_path(output), calibration)
        found = plan(calibration, bounds)
    finish_plan(calibration, found, output, as_json)
