"""What each idea for choosing a tree is worth: product, joint, visited, swapped and Sequoia trees at several sizes.

Four folds of whole sequences (neighbours together, as prompts of one file stand together): each tree is fitted on
three, replayed on the fourth, and the four replays are joined, so that every sequence counts once as held out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from record import keep
from sequoia import sequoia_tree

from medusa_runtime.tree import CandidateTree
from medusa_tree.planning.offers import estimate
from medusa_tree.search.order import choose_kappa, greedy_order, joint_frequencies, product_frequencies
from medusa_tree.search.refine import swap_nodes, visited_tree
from medusa_tree.traces.replay import Replay, replay
from medusa_tree.traces.trace import RankTrace, head_accuracy
from medusa_tree.traces.tracefile import read_trace

FOLDS = 4
Fitted = tuple[CandidateTree, float]  # and the acceptance length that its own estimator predicts


def product(fit: RankTrace, nodes: int) -> Fitted:
    paths, f = greedy_order(product_frequencies(head_accuracy(fit)), nodes)
    return CandidateTree(paths), 1 + float(f.sum())


def joint(fit: RankTrace, nodes: int) -> Fitted:
    paths, f = greedy_order(joint_frequencies(fit, choose_kappa(fit)), nodes)
    return CandidateTree(paths), 1 + float(f.sum())


def visited(fit: RankTrace, nodes: int) -> Fitted:
    tree = visited_tree(fit, nodes, choose_kappa(fit))
    return tree, replay(tree, fit).acceptance_length


def swapped(fit: RankTrace, nodes: int) -> Fitted:
    one, other = fit.halves()
    tree = swap_nodes(visited_tree(fit, nodes, choose_kappa(fit)), one, other)
    return tree, replay(tree, fit).acceptance_length


def one_order(fit: RankTrace, nodes: int) -> Fitted:
    """The plan's: the order for what a tree of 64 nodes visits, cut."""
    estimator = estimate(fit)
    tree = CandidateTree(greedy_order(estimator.expand, nodes)[0])
    return tree, replay(tree, fit).acceptance_length


def sequoia(fit: RankTrace, nodes: int) -> Fitted:
    """Sequoia's own assumption: one chance a rank, whatever the level."""
    accuracy = head_accuracy(fit)
    pooled = np.broadcast_to(accuracy.mean(axis=0), accuracy.shape)
    tree = sequoia_tree(pooled, nodes)
    return tree, 1 + float(sum(np.prod([pooled[k, r] for k, r in enumerate(p)]) for p in tree.paths))


ESTIMATORS: dict[str, Callable[[RankTrace, int], Fitted]] = {
    "product": product, "joint": joint, "visited": visited, "swapped": swapped, "one order": one_order, "sequoia": sequoia,
}  # fmt: skip


def study(trace: RankTrace, sizes: list[int]) -> list[dict[str, object]]:
    """One row a size and estimator: predicted, held-out replay with its interval, and the difference to joint."""
    fold = np.arange(len(trace.lengths)) * FOLDS // len(trace.lengths)
    rows: list[dict[str, object]] = []
    for nodes in sizes:
        played: dict[str, Replay] = {}
        predicted: dict[str, float] = {}
        for name, estimator in ESTIMATORS.items():
            steps = np.zeros(len(trace.lengths), dtype=np.int64)
            told = []
            for k in range(FOLDS):
                tree, said = estimator(trace.select(fold != k), nodes)
                steps[fold == k] = replay(tree, trace.select(fold == k)).steps
                told.append(said)
            played[name], predicted[name] = Replay(trace.lengths, steps), float(np.mean(told))
        for name, r in played.items():
            more, low, high = r.less(played["joint"])
            rows.append(
                {
                    "nodes": nodes, "estimator": name, "predicted": round(predicted[name], 4), "held_out": round(r.acceptance_length, 4),
                    "held_out_interval": [round(x, 4) for x in r.interval()], "less_joint": round(more, 4), "less_joint_interval": [round(low, 4), round(high, 4)],
                }
            )  # fmt: skip
            print(
                f"{nodes:4} {name:10} predicted {predicted[name]:.3f}  held out {r.acceptance_length:.3f} ({r.interval()[0]:.3f} to {r.interval()[1]:.3f})  "
                f"less joint {more:+.3f} ({low:+.3f} to {high:+.3f})",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, help="the .calibration.npz of calibrate, or any rank trace")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    trace = read_trace(args.trace)
    keep("estimators", args.output, {
        "trace": args.trace.name, "positions": trace.positions, "sequences": len(trace.lengths),
        "heads": trace.heads, "candidates": trace.candidates, "folds": FOLDS, "rows": study(trace, args.sizes),
    })  # fmt: skip


if __name__ == "__main__":
    main()
