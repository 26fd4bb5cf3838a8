"""Memory over a long run: a batch of demo prompts decoded again and again until so many tokens have come out.

    python benchmarks/memory.py [--tokens 100000] [--device cuda] [-o benchmarks/results/memory.json]

Prints the process's resident memory, and on a GPU the allocator's, after every twentieth part, from the first on; the first
holds what is allocated once. ``..._growth_mb`` is the last less the second.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

import torch
from record import demo, record

from medusa_tree.bundled import resolve_corpus
from medusa_tree.devices.sizes import bushy_tree
from medusa_tree.profiling.corpus import read_corpus
from medusa_tree.profiling.tokens import tokenize


def resident_mb() -> float:
    """The process's resident memory now, from /proc; where there is none, the most it ever was."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(text for text in status.read_text().splitlines() if text.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--nodes", type=int, default=14)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    model = demo(args.device, args.dtype)
    tree = bushy_tree(args.nodes, 3, 10)
    prompts = tokenize(read_corpus(resolve_corpus("demo")), model.tokenizer, 512)
    done, places, marks = 0, 0, []
    while done < args.tokens:
        rows = [prompts[(places + i) % len(prompts)] for i in range(args.batch)]
        places += args.batch
        done += sum(map(len, model.generate(rows, tree=tree, max_new_tokens=256, eos_token_id=[]).tokens))
        if done * 20 >= args.tokens * (len(marks) + 1):
            mark = {"tokens": done, "resident_mb": round(resident_mb(), 1)}
            if model.device.type == "cuda":
                mark["allocated_mb"] = round(torch.cuda.memory_allocated() / 2**20, 1)
                mark["reserved_mb"] = round(torch.cuda.memory_reserved() / 2**20, 1)
            marks.append(mark)
    growth = {
        name.replace("_mb", "_growth_mb"): round(marks[-1][name] - marks[1][name], 1)
        for name in marks[0]
        if name != "tokens"
    }
    record("memory", model, args.out, batch=args.batch, nodes=tree.nodes, marks=marks, **growth)


if __name__ == "__main__":
    main()
