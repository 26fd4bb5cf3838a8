"""TreeBuffers: a candidate tree's arrays on the device, made once for all steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import TreeMask
from .tree import CandidateTree


@dataclass(frozen=True)
class TreeBuffers:
    """Shapes as in :class:`CandidateTree`, M = N + 1."""

    nodes: int
    depth: int  # heads to evaluate
    width: int  # candidates of each head
    parents: Tensor  # (M,)
    depths: Tensor  # (M,)
    ancestors: Tensor  # (M, M) bool
    retrieval: Tensor  # (M, D + 1)
    picks: Tensor  # (N,) where each node's token stands among the D x width candidates
    mask: TreeMask  # who sees whom, for attention

    @classmethod
    def of(cls, tree: CandidateTree, device: torch.device) -> TreeBuffers:
        mask = TreeMask.of(tree, device)
        picks = (tree.depths[1:] - 1) * tree.width + tree.ranks[1:]
        parents, retrieval, chosen = (torch.as_tensor(a, device=device) for a in (tree.parents, tree.retrieval, picks))
        return cls(
            tree.nodes, tree.depth, tree.width, parents, mask.depths, mask.ancestors, retrieval, chosen, mask
        )  # fmt: skip
