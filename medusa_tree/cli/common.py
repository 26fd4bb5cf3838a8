"""What several commands share: options that travel together, consoles, progress, and what is said of outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from medusa_runtime.treefile import OperatingPoint
    from medusa_tree.profiling.tokens import Fitted
    from medusa_tree.progress import Report

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
COUNT = click.IntRange(min=1)
NODES = click.IntRange(1, 1 << 14)  # sixteen times the largest tree that anyone verifies; a planner has to end
SEED = click.IntRange(min=0)

Command = Callable[..., Any]


def together(kind: type, name: str, *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Options that travel together: the command gets them as one ``name``, a frozen dataclass ``kind`` whose fields they are."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def gathered(**given: Any) -> Any:
            own = kind(**{f.name: given.pop(f.name) for f in fields(kind)})
            return command(**given, **{name: own})

        whole: Command = gathered
        for option in reversed(options):
            whole = option(whole)
        return whole

    return decorate


def leads() -> bool:
    """Whether this is the first of the processes that torchrun started together, or the only one there is: the one that prints,
    and writes what all have made."""
    return os.environ.get("RANK", "0") == "0"


def stderr() -> Console:
    """For people: progress and notes, of the first process. Standard output is for results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=not leads())


def stdout() -> Console:
    """For results, of the first process."""
    from rich.console import Console

    return Console(highlight=False, quiet=not leads())


@contextmanager
def progress_bars() -> Iterator[Report]:
    """Told of a stage, how much of it is done, and of how many, the first time it begins: bars on standard error, or where that
    is no terminal, lines (:mod:`medusa_tree.cli.progress`). Of processes that work together the first one shows its own."""
    from medusa_tree.progress import unseen

    from .progress import bars, lines

    console = stderr()
    if not leads():
        yield unseen
    elif console.is_terminal:
        with bars(console) as report:
            yield report
    else:
        yield lines(partial(console.print, markup=False, soft_wrap=True))


def warn_of_another_point(point: OperatingPoint, batch: int, context: int | None, done: str) -> None:
    """Say what is ``done`` with which point where the nearest operating point is not the one asked for."""
    if point.batch != batch or context not in (None, point.context):
        asked = f"batch {batch}" + (f", context {context}" if context else "")
        stderr().print(
            f"[yellow]No operating point for {asked}: {done} batch {point.batch}, context {point.context}.[/yellow]"
        )


def warn_of_cut_prompts(prompts: Fitted) -> None:
    """Say how many prompts were too long, if any."""
    if told := prompts.told():
        stderr().print(f"[yellow]{told}.[/yellow]")


def check_output(path: Path) -> None:
    """Refuse an output that could not be written before minutes of work, not after."""
    from medusa_runtime.errors import InputError

    folder = path.resolve().parent
    if not folder.is_dir():
        raise InputError(f"-o {path}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"-o {path}: the folder {folder} cannot be written to; choose another")
    if path.is_dir():
        raise InputError(f"-o {path}: is a folder; name a file")
