"""medusa-tree profile: the model's own text and its heads' ranks, shard by shard, on one process or many."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .acceptance import Acceptance, acceptance_options
from .common import FOLDER, leads, progress_bars, stderr, stdout
from .drafts import drafts_option
from .model import ModelSource, model_options
from .prompts import Prompts, make_job, profiling_options


@click.command()
@model_options
@profiling_options
@acceptance_options
@drafts_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("-o", "--output", type=FOLDER, default=Path("run"), show_default=True, help="Folder of the run.")
def profile(
    source: ModelSource, asked: Prompts, accepting: Acceptance, drafts: str, as_json: bool, output: Path
) -> None:
    """Rank MODEL's text on the prompts by its heads, and keep ranks and text in a folder, a file a batch.

    Killed, it goes on where it was by the same command. On several GPUs or machines, with the folder on storage that all see:
    torchrun --nproc-per-node N -m medusa_tree profile ...; the prompts are shared out, and who is left finishes.
    """
    from medusa_tree.profiling.shards import check_folder

    profiling = asked.profiling(accepting)
    check_folder(output)
    job = make_job(source, profiling, drafts, side_by_side=True)
    from medusa_tree.profiling.run import profile_run

    try:
        with progress_bars() as report:
            run = profile_run(job, output, report)
    except KeyboardInterrupt:
        stderr().print(f"Stopped. Go on by the same command; what is done stands in {output}.", soft_wrap=True)
        raise
    if not leads():
        return
    from medusa_tree.profiling.shards import collect
    from medusa_tree.reports.summary import trace_json
    from medusa_tree.reports.tables import accuracy_table

    trace = collect(output)
    if as_json:
        print(json.dumps({"run": str(output), **trace_json(trace), "provenance": run.provenance}, indent=2))
    elif trace.heads:
        stdout().print(accuracy_table(trace))
    stderr().print(
        f"Wrote {output}.\nNext: medusa-tree calibrate --profile {output}   or   medusa-tree merge {output} -o trace.npz",
        soft_wrap=True,
    )
