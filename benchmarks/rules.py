"""Acceptance length predicted and measured under each rule, on the demo's held-out prompts.

    python benchmarks/rules.py [--device cuda] [-o benchmarks/results/rules.json]

Each rule has a trace and a tree of its own. Sampling is measured with the calibrated seed, whose text the trace holds, and with
others, which the prediction is for in expectation; intervals are of prompts resampled. Typical acceptance is also measured with trees of half and of twice the
size, whose text is not the one that was replayed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from record import record

from medusa_runtime import Greedy, MedusaModel, Sampling, Typical, generate
from medusa_runtime.acceptance.rules import Rule
from medusa_runtime.tree import CandidateTree
from medusa_tree.bundled import resolve_corpus, resolve_model
from medusa_tree.planning.offers import estimate, full_order
from medusa_tree.profiling.corpus import hold_out, read_corpus
from medusa_tree.profiling.probe import retake, take_trace
from medusa_tree.profiling.tokens import tokenize
from medusa_tree.traces.bootstrap import bootstrap
from medusa_tree.traces.probetrace import ProbeTrace
from medusa_tree.traces.replay import Replay, replay

RULES = (Greedy(), Sampling(0.7, seed=0), Sampling(1.0, seed=0), Sampling(1.0, top_p=0.9, seed=0), Typical())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, help="use only the first N prompts")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3, help="other seeds than the calibrated one")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    where, heads = resolve_model("demo", None)
    model = MedusaModel.from_pretrained(where, heads, dtype=args.dtype, device=args.device)
    texts = read_corpus(resolve_corpus("demo"))[: args.prompts]
    held_out = hold_out(texts, 0.25, seed=0)
    rows = tokenize(texts, model.tokenizer, 512)
    held, new = np.flatnonzero(held_out).tolist(), args.max_new_tokens

    def steps(tree: CandidateTree, rule: Rule) -> np.ndarray:
        """Steps that decoding each held-out prompt takes."""
        return np.array([len(generate(model, [rows[i]], tree, new, rule=rule, streams=[i]).emitted[0]) for i in held])

    def beside(predicted: Replay, *runs: np.ndarray) -> dict[str, Any]:
        taken = np.mean(runs, axis=0)
        length = float(predicted.tokens.sum() / taken.sum())
        low, high = bootstrap(lambda ours, theirs: theirs / ours - 1, taken, predicted.steps)
        return {
            "predicted": predicted.acceptance_length, "measured": length, "off_by": length / predicted.acceptance_length - 1,
            "off_by_interval": [float(low), float(high)], "sequences_with_other_steps": int((taken != predicted.steps).sum()),
        }  # fmt: skip

    found = {}
    for rule in RULES:
        trace = take_trace(model, rows, held_out, new, 10, rule)
        order = full_order(estimate(trace.split()[0]), 2 * args.nodes, trace.heads)
        tree = order.cut(args.nodes)
        if isinstance(trace, ProbeTrace):
            trace = retake(model, rows, trace, tree, new)
        own = trace.split()[1]
        figures = beside(replay(tree, own), steps(tree, rule))
        if isinstance(rule, Sampling):
            others = [steps(tree, replace(rule, seed=s)) for s in range(1, 1 + args.seeds)]
            figures["other_seeds"] = beside(replay(tree, own), *others)
        if isinstance(rule, Typical):
            for nodes in (args.nodes // 2, 2 * args.nodes):
                figures[f"text_of_{nodes}_nodes"] = beside(replay(order.cut(nodes), own), steps(order.cut(nodes), rule))
        found[str(rule)] = figures
    record(
        "rules",
        model,
        args.out,
        nodes=args.nodes,
        other_seeds=args.seeds,
        held_out_prompts=len(held),
        max_new_tokens=new,
        rules=found,
    )


if __name__ == "__main__":
    main()
