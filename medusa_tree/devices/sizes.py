"""Sizes: the trees whose steps are timed."""

from __future__ import annotations

import numpy as np

from medusa_runtime.tree import LONGEST_CHAIN, CandidateTree

from ..search.order import greedy_order, product_frequencies

# Among them the sizes at which N + 1 rows fill a tile of 16, 32, 64, ... and the ones behind, where latency may step up.
SIZES = (
    1, 2, 3, 4, 6, 8, 12, 15, 16, 20, 24, 31, 32, 40, 48, 63, 64, 80, 96, 127, 128, 160, 192, 255, 256, 320, 384, 511, 512, 768,
    1023, 1024,
)  # fmt: skip


def bushy_tree(nodes: int, depth: int, width: int) -> CandidateTree | None:
    """A tree of just this size, depth and at most ``width`` ranks, shaped like a planned one; None if there is none.

    A step's time depends on how many nodes and heads it has, not on which ones.
    """
    typical = 0.5 ** np.arange(1, width + 1) * np.ones((depth, 1))
    order, _ = greedy_order(product_frequencies(typical), nodes)
    chain = [(0,) * d for d in range(1, depth + 1)]
    rest = [p for p in order if p not in chain]
    if len(chain) > nodes or len(chain) + len(rest) < nodes:
        return None
    return CandidateTree((*chain, *rest[: nodes - depth]))


def longest_chain(max_nodes: int) -> int:
    """Looked-up tokens of the longest chain that is timed."""
    return min(max_nodes, LONGEST_CHAIN)


def grid_trees(max_nodes: int, heads: int, width: int, chains: bool = False) -> list[CandidateTree]:
    """Plain decoding, then every size at full depth, and some at depth 1 or 2, for what a head costs; with ``chains`` some that read
    no head, too, chains of looked-up tokens. Without heads every size up to the longest chain is one."""
    sizes = [n for n in SIZES if n < max_nodes] + [max_nodes]
    looked_up = [CandidateTree(lookup=n) for n in sizes[:: 2 if heads else 1] if chains and n <= LONGEST_CHAIN]
    if not heads:
        return [CandidateTree(), *looked_up]
    deep = [bushy_tree(n, min(n, heads), width) for n in sizes]
    shallow = [bushy_tree(n, d, width) for n in sizes[::2] for d in (1, 2) if d < min(n, heads)]
    return [CandidateTree(), *(t for t in deep + shallow if t is not None), *looked_up]
