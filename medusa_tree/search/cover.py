"""Cover: the order in which nodes enter a tree where several may be accepted at once: under typical acceptance, and where heads and
a lookup draft together. NumPy only.

A step gains the depth of its deepest accepted node. At a position let A be the accepted nodes of the probe tree, closed under
parents, and for a set S of its nodes let G(S) = sum over depths d of P(A meets S at depth d). For a tree T, which is closed
under parents, that is the expected gain E[max depth of A and T], for with a node its ancestors are in both. On *all*
sets G is monotone and submodular, being a sum of coverage functions. Three things follow, and are tested by brute force:

1. Taking the node of largest gain again and again, i picks reach G >= (1 - (1 - 1/n)^i) max G(S) over |S| = n (Nemhauser,
   Wolsey and Fisher, 1978, doi 10.1007/BF01588971), and no tree of n nodes is better than the best set of n.
2. But a child may gain more than its parent, where a sibling of the parent is accepted with it and has no such child. Then
   the missing ancestors are taken first: nodes beyond the picks, which can only add to G. So a tree of n nodes with i picks is
   at least 1 - (1 - 1/n)^i > 1 - exp(-i / n) of the best tree of n nodes: the full 1 - 1/e where no ancestor had to be fetched.
3. For any set T, no tree of n nodes has more than G(T) + the n largest gains given T: a bound on the optimum from the data,
   usually far tighter.

Gains at one depth do not depend on nodes at another, so the order cut at a depth is the order for that depth, and one list
serves every size and depth, as it does where one node a level can be accepted and the gains are path frequencies.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medusa_runtime.tree import CandidateTree


@dataclass(frozen=True)
class Cover:
    """The nodes in order.

    tree: their paths, parents before children, and as many looked-up tokens as were taken.
    gains: (n,) what each added to the expected accepted length when it was taken; 1 + their sum is E[L].
    picked: (n,) bool, taken for its own gain; False where fetched for a descendant's sake.
    chain: (n,) bool, a looked-up token and no path.
    """

    tree: CandidateTree
    gains: npt.NDArray[np.float64]
    picked: npt.NDArray[np.bool_]
    chain: npt.NDArray[np.bool_]

    def cut(self, nodes: int) -> CandidateTree:
        """The tree of the first ``nodes``."""
        lookup = int(self.chain[:nodes].sum())
        return CandidateTree(self.tree.paths[: min(nodes, len(self.chain)) - lookup], lookup)

    def guarantee(self, nodes: int) -> float:
        """The share of the best tree's gain that the first ``nodes`` are sure to have (point 2 above)."""
        return 1 - (1 - 1 / nodes) ** int(self.picked[:nodes].sum()) if nodes else 1.0


def cover(
    accepted: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    probe: CandidateTree,
    nodes: int,
) -> Cover:
    """The first ``nodes`` nodes of the probe tree by lazy greedy; fewer where no more of them gain anything.

    Gains only fall as the tree grows, so a stale gain is an upper bound: of the heap's entries only the first is looked at again
    until it stays first (Minoux, 1978, doi 10.1007/BFb0006528).

    Args:
        accepted: (U, N) which of the probe tree's nodes, paths and chain, are accepted together, closed under parents.
        weights: (U,) how often; or (D, U) what it is worth to meet the tree at each depth, 0 or more: the gains are then sums of that.
    """
    share = np.broadcast_to(weights / weights.sum(), (probe.depth, len(accepted))) if weights.ndim == 1 else weights
    depths, parents = probe.depths[1:], probe.parents[1:] - 1
    columns = np.ascontiguousarray(accepted.T)
    met = np.zeros((probe.depth, len(accepted)), dtype=np.bool_)  # whether A meets the tree at each depth
    taken: dict[int, tuple[float, bool]] = {}

    def gain(v: int) -> float:
        level = depths[v] - 1
        return float(share[level] @ (columns[v] & ~met[level]))

    def take(v: int, picked: bool) -> None:
        taken[v] = (gain(v), picked)
        met[depths[v] - 1] |= columns[v]

    heap = [
        (-gain(v), int(depths[v]), v) for v in range(probe.nodes)
    ]  # ties: shallower, then earlier in the probe tree
    heapq.heapify(heap)
    while heap and len(taken) < nodes:
        _, depth, v = heapq.heappop(heap)
        if v in taken or (fresh := gain(v)) <= 0:
            continue
        if heap and (-fresh, depth, v) > heap[0]:
            heapq.heappush(heap, (-fresh, depth, v))
            continue
        missing = [u := v]
        while (u := int(parents[u])) >= 0 and u not in taken:
            missing.append(u)
        for u in reversed(missing):
            take(u, picked=u == v)
    order = np.array(list(taken)[:nodes], dtype=np.int64)
    gains, picked = zip(*(taken[v] for v in order), strict=True) if len(order) else ((), ())
    chain = order >= len(probe.paths)
    tree = CandidateTree(tuple(probe.paths[v] for v in order[~chain]), int(chain.sum()))
    return Cover(tree, np.array(gains, dtype=np.float64), np.array(picked, dtype=np.bool_), chain)


def optimum_bound(
    accepted: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.int64],
    probe: CandidateTree,
    tree: CandidateTree,
    nodes: int,
) -> float:
    """An upper bound on E[max depth] of any tree of ``nodes`` nodes of the probe tree, from any one ``tree`` (point 3)."""
    share = weights / weights.sum()
    level = probe.depths[1:]
    chain = range(len(probe.paths), len(probe.paths) + tree.lookup)
    inside = np.array([*(probe.index[p] - 1 for p in tree.paths), *chain], dtype=np.int64)
    met = np.stack([accepted[:, inside[level[inside] == d]].any(axis=1) for d in range(1, probe.depth + 1)], axis=1)
    gains = np.array([share @ (accepted[:, v] & ~met[:, level[v] - 1]) for v in range(probe.nodes)])
    return float(share @ met.sum(axis=1) + np.sort(gains)[::-1][:nodes].sum())
