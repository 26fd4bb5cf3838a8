"""Path frequencies from a rank trace, and the ordered tree that the greedy search makes of them.

E[L] = 1 + sum of f(v) over the tree's nodes, and f never grows along a path: the N best nodes form a tree,
which is the best tree of N nodes (Medusa, arXiv 2401.10774, §2.3.3, where f is the product of accuracies).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from medusa_runtime.tree import Path

from ..traces.table import PathCounts
from ..traces.trace import RankTrace, head_accuracy

Expand = Callable[[Path], npt.NDArray[np.float64]]

KAPPAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, float("inf"))
ENOUGH = 500_000  # positions that settle a choice between estimators or sizes; more only take time


def greedy_order(
    expand: Expand, nodes: int, depth: int | None = None
) -> tuple[tuple[Path, ...], npt.NDArray[np.float64]]:
    """The ``nodes`` most frequent paths, most frequent first, each parent before its children.

    Args:
        expand: path -> (K,) frequencies of its children by rank, none above the path's own; empty at the last head.
        depth: longest path to take; by default any.

    Returns:
        paths in order, and their frequencies (nodes,), which never rise. Fewer where no more paths have f > 0.
    """
    paths: list[Path] = []
    frequencies: list[float] = []
    heap: list[tuple[float, int, Path]] = []

    def push(path: Path) -> None:
        if depth is not None and len(path) == depth:
            return
        for rank, f in enumerate(expand(path)):
            if f > 0:
                heapq.heappush(heap, (-f, len(path) + 1, (*path, rank)))  # ties: shallower, then lower rank

    push(())
    while heap and len(paths) < nodes:
        f, _, path = heapq.heappop(heap)
        paths.append(path)
        frequencies.append(-f)
        push(path)
    return tuple(paths), np.array(frequencies)


def order_for_every_depth(expand: Expand, nodes: int, depths: int) -> tuple[tuple[Path, ...], npt.NDArray[np.float64]]:
    """One greedy order that holds the best ``nodes`` paths of every depth up to ``depths``: what
    :meth:`CandidateTree.cut` needs to give the best tree of any size and depth."""
    merged: dict[Path, float] = {}
    for depth in range(1, depths + 1):
        merged.update(zip(*greedy_order(expand, nodes, depth), strict=True))
    paths = sorted(merged, key=lambda p: (-merged[p], len(p), p))
    return tuple(paths), np.array([merged[p] for p in paths])


def product_frequencies(accuracy: npt.NDArray[np.float64]) -> Expand:
    """f(v) = product of A[k, v_k]: the paper's estimator, which takes the heads' errors to be independent.

    Args:
        accuracy: (H, K), see :func:`medusa_tree.traces.trace.head_accuracy`.
    """

    def expand(path: Path) -> npt.NDArray[np.float64]:
        if len(path) == len(accuracy):
            return np.empty(0)
        return np.prod([accuracy[k, r] for k, r in enumerate(path)]) * accuracy[len(path)]

    return expand


def joint_frequencies(trace: RankTrace, kappa: float, positions: npt.NDArray[np.int64] | None = None) -> Expand:
    """f(v) counted on the trace, each step shrunk to the head's own accuracy where counts are small:
    P(child | parent) = (n_child + kappa A) / (n_parent + kappa), f the product along the path.

    Counts are of all positions, or of those given (the ones that decoding visits).
    """
    accuracy = head_accuracy(trace, positions)
    if np.isinf(kappa):
        return product_frequencies(accuracy)
    counts = PathCounts(trace.table.rows, trace.table.weights(positions), trace.candidates)
    frequency: dict[Path, float] = {(): 1.0}

    def expand(path: Path) -> npt.NDArray[np.float64]:
        if len(path) == trace.heads:
            return np.empty(0)
        if path not in frequency:
            frequency[path] = float(expand(path[:-1])[path[-1]])
        shrunk = counts.children(path) + kappa * accuracy[len(path)]
        # a share of a share may round to an ulp above it, and a child must never stand before its parent
        return np.minimum(frequency[path] * shrunk / (counts.of(path) + kappa), frequency[path])

    return expand


def choose_kappa(trace: RankTrace) -> float:
    """The shrinkage of KAPPAS under which half of the sequences best predict the ranks of the other half.

    Infinity is the product estimator. Even and odd sequences take turns, or the halves of a single one; MISS counts as one more rank, and a
    path ends at its first MISS, as nothing behind it can be accepted.
    """
    sample = trace.sample(ENOUGH)
    odd = np.repeat(np.arange(len(sample.lengths)) % 2 == 1, sample.lengths)
    if len(sample.lengths) == 1:  # then one half of it
        odd = np.arange(sample.positions) >= sample.positions // 2
    total = np.zeros(len(KAPPAS))
    for fitting in (odd, ~odd):
        fit, test = np.flatnonzero(fitting), np.flatnonzero(~fitting)
        if len(fit) and len(test):
            total += _log_likelihoods(sample, fit, test)
    return KAPPAS[int(np.argmax(total))]


def _log_likelihoods(
    trace: RankTrace, fit: npt.NDArray[np.int64], test: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """(len(KAPPAS),) log-likelihood in nats of the rank paths at ``test``, joint estimators fitted at ``fit``."""
    rows, fitted, tested = trace.table.rows, trace.table.weights(fit), trace.table.weights(test)
    half = 0.5 / len(fit)  # no rank is impossible for not having been seen
    score = np.zeros(len(KAPPAS))
    run = np.zeros(len(rows), dtype=np.int64)  # rows that agree so far share a number
    for depth, column in enumerate(rows.T):
        alive = (rows[:, :depth] >= 0).all(axis=1)
        parents = np.bincount(run, weights=fitted)[run]
        new = np.concatenate([[0], (np.diff(run) != 0) | (np.diff(column) != 0)])
        run = np.cumsum(new)
        children = np.bincount(run, weights=fitted)[run]
        marginal = np.bincount(trace.ranks[fit, depth].astype(np.int64) + 1, minlength=trace.candidates + 1) / len(fit)
        prior = ((marginal + half) / (1 + half * len(marginal)))[column + 1]
        for i, kappa in enumerate(KAPPAS):
            p = prior if np.isinf(kappa) else (children + kappa * prior) / (parents + kappa)
            score[i] += float(tested[alive] @ np.log(p[alive]))
    return score
