"""Sequoia's dynamic programme (Chen et al., 2024, arXiv 2402.12374, §4.1), to set its trees beside the greedy ones.

Sequoia takes a child's chance to depend on its rank alone, p_i for the i-th child of any node, and finds the tree of n
nodes that accepts most by dynamic programming over sizes. Here p may also differ by level, as heads do.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medusa_runtime.tree import CandidateTree, Path


def sequoia_tree(chances: npt.NDArray[np.float64], nodes: int) -> CandidateTree:
    """The best tree of ``nodes`` nodes (root not counted) under chances (H, K) of the i-th child at each level.

    value[d][m]: the most expected tokens below a node at depth d that has m nodes below it. Its children are taken in
    rank order: with the first i of them settled, best[m] is what m nodes give, and the next child takes s of them.
    """
    heads, candidates = chances.shape
    value = np.zeros((heads + 1, nodes + 1))
    value[heads, 1:] = -np.inf  # nothing can stand below the last head
    taken = np.zeros((heads, candidates, nodes + 1), dtype=np.int64)
    for depth in range(heads - 1, -1, -1):
        best = np.full(nodes + 1, -np.inf)
        best[0] = 0.0
        for rank in range(candidates):
            grown = best.copy()  # this child left out: so are those behind it, as chances fall
            for size in range(1, nodes + 1):  # the child and what is below it
                gain = chances[depth, rank] * (1 + value[depth + 1, size - 1])
                if np.isfinite(gain):
                    candidate = best[: nodes + 1 - size] + gain
                    better = candidate > grown[size:]
                    grown[size:][better] = candidate[better]
                    taken[depth, rank, size:][better] = size
            best = grown
        value[depth] = best
    paths: list[Path] = []
    stack: list[tuple[Path, int]] = [((), nodes)]
    while stack:
        path, left = stack.pop()
        for rank in range(candidates - 1, -1, -1):
            size = int(taken[len(path), rank, left]) if left else 0
            if size:
                paths.append((*path, rank))
                stack.append(((*path, rank), size - 1))
                left -= size
    return CandidateTree.by_depth(paths)
