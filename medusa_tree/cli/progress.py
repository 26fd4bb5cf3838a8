"""Progress of long work on standard error: bars in a terminal, elsewhere (nohup, Slurm, CI) a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from medusa_tree.progress import Report

EVERY = 30.0  # seconds between lines


@contextmanager
def bars(console: Console) -> Iterator[Report]:
    """A bar a stage, with a count, the time taken and an ETA."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"), BarColumn(bar_width=30), MofNCompleteColumn(),
        TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        stages: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = progress.add_task(stage, total=total)
            progress.update(stages[stage], completed=done)

        yield report


@dataclass
class _Stage:
    """When a stage was first told of, and how much of it was done then; whether a line was written of it, and its last."""

    begun: float
    before: int
    shown: bool = False
    ended: bool = False


def lines(write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> Report:
    """A line whenever something is reported and EVERY seconds have passed since the last line, and one at the end of each stage
    of which a line was written before. So a short stage adds nothing to a log, a run of short ones still shows that it is
    alive, and a long silence within a stage stays one: the line comes with the next report."""
    stages: dict[str, _Stage] = {}
    last = clock()

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = clock()
        known = stages.get(stage)
        if known is None or (known.ended and done < total):  # some work is done twice
            known = stages[stage] = _Stage(now, done)
        elif known.ended:
            return
        known.ended = done >= total
        if now - last >= EVERY or (known.ended and known.shown):
            write(_line(stage, done, total, now - known.begun, done - known.before))
            last, known.shown = now, True

    return report


def _line(stage: str, done: int, total: int, seconds: float, made: int) -> str:
    """What is done, how fast, and how long the rest takes at that rate, or how long it took."""
    told = f"{stage}: {done:,} of {total:,}"
    if seconds > 0 and made > 0:
        rate = made / seconds
        told += f", {rate:,.1f} a second" if rate >= 1 else f", {60 * rate:.1f} a minute"
        told += f", {_time(seconds)} elapsed"
        if done < total:
            told += f", {_time((total - done) / rate)} left"
    return told


def _time(seconds: float) -> str:
    """0:12:30"""
    return str(timedelta(seconds=round(seconds)))
