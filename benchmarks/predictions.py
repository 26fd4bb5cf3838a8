"""Does what was predicted come true? Three figures of one calibration of the demo, all on held-out prompts:

1. acceptance length of the chosen tree, predicted by replay and measured by decoding every held-out prompt;
2. tokens/s of the chosen tree, predicted from replay and the latency grid, and measured;
3. tokens/s of the best tree of every size of the grid, measured: how far the chosen one is from the best of them.

Runs of one prompt follow one another, trees in random order, so that a drift of the machine falls on all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from record import record

from medusa_runtime import MedusaModel
from medusa_runtime.tree import CandidateTree
from medusa_tree.bootstrap import bootstrap, rate_ratio
from medusa_tree.budget import Budget
from medusa_tree.bundled import resolve_corpus, resolve_model
from medusa_tree.calibration import Calibration
from medusa_tree.corpus import hold_out, read_corpus, tokenize
from medusa_tree.measure import measure, shape_of
from medusa_tree.offers import estimate, full_order
from medusa_tree.plan import plan
from medusa_tree.profile import profile
from medusa_tree.replay import replay
from medusa_tree.validate import timed_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--max-nodes", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=24, help="held-out prompts of the sweep over sizes")
    parser.add_argument("--rounds", type=int, default=3, help="times each of them is decoded with each tree")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    where, heads = resolve_model("demo", None)
    model = MedusaModel.from_pretrained(where, heads, dtype=args.dtype, device=args.device)
    texts = read_corpus(resolve_corpus("demo"))
    held_out = hold_out(texts, 0.25, seed=0)
    rows = tokenize(texts, model.tokenizer, 512)
    new = args.max_new_tokens

    trace = profile(model, rows, held_out, new)
    context = sorted(map(len, rows))[len(rows) // 2] + new // 2
    grid = measure(model, args.max_nodes, contexts=(context,))
    made = plan(Calibration(trace, grid, {}, shape_of(model)), Budget())
    fit, held = trace.split()
    point, curve = made.contents.operating_points[0], made.curves[1, context]
    chosen = made.contents.tree_of(point)
    prompts = [row for row, h in zip(rows, held_out, strict=True) if h]

    # 1. acceptance, on every held-out prompt: in float32 the text, and so every step, is the replayed one
    played = replay(chosen, held)
    steps = np.array([len(model.generate([p], tree=chosen, max_new_tokens=new).emitted[0]) for p in prompts])
    measured = float(held.lengths.sum() / steps.sum())

    # 2 and 3. speed of the best tree of each size
    order = full_order(estimate(fit), args.max_nodes, fit.heads)
    sizes = sorted({p.nodes for p in grid.points if p.nodes})
    depth = dict(zip(curve.nodes.tolist(), curve.depth.tolist(), strict=True))
    trees = {0: CandidateTree(), **{n: order.cut(n, depth[n]) for n in sizes if n in depth}, point.nodes: chosen}
    sample = [prompts[i] for i in np.linspace(0, len(prompts) - 1, args.prompts).astype(int)]
    seconds, tokens = (
        {n: np.zeros((args.rounds, len(sample))) for n in trees},
        {n: np.zeros(len(sample)) for n in trees},
    )
    rng = np.random.default_rng(0)
    for tree in trees.values():
        timed_run(model, [sample[0]], tree, 16)
    for r in range(args.rounds):
        for i, prompt in enumerate(sample):
            for n in rng.permutation(list(trees)).tolist():
                run = timed_run(model, [prompt], trees[n], new)
                seconds[n][r, i], tokens[n][i] = run.seconds, run.tokens
    best_of = {n: np.median(s, axis=0) for n, s in seconds.items()}  # a prompt's median over the rounds
    rate = {n: float(tokens[n].sum() / best_of[n].sum()) for n in trees}
    fastest = max(rate, key=rate.__getitem__)
    low, high = bootstrap(lambda t, s: t / s, tokens[point.nodes], best_of[point.nodes])
    behind, behind_low, behind_high = rate_ratio(
        tokens[point.nodes], best_of[point.nodes], tokens[fastest], best_of[fastest]
    )
    on_sample = replay(
        chosen,
        held.select(np.isin(np.arange(len(prompts)), np.linspace(0, len(prompts) - 1, args.prompts).astype(int))),
    )
    predicted_here = on_sample.acceptance_length / point.step_latency_ms.value * 1e3
    record(
        "predictions", model, args.output, nodes=point.nodes, depth=point.depth, held_out_prompts=len(prompts), sweep_prompts=len(sample),
        max_new_tokens=new, rounds=args.rounds,
        acceptance={"predicted": played.acceptance_length, "measured": measured, "off_by": measured / played.acceptance_length - 1,
                    "sequences_with_other_steps": int((steps != played.steps).sum())},
        tokens_per_s={"predicted": predicted_here, "measured": rate[point.nodes], "interval": [float(low), float(high)],
                      "off_by": rate[point.nodes] / predicted_here - 1, "predicted_on_all_held_out": point.tokens_per_s.value},
        speedup={"predicted": point.speedup.value, "measured": rate[point.nodes] / rate[0]},
        chosen_over_fastest={"fastest_nodes": fastest, "ratio": behind, "low": behind_low, "high": behind_high},
        measured_tokens_per_s_by_nodes={str(n): rate[n] for n in sorted(rate)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
