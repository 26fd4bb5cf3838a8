"""The one error a user is meant to read: it names the thing that is wrong and the mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class InputError(ValueError):
    """Something the user gave cannot be used. The message is complete: file, field and mend.

    The command line prints it without a traceback and exits with status 2.
    """


class OutOfMemory(InputError):
    """Memory does not suffice for what was asked; for less it may."""


@contextmanager
def out_of_memory(what: str, device: torch.device) -> Iterator[None]:
    """Where memory runs out inside, an :class:`OutOfMemory`: ``what`` takes how much, and what the device has."""
    import torch

    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a plain one
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        has = ""
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            has = f" {device} has {free / 2**30:.2f} GiB free of {total / 2**30:.2f}."
        raise OutOfMemory(
            f"out of memory: {what}.{has} Take fewer sequences at a time, fewer new tokens, a smaller tree or model, or a smaller dtype"
        ) from None
