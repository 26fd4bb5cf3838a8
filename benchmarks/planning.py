"""How long planning takes and how much memory, from 100,000 positions to 10 million, and how both grow.

The trace is drawn, not profiled: ranks by head as a 7B model's heads have them, an easy and a hard stretch in turns, so
that heads err together. Each size runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from record import keep

from medusa_runtime.tree import CandidateTree
from medusa_tree.devices.roofline import model_device
from medusa_tree.devices.shape import ModelShape
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.calibration import Calibration
from medusa_tree.planning.plan import plan
from medusa_tree.search.order import greedy_order, product_frequencies
from medusa_tree.traces.replay import replay
from medusa_tree.traces.trace import RankTrace, head_accuracy

SIZES = (100_000, 1_000_000, 10_000_000)
T = TypeVar("T")
HEADS, CANDIDATES, NODES, BATCHES = 5, 10, 1024, (1, 2, 4, 8, 16, 32, 64)
LLAMA_7B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip


def drawn_trace(positions: int, length: int) -> RankTrace:
    """Ranks fall off geometrically, slower from head to head, and faster on the easy half of stretches of 16."""
    rng = np.random.default_rng(0)
    ranks = np.empty((positions, HEADS), dtype=np.int16)
    easy = (np.arange(positions) // 16) % 2 == 0
    for k in range(HEADS):
        miss_rate = np.where(easy, 0.25, 0.55) + 0.07 * k
        drawn = np.floor(np.log(rng.random(positions)) / np.log(np.minimum(miss_rate, 0.9)))
        ranks[:, k] = np.where(drawn < CANDIDATES, drawn, -1)
    starts = np.append(np.arange(0, positions, length), positions)
    return RankTrace(ranks, starts, np.arange(len(starts) - 1) % 4 == 0, CANDIDATES)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def timed(call: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What ``call`` returns, and its seconds on the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    result = call()
    return result, {
        "clock": round(time.perf_counter() - clock, 3),
        "processor": round(time.process_time() - processor, 3),
    }


def once(positions: int, length: int) -> dict[str, Any]:
    """Seconds, on the clock and of the processor, and peak memory of one replay and of one plan of a trace in memory."""
    trace = drawn_trace(positions, length)
    shape = ModelShape.from_config(LLAMA_7B, heads=HEADS)
    calibration = Calibration(trace, model_device("h100-sxm", shape, overhead=1e-3, max_nodes=NODES), {}, shape)
    tree = CandidateTree(greedy_order(product_frequencies(head_accuracy(trace)), 64)[0])
    played, first = timed(lambda: replay(tree, trace))  # tabulates the rows, too
    _, again = timed(lambda: replay(tree, trace))
    made, planned = timed(lambda: plan(calibration, Budget(), [(b, 1024) for b in BATCHES]))
    return {
        "positions": positions, "sequence_length": length, "distinct_rows": len(trace.table.rows), "acceptance_length": played.acceptance_length,
        "replay_s": first, "replay_again_s": again, "plan_s": planned, "nodes": [p.nodes for p in made.contents.operating_points], "peak_gb": peak_gb(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", type=int, nargs=2, metavar=("POSITIONS", "LENGTH"), help="one size, in this process")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(once(*args.once)))
        return
    runs = []
    for positions, length in [*((p, 128) for p in SIZES), (SIZES[-1], SIZES[-1] // 2)]:
        out = subprocess.run(
            [sys.executable, __file__, "--once", str(positions), str(length)],
            capture_output=True,
            text=True,
            check=True,
        )
        runs.append(json.loads(out.stdout))
        print(out.stdout, end="", flush=True)
    keep(
        "planning",
        args.output,
        {"heads": HEADS, "candidates": CANDIDATES, "max_nodes": NODES, "batches": BATCHES, "runs": runs},
    )


if __name__ == "__main__":
    main()
