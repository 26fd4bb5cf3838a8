"""Memory: how many tokens of prompts and texts a model can hold at once, and the batches that follow."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from medusa_runtime.decode import prefill
from medusa_runtime.errors import OutOfMemory, out_of_memory
from medusa_runtime.tree_model import TreeModel

from ..progress import Progress

ROWS = 128  # sequences decoded side by side, at most: from there on a step takes as much longer as it does more
SHARE = 0.6  # of the free memory; the rest is for passes over prompts, logits and what the allocator cannot use
LONG = 256  # new tokens, from which on texts end at very different lengths
REFILLS = 4  # such batches in one shard, so that texts that end early make room for others
CGROUP = Path("/sys/fs/cgroup")


def tokens_at_once(model: TreeModel) -> int:
    """Tokens whose keys, values and hidden states fit into SHARE of the memory that is free now, on the device that has least
    room for its part."""
    state = prefill(model, [[0]], 1)
    each: Counter[torch.device] = Counter({state.hidden.device: state.hidden.shape[-1] * state.hidden.element_size()})
    for layer in state.cache.layers:
        for part in (layer.keys, layer.values):
            each[part.device] += part.numel() * part.element_size()
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine, which share its memory
    return max(
        1, min(int(SHARE * free_bytes(at) / size / (sharing if at.type == "cpu" else 1)) for at, size in each.items())
    )


def free_bytes(device: torch.device) -> int:
    """Memory that may be taken: of a GPU, with what the allocator holds unused; of the machine, or of the container's share of it."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available
    try:
        limit, used, stat = ((CGROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
    except OSError:
        return free
    if limit.strip() == "max":
        return free
    cached = dict(line.split() for line in stat.splitlines()).get(
        "inactive_file", "0"
    )  # files, which make room when it is needed
    return max(0, min(free, int(limit) - int(used) + int(cached)))


def rows_at_once(tokens: int, longest: int, most: int = ROWS) -> int:
    """Sequences of up to ``longest`` tokens, prompt and text, that are decoded side by side where ``tokens`` can be held."""
    return max(1, min(most, tokens // longest))


def batches(lengths: Sequence[int], new: int, tokens: int, most: int = ROWS) -> list[list[int]]:
    """Which prompts go into which shard, the longest first, that what takes most memory shows at the beginning.

    A shard has as many prompts as are decoded side by side, of long texts REFILLS times as many. It depends on nothing but the
    arguments: who goes on with a job, with however many processes, makes the same shards.

    Args:
        lengths: of the prompts in tokens. new: tokens decoded behind each, at most. tokens: that can be held at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    made, at = [], 0
    while at < len(order):
        size = rows_at_once(tokens, lengths[order[at]] + new, most) * (REFILLS if new > LONG else 1)
        left = len(order) - at
        size = -(-left // -(-left // size))  # as many shards, but none much smaller than the others
        made.append(order[at : at + size])
        at += size
    return made


Result = TypeVar("Result")


def halving(
    model: TreeModel, tokens: int, most: int = ROWS
) -> Callable[[int, Callable[[int, Progress], Result], Progress], Result]:
    """What makes something of sequences of up to ``longest`` tokens side by side, as many as ``tokens`` allow and ``most``, and where
    memory does not suffice again with half as many; from then on never with more.

    Returns:
        called with ``longest``, with what is to be made (of how many side by side, telling its progress), and whom to tell.
    """

    def run(longest: int, make: Callable[[int, Progress], Result], progress: Progress) -> Result:
        nonlocal most
        while True:
            rows, done = rows_at_once(tokens, longest, most), 0

            def counted(count: int) -> None:
                nonlocal done
                done += count
                progress(count)

            try:
                with out_of_memory(f"{rows} sequence(s) of up to {longest} tokens", model.device):
                    return make(rows, counted)
            except OutOfMemory as error:
                if rows == 1 or model.split_over_processes:  # the others may have had memory enough, and wait
                    raise
                most = rows // 2
                warnings.warn(f"{error}. Going on with {most} sequences at a time instead of {rows}", stacklevel=2)
            progress(-done)
            if model.device.type == "cuda":
                torch.cuda.empty_cache()

    return run
