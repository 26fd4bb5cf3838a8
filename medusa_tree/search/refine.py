"""Refinements of the greedy tree for what decoding visits: re-estimation to a fixed point, and single-node swaps.

A step that accepts much jumps over easy positions, so those that decoding visits are harder than the average
(design: Replay). Both refinements depend on the tree's size; what they are worth is in benchmarks/estimators.py.
"""

from __future__ import annotations

import numpy as np

from medusa_runtime.tree import CandidateTree, Path

from ..traces.replay import replay, replay_lengths, visited_by
from ..traces.table import PathCounts
from ..traces.trace import RankTrace
from .order import greedy_order, joint_frequencies

PAIRS = 8  # leaves and candidates tried against one another in a round


def visited_tree(
    trace: RankTrace, nodes: int, kappa: float, depth: int | None = None, rounds: int = 8
) -> CandidateTree:
    """The greedy tree of the positions that it visits itself.

    From the tree of all positions: decode on paper, count paths where steps begin, order again, until the tree comes
    back (a fixed point, or a cycle). Of the trees on the way, the one that replays best on ``trace``.
    """
    tree = CandidateTree(greedy_order(joint_frequencies(trace, kappa), nodes, depth)[0])
    seen: dict[frozenset[Path], tuple[float, CandidateTree]] = {}
    for _ in range(rounds):
        key = frozenset(tree.paths)
        if key in seen:
            break
        seen[key] = (replay(tree, trace).acceptance_length, tree)
        expand = joint_frequencies(trace, kappa, visited_by(tree, trace))
        tree = CandidateTree(greedy_order(expand, nodes, depth)[0])
    return max(seen.values(), key=lambda found: found[0])[1]


def swap_nodes(
    tree: CandidateTree, fit: RankTrace, check: RankTrace, depth: int | None = None, rounds: int = 64
) -> CandidateTree:
    """Exchange single leaves for absent children while that replays better on ``fit`` and holds on ``check``.

    Each round tries the least visited leaves against the most followed absent children, in replay; the best pair that
    ``check`` confirms is taken, and the search ends where there is none.
    """
    best = replay(tree, fit).acceptance_length
    confirmed = replay(tree, check).acceptance_length
    for _ in range(rounds):
        pairs = _pairs(tree, fit, depth or fit.heads)
        if not pairs:
            break
        lengths = replay_lengths(np.stack([fit.table.accepted(t) for t in pairs], axis=1), fit)
        for i in np.argsort(-lengths):
            if lengths[i] <= best:
                return tree
            held = replay(pairs[i], check).acceptance_length
            if held > confirmed:
                tree, best, confirmed = pairs[i], float(lengths[i]), held
                break
        else:
            break
    return tree


def _pairs(tree: CandidateTree, trace: RankTrace, depth: int) -> list[CandidateTree]:
    """The tree with one of its least visited leaves replaced by one of the most followed absent children."""
    weights = trace.table.weights(visited_by(tree, trace))
    counts = PathCounts(trace.table.rows, weights, trace.candidates)
    inside = set(tree.paths)
    parents = {p[:-1] for p in tree.paths}
    leaves = sorted((p for p in tree.paths if p not in parents), key=counts.of)[:PAIRS]
    absent = [
        (int(n), (*path, rank))
        for path in [(), *tree.paths]
        if len(path) < depth
        for rank, n in enumerate(counts.children(path))
        if n > 0 and (*path, rank) not in inside
    ]
    entering = [path for _, path in sorted(absent, reverse=True)[:PAIRS]]
    return [
        CandidateTree.by_depth((inside - {leaf}) | {path}) for leaf in leaves for path in entering if path[:-1] != leaf
    ]
