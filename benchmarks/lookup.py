"""What looking up costs a step: microseconds of the search and its drafts over the length of the text, and their share of a plain step of
the demo with as many sequences at 512 tokens.

    python benchmarks/lookup.py [--device cuda] [-o benchmarks/results/lookup.json]

On a CPU the host searches; "tensors" are the operations of a CUDA graph, run here one after the other (on a GPU they are captured in one).
Texts are of 200 different tokens, so that a place in 200 has to be looked at twice, and their last 12 tokens stood before.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from record import demo, record
from rich.console import Console
from rich.table import Table

from medusa_runtime import MedusaModel
from medusa_runtime.acceptance.rules import GREEDY
from medusa_runtime.book import Lookup
from medusa_runtime.buffers import BookBuffers
from medusa_runtime.decode import prefill
from medusa_runtime.graph import stepper
from medusa_runtime.lookup import draft
from medusa_runtime.tree import CandidateTree
from medusa_tree.devices.measure import synchronize, time_steps

DRAFTS, CONTEXT = 16, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    model = demo(args.device, args.dtype)
    ways = {"host": True, "tensors": False} if model.device.type == "cpu" else {"graph": False}
    table = Table("batch", "tokens", *(f"{way}, us (share of a step)" for way in ways))
    rows = []
    for batch in (1, 16):
        step = 1e6 * plain_step(model, batch)
        for tokens in (128, 512, 2048, 8192, 32768):
            us = {way: 1e6 * seconds(model.device, batch, tokens, host, args.repeats) for way, host in ways.items()}
            table.add_row(str(batch), f"{tokens:,}", *(f"{x:.0f} ({100 * x / step:.1f}%)" for x in us.values()))
            rows.append(
                {"batch": batch, "tokens": tokens, "plain_step_us": step, **{f"{way}_us": x for way, x in us.items()}}
            )
    Console(stderr=True).print(table)
    record("lookup", model, args.out, drafts=DRAFTS, context=CONTEXT, rows=rows)


def plain_step(model: MedusaModel, batch: int) -> float:
    """Seconds of a plain step of so many sequences, at CONTEXT tokens."""
    state = prefill(model, [[1 + i % 200 for i in range(CONTEXT)]] * batch, CONTEXT + 64)
    run = stepper(model, state, BookBuffers.of(CandidateTree(), model.device), GREEDY)
    return float(np.median(time_steps(run, state, [CONTEXT] * batch, 1, 32)[1:]))


@torch.inference_mode()
def seconds(device: torch.device, batch: int, tokens: int, host: bool, repeats: int) -> float:
    """The median time of a lookup in texts of so many tokens."""
    text = torch.randint(0, 200, (batch, tokens), generator=torch.Generator().manual_seed(0))
    text[:, -12:] = text[:, tokens // 3 : tokens // 3 + 12]
    text = text.to(device)
    ends, prompts = torch.full((batch,), tokens, device=device), torch.full((batch,), tokens // 2, device=device)
    none, lookup = torch.zeros(0, dtype=torch.int64, device=device), Lookup()

    def once() -> object:
        return draft(text, ends, prompts, none, lookup, DRAFTS, host)

    if device.type == "cuda":
        once()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            once()
        once = graph.replay
    times = []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        once()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[repeats // 10 :]))


if __name__ == "__main__":
    main()
