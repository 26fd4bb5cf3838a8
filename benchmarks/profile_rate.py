"""Positions profiled a second: the batched profile against decoding and ranking one token at a time at batch 1.

python benchmarks/profile_rate.py [--device cuda] [-o benchmarks/results/profile_rate.json]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from record import demo, record

from medusa_runtime import CandidateTree, MedusaModel
from medusa_runtime.buffers import BookBuffers
from medusa_runtime.decode import prefill
from medusa_runtime.step import propose, step
from medusa_tree.bundled import resolve_corpus
from medusa_tree.profiling.corpus import read_corpus
from medusa_tree.profiling.profile import profile
from medusa_tree.profiling.tokens import tokenize


@torch.inference_mode()
def one_at_a_time(model: MedusaModel, prompt: list[int], new: int) -> list[list[int]]:
    """A loop as one would first write it: a token, its heads' guesses, the ranks when the truth is known."""
    plain = BookBuffers.of(CandidateTree(), model.device)
    state = prefill(model, [prompt], len(prompt) + new)
    guesses, tokens = [], []
    for _ in range(new):
        guesses.append(propose(model.medusa_heads, state.hidden, model.num_heads, 10)[:, 0].tolist())
        tokens.append(int(state.root))
        step(model, state, plain)
    return [
        [g.index(tokens[p + k]) if tokens[p + k] in g else -1 for k, g in enumerate(guesses[p], start=1)]
        for p in range(new - model.num_heads)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    model = demo(args.device, args.dtype)
    prompts = sorted(tokenize(read_corpus(resolve_corpus("demo")), model.tokenizer, 512), key=len)[:128]
    new, slow_rates, fast_rates = 128, [], []
    one_at_a_time(model, prompts[0], 16)
    for r in range(args.rounds):
        begin = time.perf_counter()
        positions = sum(len(one_at_a_time(model, prompts[i], new)) for i in (r, 64 + r))
        slow_rates.append(positions / (time.perf_counter() - begin))
        begin = time.perf_counter()
        trace = profile(model, prompts, [False] * len(prompts), max_new_tokens=new)
        fast_rates.append(trace.positions / (time.perf_counter() - begin))
    ratios = sorted(f / s for f, s in zip(fast_rates, slow_rates, strict=True))
    record(
        "profile_rate",
        model,
        args.out,
        positions_per_s={"profile": max(fast_rates), "one_token_at_a_time": max(slow_rates)},
        ratio={"median": ratios[len(ratios) // 2], "low": ratios[0], "high": ratios[-1]},
    )


if __name__ == "__main__":
    main()
