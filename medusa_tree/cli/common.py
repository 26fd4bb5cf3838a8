"""What several commands share: options, consoles, progress bars, and loading a model quietly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from medusa_runtime.model import MedusaModel
    from medusa_runtime.treefile import OperatingPoint

FILE = click.Path(path_type=Path, dir_okay=False)


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--device, --dtype and --trust-remote-code."""
    for option in (
        click.option(
            "--trust-remote-code", is_flag=True, help="Run the code that a Hub repository brings with its model."
        ),
        click.option(
            "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: the checkpoint's own]"
        ),
        click.option("--device", help="e.g. cpu, cuda, cuda:1  [default: CUDA where there is one]"),
    ):
        command = option(command)
    return command


def budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--budget and --max-depth."""
    for option in (
        click.option(
            "--max-depth", type=click.IntRange(min=1), help="Deepest tree: how many heads to use.  [default: all]"
        ),
        click.option(
            "--budget", help="Longest step: a ratio to plain decoding (1.3x) or a time (25ms).  [default: none]"
        ),
    ):
        command = option(command)
    return command


def stderr() -> Console:
    """For people: progress and notes. Standard output is for results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars with a count, the time taken and an ETA, on standard error."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"), BarColumn(bar_width=30), MofNCompleteColumn(),
        TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr()) as progress:
        yield progress


def load_model(
    model: str,
    heads: str | None,
    device: str | None,
    dtype: str | None,
    trust_remote_code: bool,
    require_heads: bool = True,
) -> MedusaModel:
    """The model and heads named on the command line (``demo`` is the bundled one), with transformers kept quiet."""
    from medusa_tree.bundled import resolve_model

    with stderr().status(f"Loading {model} ..."):
        import transformers

        from medusa_runtime.model import MedusaModel

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        where, heads_where = resolve_model(model, heads)
        return MedusaModel.from_pretrained(
            where,
            heads_where,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            require_heads=require_heads,
        )


def warn_of_another_point(point: OperatingPoint, batch: int, context: int | None, done: str) -> None:
    """Say what is ``done`` with which point where the nearest operating point is not the one asked for."""
    if point.batch != batch or context not in (None, point.context):
        asked = f"batch {batch}" + (f", context {context}" if context else "")
        stderr().print(
            f"[yellow]No operating point for {asked}: {done} batch {point.batch}, context {point.context}.[/yellow]"
        )


def check_output(path: Path) -> None:
    """Refuse an output whose folder does not exist before minutes of work, not after."""
    from medusa_runtime.errors import InputError

    if not path.resolve().parent.is_dir():
        raise InputError(f"-o {path}: the folder {path.resolve().parent} does not exist; make it first")
    if path.is_dir():
        raise InputError(f"-o {path}: is a folder; name a file")
