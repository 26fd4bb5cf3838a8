"""Progress of long work: stages that say how much of them is done."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, int, int], object]  # stage, done, of how many
Progress = Callable[[int], object]  # how many more are done: prompts, rounds


def unseen(stage: str, done: int, total: int) -> None:
    """Nobody looks."""


def counted(report: Report, stage: str, total: int) -> Progress:
    """Told how many more are done, it reports how many are."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        report(stage, done, total)

    more(0)
    return more
