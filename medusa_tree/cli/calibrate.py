"""medusa-tree calibrate: profile the heads, measure the device, plan the tree."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medusa_tree.drafters import HEADS, LOOKUP

from .acceptance import Acceptance, acceptance_options
from .budget import Bounds, budget_options
from .common import COUNT, FILE, leads, progress_bars, stderr
from .drafts import drafts_option, load_drafting, lookup_file_option, own_text
from .model import ModelSource, model_options_of
from .prompts import Prompts, make_job, profiling_options

if TYPE_CHECKING:
    from medusa_runtime.model import MedusaModel
    from medusa_tree.planning.budget import Budget
    from medusa_tree.planning.calibrated import Calibrated, Timed
    from medusa_tree.planning.calibration import Calibration
    from medusa_tree.profiling.job import Timing
    from medusa_tree.profiling.run import Job
    from medusa_tree.traces.beside import Beside
    from medusa_tree.traces.trace import RankTrace

# What a trace was taken with is not to be chosen again.
OF_PROFILING = (
    "corpus", "answers", "reference_text", "prompts", "max_new_tokens", "held_out", "candidates", "batch_tokens", "acceptance",
    "temperature", "top_p", "top_k", "min_p", "epsilon", "delta",
)  # fmt: skip


@click.command()
@model_options_of(required=False)
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
@drafts_option
@lookup_file_option
@click.option(
    "--profile",
    "profiled",
    type=click.Path(path_type=Path),
    help="Ranks from this run or trace; profile nothing.",
)
@click.option("--latency", type=FILE, help="Step latency from this file, as 'measure' writes it; time nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "-o", "--output", type=FILE, default=Path("tree.json"), show_default=True, help="Where to write the tree."
)
@click.pass_context
def calibrate(
    ctx: click.Context, source: ModelSource, asked: Prompts, bounds: Bounds, batch: tuple[int, ...], context: tuple[int, ...],
    accepting: Acceptance, drafts: str, lookup_file: Path | None, profiled: Path | None, latency: Path | None, as_json: bool, output: Path,
) -> None:  # fmt: skip
    """Measure MODEL's heads on its own output and the step latency of this device, and plan the tree; a model without heads is
    planned to look up what follows in its own text. With --acceptance the output, the times and the tree are those of that rule,
    which is kept in the tree.

    Writes the tree, beside it the calibration (tree.calibration.npz, for 'plan') and a plot (tree.png). Killed, the same command
    goes on where it was.
    """
    from medusa_runtime.errors import InputError
    from medusa_tree.planning.calibration import calibration_path
    from medusa_tree.profiling.job import Timing

    from .finish import check_tree_output, finish_plan, keep_old

    source.check_one_work()
    check_tree_output(output)
    if lookup_file is not None and drafts == HEADS:
        raise InputError(
            f"--lookup-file {lookup_file}: with --drafts heads nothing is looked up; leave out one of the two"
        )
    if lookup_file is not None and accepting.acceptance == "typical":
        raise InputError(
            f"--lookup-file {lookup_file}: no lookup is planned under typical acceptance; leave out one of the two"
        )
    profiling, budget, timing = asked.profiling(accepting), bounds.parse(), Timing(batch, context)
    folder = output.with_name(f"{output.stem}.run")

    @cache  # once: what is written from then on is this run's
    def make_room() -> None:
        keep_old(output, output.with_suffix(".png"), calibration_path(output), trace_path(output))

    def keep(measured: RankTrace | Calibration) -> None:
        if leads():
            make_room()
            _keep(measured, output, folder)

    if profiled is not None:
        given = [
            name for name in OF_PROFILING if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            raise InputError(
                f"--{given[0].replace('_', '-')}: is for profiling, and --profile {profiled} is there; leave out one of the two"
            )
        made = _planned(source, profiled, latency, timing, budget, asked.seed, keep, drafts, lookup_file)
    elif not source.model:
        raise InputError("--model: is missing; name a model to profile, or give what was profiled with --profile")
    else:
        timed = None if latency is None else _timed(latency)
        job = make_job(source, profiling, drafts)
        made = _whole(job, timed, timing, budget, keep, folder, drafts, own_text(lookup_file, job.model))
    for load in made.left_out:
        stderr().print(f"[yellow]Left out: {load}.[/yellow]")
    if leads():
        finish_plan(made.calibration, made.plan, output, as_json)
        if profiled is None:
            shutil.rmtree(folder, ignore_errors=True)  # all that was in it is in the calibration


def _whole(
    job: Job, timed: Timed | None, timing: Timing, budget: Budget, keep: Callable[[RankTrace | Calibration], object], folder: Path,
    drafts: str, beside: Beside | None,
) -> Calibrated:  # fmt: skip
    """Profile, go on in the folder of a run that was ended early, and time unless that was done before."""
    from medusa_runtime.processes import agreed
    from medusa_tree.profiling.calibrate import calibrate as run
    from medusa_tree.profiling.run import belongs, settings_of

    from .finish import keep_old

    if agreed(job.model, folder.exists()):
        same = belongs(settings_of(job), folder)  # by all processes that hold a share of the weights
        if same:
            stderr().print(f"Going on with {folder}.", soft_wrap=True)
        elif leads():
            keep_old(folder)
    try:
        with progress_bars() as report:
            return run(job, timing, budget, report, keep, folder, timed, drafts, beside)
    except KeyboardInterrupt:
        if folder.exists():
            stderr().print(f"Stopped. Go on by the same command; what is done stands in {folder}.", soft_wrap=True)
        raise


def _planned(
    source: ModelSource, profiled: Path, latency: Path | None, timing: Timing, budget: Budget, seed: int,
    keep: Callable[[RankTrace | Calibration], object], drafts: str, lookup_file: Path | None,
) -> Calibrated:  # fmt: skip
    """The plan for what was profiled before; the model is loaded to be timed only, or for its tokenizer."""
    from dataclasses import replace

    from medusa_tree.origin import profiled_with
    from medusa_tree.planning.drafts import drafting
    from medusa_tree.profiling.merge import merge

    trace, record = merge([profiled])
    drafting(trace, drafts)  # or an error, before anything is timed
    timed, beside = None if latency is None else _timed(latency), None
    if timed is None or lookup_file is not None:
        if not source.model:
            was, heads = profiled_with(record, str(profiled))
            source = replace(
                source, model=was.name, revision=source.revision or was.commit, dtype=source.dtype or was.dtype
            )
            if heads is not None and drafts != LOOKUP:
                source = replace(
                    source, heads=source.heads or heads.name, heads_revision=source.heads_revision or heads.commit
                )
        model: MedusaModel = load_drafting(source, HEADS if trace.heads and drafts != LOOKUP else LOOKUP)
        beside = own_text(lookup_file, model)
        from medusa_tree.profiling.calibrate import check_profiled, time_profiled

        check_profiled(model, record, str(profiled))
        if timed is None:
            with progress_bars() as report:
                timed = time_profiled(model, trace, seed, timing, budget, report, drafts, beside)
    from medusa_tree.planning.calibrated import planned

    return planned(trace, record, timed, budget, keep, drafts, beside)


def _timed(path: Path) -> Timed:
    """What was timed before."""
    from medusa_tree.planning.calibrated import Timed

    from .source import read_grid

    return Timed(*read_grid(path))


def trace_path(output: Path) -> Path:
    """tree.json -> tree.trace.npz, beside it."""
    return output.with_name(f"{output.stem}.trace.npz")


def _keep(measured: RankTrace | Calibration, output: Path, folder: Path) -> None:
    """Write beside the tree what was measured, as soon as it is: a plan that fails must not lose it."""
    from medusa_tree.planning.calibration import Calibration, calibration_path, save_calibration
    from medusa_tree.profiling.shards import FILE, read_run
    from medusa_tree.traces.tracefile import save_trace

    if isinstance(measured, Calibration):
        path = calibration_path(output)
        save_calibration(path, measured)
        stderr().print(f"Wrote {path}: plan again from it under another budget, in a second.", soft_wrap=True)
        return
    path = trace_path(output)
    save_trace(path, measured, read_run(folder).provenance if (folder / FILE).exists() else None)
    stderr().print(
        f"Wrote {path}, the ranks profiled so far: plan from it with --latency or --device-model.", soft_wrap=True
    )
