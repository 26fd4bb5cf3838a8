"""medusa-tree merge: the shards of runs, and traces, as one trace."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .common import FILE, check_output, stderr, stdout

SOURCE = click.Path(path_type=Path)


@click.command()
@click.argument("runs", type=SOURCE, nargs=-1, required=True, metavar="RUN...")
@click.option("--partial", is_flag=True, help="Take what is there of runs that are not finished.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option(
    "-o", "--output", type=FILE, default=Path("trace.npz"), show_default=True, help="Where to write the trace."
)
def merge(runs: tuple[Path, ...], partial: bool, as_json: bool, output: Path) -> None:
    """Join the shards of each RUN (a folder that profile wrote) and all of them, or rank traces, into one trace.

    They must be of the same model, heads and rule. A prompt that one of them holds out is held out in all.
    """
    from medusa_runtime.errors import InputError
    from medusa_tree.profiling.merge import merge as run
    from medusa_tree.reports.summary import trace_json
    from medusa_tree.reports.tables import accuracy_table
    from medusa_tree.traces.tracefile import save_trace

    from .finish import keep_old

    check_output(output)
    if output.suffix != ".npz":
        raise InputError(f"-o {output}: a trace is an .npz; name it {output.stem}.npz")
    trace, record = run(runs, partial)
    keep_old(output)
    save_trace(output, trace, record)
    if as_json:
        print(json.dumps({"trace": str(output), **trace_json(trace), "provenance": record}, indent=2))
    elif trace.heads:
        stdout().print(accuracy_table(trace))
    stderr().print(
        f"Wrote {output}.\nNext: medusa-tree plan {output} --latency latency.json   or   --device-model h100-sxm --config config.json",
        soft_wrap=True,
    )
