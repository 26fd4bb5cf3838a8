"""A group of processes that work together (torchrun), left behind in order."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed


@contextmanager
def process_group() -> Iterator[None]:
    """Whatever joins a group of processes inside (a model split by ``tp_plan``, a Trainer), the group is left at the end, also
    where the work fails. A group that was there before stays.

    Gloo's threads let go of tensors, for which they need the interpreter: one that ends while they run aborts the process
    with its work done ("terminate called without an active exception"). They end with the group, and the group with the
    last that refers to it, such as a model split over it: keep none outside.
    """
    before = torch.distributed.is_available() and torch.distributed.is_initialized()
    try:
        yield
    finally:
        if not before and torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()
            torch.distributed.destroy_process_group()
            gc.collect()
