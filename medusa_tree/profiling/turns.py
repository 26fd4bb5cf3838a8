"""Turns: conversations whose user says more than once, decoded turn by turn, each behind the model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..traces.text import TURN
from .tokens import Fitted

NONE = ""  # the category of prompts without one, where others have one
Turn = TypeVar("Turn")


def in_turns(
    prompts: Fitted,
    numbers: Sequence[int],
    take: Callable[[list[list[int]], npt.NDArray[np.int64], list[int]], Turn],
    answers: Callable[[Turn], list[list[int]]],
) -> list[Turn]:
    """What ``take`` makes of prompts ``numbers``, and then of what the user says next to those who say more, until nobody does.

    Args:
        take: of rows of token ids, (R,) the prompts that they are of, and a stream of random numbers for each: see :data:`TURN`.
        answers: the token ids of each answer in that.
    """
    turns: list[Turn] = []
    said: dict[int, list[list[int]]] = {i: [] for i in numbers}
    rows = {i: prompts.rows[i] for i in numbers}
    while rows:
        who = np.array(list(rows))
        turns.append(take(list(rows.values()), who, (who + len(turns) * TURN).tolist()))
        for i, answer in zip(rows, answers(turns[-1]), strict=True):
            said[i].append(answer)
        rows = {i: prompts.then(i, said[i]) for i in rows if len(prompts.prompts[i].later) >= len(turns)}
    return turns


def categories_of(prompts: Fitted, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.str_] | None:
    """The category of each of these prompts; None where no prompt has one."""
    if all(p.category is None for p in prompts.prompts):
        return None
    return np.array([prompts.prompts[i].category or NONE for i in numbers.tolist()])
