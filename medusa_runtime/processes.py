"""Processes that run one model together (torchrun): what they agree on, and their group left behind in order."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch.distributed

if TYPE_CHECKING:
    from .tree_model import TreeModel

T = TypeVar("T")


def agreed(model: TreeModel, value: T) -> T:
    """The first process's value, on all processes that a model is split over; the value itself where one process holds the
    model, whatever group it may be in.

    Each step of a split model is one step of all its processes: one that takes a step more waits for the others forever. So
    whatever decides how to go on and is not the same for all (a clock, free memory, a random number) is to be agreed on, by all
    of them at the same place.

    Args:
        value: anything that pickles.
    """
    if not model.split_over_processes:
        return value
    shared = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


@contextmanager
def process_group() -> Iterator[None]:
    """Whatever joins a group of processes inside (a model split by ``tp_plan``, a Trainer), the group is left at the end, also
    where the work fails. A group that was there before stays.

    Gloo's threads let go of tensors, for which they need the interpreter: one that ends while they run aborts the process
    with its work done ("terminate called without an active exception"). They end with the group, and the group with the
    last that refers to it, such as a model split over it: keep none outside. Of work that failed the local variables are
    cleared, as the error's traceback would keep them.
    """
    before = _joined()
    try:
        yield
    except BaseException as error:
        if not before and _joined():
            _let_go(error)
        raise
    finally:
        if not before and _joined():
            gc.collect()
            torch.distributed.destroy_process_group()
            gc.collect()


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _let_go(error: BaseException | None) -> None:
    """Clear the local variables of the calls that an error, and those that it came from, ended."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
