"""Peak memory and time of the heads' loss, in chunks and with all logits at once: forward and backward pass.

    python benchmarks/loss_memory.py [--device cuda] [-o benchmarks/results/loss_memory-cpu.json]

Each way runs in a process of its own; the peak is that of the process (on CUDA: of the allocator) less what stood before the loss.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from record import keep
from torch.nn import functional as F

from medusa_runtime import MedusaHeads
from medusa_tree.devices.measure import device_name
from medusa_tree.training.loss import head_losses


def all_at_once(heads: MedusaHeads, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(H,) summed cross-entropies, the logits of every head and token alive together."""
    logits = heads(hidden).float()
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return each.view(heads.num_heads, -1).sum(dim=1)


WAYS = {"chunked": head_losses, "all at once": all_at_once}


def one(way: str, shape: list[int], device: str) -> None:
    """Print one way's peak bytes and seconds."""
    heads_count, tokens, hidden_size, vocab = shape
    torch.manual_seed(0)
    heads = MedusaHeads(hidden_size, vocab, heads_count, device=device)
    hidden = torch.randn(tokens, hidden_size, device=device, requires_grad=True)
    targets = torch.randint(0, vocab, (heads_count, tokens), device=device)
    WAYS[way](heads, hidden[:8], targets[:, :8]).sum().backward()  # gradients allocated, kernels chosen

    def peak() -> int:
        if device.startswith("cuda"):
            return torch.cuda.max_memory_allocated()
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = torch.cuda.memory_allocated() if device.startswith("cuda") else peak()
    begin = time.perf_counter()
    sums = WAYS[way](heads, hidden, targets)
    sums.sum().backward()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    print(json.dumps({"seconds": time.perf_counter() - begin, "peak_bytes": peak() - before, "losses": sums.tolist()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--shape", type=int, nargs=4, default=[4, 2048, 256, 32000], metavar=("HEADS", "TOKENS", "HIDDEN", "VOCAB")
    )
    parser.add_argument("--way", choices=WAYS, help="measure this one here")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    if args.way:
        one(args.way, args.shape, args.device)
        return
    figures = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--device", args.device, "--shape", *map(str, args.shape)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures[way] = json.loads(done.stdout)
        print(f"{way}: {figures[way]['peak_bytes'] / 2**20:,.0f} MiB, {figures[way]['seconds']:.2f} s", file=sys.stderr)
    keep("loss_memory", args.out, {
        "device": device_name(torch.device(args.device)), "dtype": "float32", "heads, tokens, hidden, vocabulary": args.shape,
        "ways": figures, "memory_ratio": figures["all at once"]["peak_bytes"] / figures["chunked"]["peak_bytes"],
        "time_ratio": figures["chunked"]["seconds"] / figures["all at once"]["seconds"],
    })  # fmt: skip


if __name__ == "__main__":
    main()
