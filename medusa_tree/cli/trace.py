"""medusa-tree trace: check a rank trace and say what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .common import FILE, stderr, stdout
from .source import read_parts


@click.command()
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def trace(file: Path, as_json: bool) -> None:
    """Check FILE, a rank trace (.npz or .jsonl) of any drafter, and print each head's accuracy; a bad row is named."""
    from medusa_tree.reports.summary import trace_json
    from medusa_tree.reports.tables import accuracy_table

    read, *_ = read_parts(file)
    if as_json:
        print(json.dumps(trace_json(read), indent=2))
        return
    if read.heads:
        stdout().print(accuracy_table(read))
    drafts = f"{read.candidates} candidates" if read.heads else "text to look up in"
    stderr().print(
        f"{file} is a good trace: {read.heads} heads, {drafts}, {int(read.held_out.sum())} sequences held out.\n"
        f"Next: medusa-tree plan {file} --device-model h100-sxm --config config.json"
    )
