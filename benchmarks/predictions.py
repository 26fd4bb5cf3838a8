"""Does what was predicted come true? Three figures of one calibration of the demo, all on held-out prompts:

1. acceptance length of the chosen tree, predicted by replay and measured by decoding every held-out prompt;
2. tokens/s of the chosen tree, predicted from replay and the latency grid, and measured;
3. tokens/s of the best tree of every size of the grid, measured: how far the chosen one is from the best of them.

The machine drifts by more than what is to be shown, so the grid is measured in turns with the decoding: before every round
a part of it. Runs of one prompt follow one another, trees in random order.
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
from medusa_tree.latency import LatencyGrid, LatencyPoint
from medusa_tree.measure import measure, shape_of
from medusa_tree.offers import estimate, full_order
from medusa_tree.plan import Plan, plan
from medusa_tree.profile import profile
from medusa_tree.replay import replay
from medusa_tree.validate import timed_run


def pooled(grids: list[LatencyGrid]) -> LatencyGrid:
    """One grid of several over the same trees: the median of each point's medians, and of its quartiles."""
    by_step: dict[tuple[int, ...], list[LatencyPoint]] = {}
    for p in (p for g in grids for p in g.points):
        by_step.setdefault((p.nodes, p.depth, p.batch, p.context), []).append(p)
    points = [
        LatencyPoint(
            *step, *(float(np.median([getattr(p, name) for p in same])) for name in ("seconds", "low", "high"))
        )
        for step, same in by_step.items()
    ]
    return LatencyGrid(tuple(points), grids[0].device, grids[0].dtype)


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
    fit, held = trace.split()
    context = sorted(map(len, rows))[len(rows) // 2] + new // 2
    prompts = [row for row, h in zip(rows, held_out, strict=True) if h]
    at = np.linspace(0, len(prompts) - 1, args.prompts).astype(int)
    sample = [prompts[i] for i in at]

    def planned(grids: list[LatencyGrid]) -> Plan:
        return plan(Calibration(trace, pooled(grids), {}, shape_of(model)), Budget())

    grids = [measure(model, args.max_nodes, contexts=(context,), seed=0)]
    first = planned(grids).curves[1, context]
    order = full_order(estimate(fit), args.max_nodes, fit.heads)
    sizes = {p.nodes for p in grids[0].points if p.nodes} | {int(first.nodes[first.chosen])}
    depth = dict(zip(first.nodes.tolist(), first.depth.tolist(), strict=True))
    trees = {0: CandidateTree(), **{n: order.cut(n, depth[n]) for n in sorted(sizes) if n in depth}}
    seconds = {n: np.zeros((args.rounds, len(sample))) for n in trees}
    tokens = {n: np.zeros(len(sample)) for n in trees}
    rng = np.random.default_rng(0)
    for r in range(args.rounds):
        if r:
            grids.append(measure(model, args.max_nodes, contexts=(context,), seed=r))
        for i, prompt in enumerate(sample):
            for n in rng.permutation(list(trees)).tolist():
                run = timed_run(model, [prompt], trees[n], new)
                seconds[n][r, i], tokens[n][i] = run.seconds, run.tokens
    best_of = {n: np.median(s, axis=0) for n, s in seconds.items()}  # a prompt's median over the rounds
    rate = {n: float(tokens[n].sum() / best_of[n].sum()) for n in trees}

    made = planned(grids)
    curve = made.curves[1, context]
    swept = np.isin(curve.nodes, list(trees))
    nodes = int(
        curve.nodes[swept][curve.tokens_per_s[swept].argmax()]
    )  # the plan's choice among the sizes that were run
    chosen = trees[nodes]
    latency = pooled(grids).curve(1, context)
    step = float(latency.at(chosen.nodes, chosen.depth))

    # 1. acceptance, on every held-out prompt: in float32 the text, and so every step, is the replayed one
    played = replay(chosen, held)
    steps = np.array([len(model.generate([p], tree=chosen, max_new_tokens=new).emitted[0]) for p in prompts])
    measured = float(held.lengths.sum() / steps.sum())

    # 2 and 3. speed, on the prompts of the sweep
    fastest = max(rate, key=rate.__getitem__)
    low, high = bootstrap(lambda t, s: t / s, tokens[nodes], best_of[nodes])
    behind, behind_low, behind_high = rate_ratio(tokens[nodes], best_of[nodes], tokens[fastest], best_of[fastest])
    here = replay(chosen, held.select(np.isin(np.arange(len(prompts)), at))).acceptance_length
    predicted = here / step
    record(
        "predictions", model, args.output, nodes=nodes, depth=chosen.depth, planned_nodes=int(curve.nodes[curve.chosen]), held_out_prompts=len(prompts), sweep_prompts=len(sample),
        max_new_tokens=new, rounds=args.rounds,
        acceptance={"predicted": played.acceptance_length, "measured": measured, "off_by": measured / played.acceptance_length - 1,
                    "sequences_with_other_steps": int((steps != played.steps).sum())},
        tokens_per_s={"predicted": predicted, "measured": rate[nodes], "interval": [float(low), float(high)], "off_by": rate[nodes] / predicted - 1},
        plain_tokens_per_s={"predicted": 1 / latency.plain.seconds, "measured": rate[0]},
        speedup={"predicted": here * latency.plain.seconds / step, "measured": rate[nodes] / rate[0]},
        chosen_over_fastest={"fastest_nodes": fastest, "ratio": behind, "low": behind_low, "high": behind_high},
        measured_tokens_per_s_by_nodes={str(n): rate[n] for n in sorted(rate)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
