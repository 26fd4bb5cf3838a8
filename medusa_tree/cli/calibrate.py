"""medusa-tree calibrate: profile the heads, measure the device, plan the tree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .acceptance import Acceptance, acceptance_options
from .budget import Bounds, budget_options
from .common import COUNT, FILE, SEED, progress_bars, stderr, together, warn_of_cut_prompts
from .model import ModelSource, model_options

if TYPE_CHECKING:
    from medusa_runtime.acceptance.rules import Rule
    from medusa_tree.planning.calibration import Calibration
    from medusa_tree.profiling.job import Profiling
    from medusa_tree.traces.trace import RankTrace


@dataclass(frozen=True)
class Prompts:
    """The options that say what to profile."""

    corpus: str
    prompts: int | None
    max_new_tokens: int
    held_out: float
    candidates: int
    seed: int

    def profiling(self, rule: Rule) -> Profiling:
        """What they ask for, with text made by the rule."""
        from medusa_tree.profiling.job import Profiling

        return Profiling(
            self.corpus, self.prompts, self.max_new_tokens, self.held_out, self.candidates, self.seed, rule
        )


profiling_options = together(
    Prompts,
    "asked",
    click.option("--corpus", default="demo", show_default=True, help="Prompts: .jsonl, .json or one a line; hf:OWNER/NAME[:SPLIT]; 'demo' is Python code."),
    click.option("--prompts", type=click.IntRange(min=2), help="Use only the first N prompts.  [default: all]"),
    click.option("--max-new-tokens", type=COUNT, default=128, show_default=True, help="Tokens to generate a prompt."),
    click.option("--held-out", type=float, default=0.25, show_default=True, help="Fraction of prompts kept for the reported figures."),
    click.option("--candidates", type=COUNT, default=10, show_default=True, help="Ranks kept a head."),
    click.option("--seed", type=SEED, default=0, show_default=True, help="Draws the held-out prompts, and samples."),
)  # fmt: skip


@click.command()
@model_options
@profiling_options
@budget_options(64, "64")
@click.option(
    "--batch", type=COUNT, multiple=True, default=(1,), show_default=True, help="Batch to plan for; repeat for several."
)
@click.option(
    "--context",
    type=COUNT,
    multiple=True,
    help="Tokens in the cache when timing; repeat for several.  [default: the prompts' own middle]",
)
@acceptance_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "-o", "--output", type=FILE, default=Path("tree.json"), show_default=True, help="Where to write the tree."
)
def calibrate(
    source: ModelSource, asked: Prompts, bounds: Bounds, batch: tuple[int, ...], context: tuple[int, ...], accepting: Acceptance,
    as_json: bool, output: Path,
) -> None:  # fmt: skip
    """Measure MODEL's heads on its own output and the step latency of this device, and plan the tree. With --acceptance the
    output, the times and the tree are those of that rule, which is kept in the tree.

    Writes the tree, beside it the calibration (tree.calibration.npz, for 'plan') and a plot (tree.png).
    """
    from medusa_runtime.acceptance.rules import GREEDY
    from medusa_tree.planning.calibration import calibration_path
    from medusa_tree.profiling.job import Timing

    from .finish import check_tree_output, finish_plan, keep_old

    check_tree_output(output)
    profiling = asked.profiling(accepting.rule(asked.seed) or GREEDY)
    budget = bounds.parse()
    texts, held_out = profiling.read()
    if asked.corpus == "demo" and source.model != "demo":
        stderr().print(
            "[yellow]No --corpus given: calibrating on the bundled Python code. Use prompts like those you will serve.[/yellow]"
        )
    model = source.load()
    from medusa_tree.profiling.calibrate import calibrate as run
    from medusa_tree.profiling.tokens import fitted

    prompts = fitted(model, texts, asked.max_new_tokens)
    warn_of_cut_prompts(prompts)

    @cache  # once: what is written from then on is this run's
    def make_room() -> None:
        keep_old(output, output.with_suffix(".png"), calibration_path(output), trace_path(output))

    def keep(measured: RankTrace | Calibration) -> None:
        make_room()
        _keep(measured, output)

    names = (source.model, source.heads)
    with progress_bars() as report:
        made = run(model, prompts, held_out, profiling, Timing(batch, context), budget, names, report, keep)
    for load in made.left_out:
        stderr().print(f"[yellow]Left out: {load}.[/yellow]")
    finish_plan(made.calibration, made.plan, output, as_json)


def trace_path(output: Path) -> Path:
    """tree.json -> tree.trace.npz, beside it."""
    return output.with_name(f"{output.stem}.trace.npz")


def _keep(measured: RankTrace | Calibration, output: Path) -> None:
    """Write beside the tree what was measured, as soon as it is: a plan that fails must not lose it."""
    from medusa_tree.planning.calibration import Calibration, calibration_path, save_calibration
    from medusa_tree.traces.tracefile import save_trace

    if isinstance(measured, Calibration):
        path = calibration_path(output)
        save_calibration(path, measured)
        stderr().print(f"Wrote {path}: plan again from it under another budget, in a second.")
        return
    path = trace_path(output)
    save_trace(path, measured)
    stderr().print(f"Wrote {path}, the ranks profiled so far: plan from it with --latency or --device-model.")
