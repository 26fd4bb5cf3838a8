"""How well a tie is told from a fault: the judgement of validate on the demo's held-out prompts, in half precision.

    python benchmarks/ties.py [--dtype bfloat16] [-o benchmarks/results/ties.json]

- Every position of the plain texts: how many could part and be called a tie, by the rule in use and by 8 steps of the dtype.
- Right texts: the plain ones against plain ones and tree's from batches of several sizes. What is no tie there is a false alarm.
- Faulty texts: the same against a tree's with a fault in positions, mask or cache. What is a tie there is a miss.
- Acceptance: of subsets of the prompts, how many a right tree fails.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from record import record

from medusa_runtime import MedusaModel
from medusa_runtime.attention import TreeMask
from medusa_runtime.buffers import TreeBuffers
from medusa_runtime.cache.cache import TreeCache
from medusa_runtime.decode import Generation, generate
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Estimate
from medusa_tree.bundled import resolve_corpus, resolve_model
from medusa_tree.planning.offers import estimate, full_order
from medusa_tree.profiling.corpus import hold_out, read_corpus
from medusa_tree.profiling.profile import profile
from medusa_tree.profiling.tokens import tokenize
from medusa_tree.traces.replay import replay
from medusa_tree.validation.acceptance import Acceptance
from medusa_tree.validation.partings import Partings
from medusa_tree.validation.reference import Reference
from medusa_tree.validation.ties import TIE, Noise, judge

PLAIN = CandidateTree()
ULPS = 8
Text = list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, help="use only the first N prompts, held out or not")
    parser.add_argument("--faulty", type=int, default=32, help="held-out prompts decoded with faults")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    where, heads = resolve_model("demo", None)
    model = MedusaModel.from_pretrained(where, heads, dtype=args.dtype, device=args.device)
    texts = read_corpus(resolve_corpus("demo"))[: args.prompts]
    held_out, new = hold_out(texts, 0.25, seed=0), args.max_new_tokens
    every = tokenize(texts, model.tokenizer, 512)
    trace = profile(model, every, held_out, new)
    tree = full_order(estimate(trace.split()[0]), args.nodes, trace.heads).cut(args.nodes)
    rows = [r for r, h in zip(every, held_out, strict=True) if h]
    reference = Reference(model)

    def decode(tree: CandidateTree, batch: int, prompts: list[Text]) -> Generation:
        whole = Generation()
        for i in range(0, len(prompts), batch):
            part = generate(model, prompts[i : i + batch], tree, new)
            whole.tokens += part.tokens
            whole.emitted += part.emitted
        return whole

    plain = decode(PLAIN, 1, rows).tokens

    def against(others: list[Text]) -> dict[str, Any]:
        """What becomes of texts; p for each of the two rates that they may part at."""
        before = plain[: len(others)]
        found = judge(reference, rows[: len(others)], before, others)
        gaps = [d.gap / d.noise for d in found.differences]
        rate, usual = Partings.between(before, others), Partings.between(before, own[: len(others)])
        return {
            **rate.to_json(), "no_ties": sum(not d.near_tie for d in found.differences), "widest": max(gaps, default=0.0),
            "rounding_per_1000_tokens": 1e3 * found.rounding, "p_plain": rate.beyond(usual), "p_rounding": rate.by_rounding(found.rounding),
        }  # fmt: skip

    right = {}
    own = decode(PLAIN, 16, rows).tokens
    for batch in (2, 4, 16, len(rows)):
        right[f"plain, batch {batch}"] = against(own if batch == 16 else decode(PLAIN, batch, rows).tokens)
    with_tree = {batch: decode(tree, batch, rows) for batch in (1, 4)}
    for batch, made in with_tree.items():
        right[f"tree, batch {batch}"] = against(made.tokens)
    faulty = {}
    few = rows[: args.faulty]
    for name, fault in faults(tree).items():
        with fault():
            made = decode(tree, 1, few).tokens
        faulty[name] = against(made)
        print(name, faulty[name], flush=True)
    record(
        "ties", model, args.out, nodes=args.nodes, held_out_prompts=len(rows), max_new_tokens=new, tie=TIE,
        excused=excused(reference, rows, plain), right=right, faulty=faulty,
        acceptance_failed=failed(tree, with_tree[1], trace.split()[1]),
    )  # fmt: skip


def excused(reference: Reference, rows: list[Text], plain: list[Text]) -> dict[str, Any]:
    """Of all positions, the share at which the two best tokens are within a tie."""
    noise, gaps, steps = Noise(), [], []
    for prompt, text in zip(rows, plain, strict=True):
        own, wide = reference.logits([*prompt, *text[:-1]], len(text))
        noise.add(own, wide)
        gaps.append(-wide.topk(2).values.diff(dim=-1)[:, 0])
        ulp = torch.finfo(reference.model.dtype).eps * 2.0 ** own.abs().amax(dim=-1).log2().floor()
        steps.append(-own.topk(2).values.diff(dim=-1)[:, 0] <= ULPS * ulp)
    gap, near = torch.cat(gaps), torch.cat(steps)
    return {
        "positions": len(gap), "noise": float(noise), "by_rule": float((gap <= TIE * float(noise)).double().mean()),
        f"by_{ULPS}_steps_of_the_dtype": float(near.double().mean()),
    }  # fmt: skip


def failed(tree: CandidateTree, made: Generation, trace: Any) -> dict[int, float]:
    """The share of random subsets of the prompts whose acceptance length is called another than predicted, by their size."""
    played, rng = replay(tree, trace), np.random.default_rng(0)
    shares = {}
    for size in (1, 4, 8, 16, 32):
        draws = [np.sort(rng.permutation(len(made.emitted))[:size]) for _ in range(200)]
        bad = [
            not Acceptance.of(
                [made.emitted[i] for i in chosen],
                Estimate(1.0, 1.0, 1.0),
                replace(played, tokens=played.tokens[chosen], steps=played.steps[chosen]),
            ).as_predicted
            for chosen in draws
        ]
        shares[size] = float(np.mean(bad))
    return shares


def faults(tree: CandidateTree) -> dict[str, Callable[[], Any]]:
    """Faults by name, each a context in which decoding with a tree has it."""
    deep = next(i for i, p in enumerate(tree.paths, start=1) if len(p) == 2)
    parent = int(tree.parents[deep])
    of = TreeBuffers.of.__func__

    def with_mask(change: Callable[[TreeMask], TreeMask]) -> Callable[[], Any]:
        def changed(cls: type[TreeBuffers], tree: CandidateTree, device: torch.device) -> TreeBuffers:
            made = of(cls, tree, device)
            return replace(made, mask=change(made.mask)) if tree.nodes else made

        return lambda: patch.object(TreeBuffers, "of", classmethod(changed))

    def moved(by: int, root: bool = False) -> Callable[[], Any]:
        def change(mask: TreeMask) -> TreeMask:
            depths = mask.depths + by * (root | (torch.arange(mask.depths.shape[1], device=mask.depths.device) > 0))
            return TreeMask(depths, mask.ancestors, mask.bits)

        return with_mask(change)

    def flipped(row: int, column: int) -> Callable[[], Any]:
        def change(mask: TreeMask) -> TreeMask:
            ancestors, bits = mask.ancestors.clone(), mask.bits.clone()
            ancestors[:, row, column] ^= True
            bits[:, row, column // 32] ^= 1 << column % 32
            return TreeMask(mask.depths, ancestors, bits)

        return with_mask(change)

    @contextmanager
    def uncompacted() -> Iterator[None]:
        with patch.object(TreeCache, "keep", lambda *args: None):
            yield

    return {
        "nodes a position late": moved(1), "nodes a position early": moved(-1), "all a position late": moved(1, True),
        "the first node does not see the root": flipped(1, 0), "the root sees the first node": flipped(0, 1),
        "a node does not see its parent": flipped(deep, parent), "a node sees another's child": flipped(parent % 2 + 1, deep),
        "no compaction": uncompacted,
    }  # fmt: skip


if __name__ == "__main__":
    main()
