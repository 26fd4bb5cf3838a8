"""TreeBuffers and BookBuffers: the arrays of candidate trees on the device, made once for all steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import TreeMask
from .book import Lookup, TreeBook
from .tree import CandidateTree


@dataclass(frozen=True)
class TreeBuffers:
    """Shapes as in :class:`CandidateTree`, M = N + 1, and R rows of them: one that all sequences of a batch share, or one a sequence.

    Where trees of several sizes stand together, the smaller ones are padded with rows that are not ``real``: children of the root that
    nobody but themselves sees, that carry any token and are never accepted.
    """

    nodes: int
    depth: int  # most that a step accepts
    heads: int  # to evaluate
    width: int  # candidates of each head
    lookup: int  # looked-up drafts
    parents: Tensor  # (R, M)
    depths: Tensor  # (R, M)
    ancestors: Tensor  # (R, M, M) bool
    retrieval: Tensor  # (R, M, D + 1)
    picks: Tensor  # (R, N) where each node's token stands in the pool: heads x width candidates, and behind them the drafts
    chain: Tensor  # (R, M) bool, the looked-up nodes
    mask: TreeMask  # who sees whom, for attention
    real: Tensor | None = None  # (R, M) bool; None where all are

    @classmethod
    def of(cls, tree: CandidateTree, device: torch.device) -> TreeBuffers:
        mask = TreeMask.of(tree, device)
        picks = (tree.depths - 1) * tree.width + tree.ranks
        picks[tree.chain_nodes] = tree.heads * tree.width + tree.depths[tree.chain_nodes] - 1
        arrays = (tree.parents, tree.retrieval, picks[1:], tree.chain_nodes)
        parents, retrieval, chosen, chain = (torch.as_tensor(a, device=device)[None] for a in arrays)
        return cls(
            tree.nodes, tree.depth, tree.heads, tree.width, tree.lookup,
            parents, mask.depths, mask.ancestors, retrieval, chosen, chain, mask,
        )  # fmt: skip

    @classmethod
    def stack(cls, trees: Sequence[TreeBuffers]) -> TreeBuffers:
        """A row for each tree, padded to the largest, with one pool for all."""
        nodes, depth, heads, width, lookup = (
            max(getattr(t, name) for t in trees) for name in ("nodes", "depth", "heads", "width", "lookup")
        )
        picks = []
        for t in trees:
            own, drafts = max(1, t.width), t.picks - t.heads * t.width
            place = torch.where(drafts < 0, t.picks // own * width + t.picks % own, heads * width + drafts)
            picks.append(F.pad(place, (0, nodes - t.nodes)))
        missing = [nodes - t.nodes for t in trees]
        mask = TreeMask.stack([t.mask for t in trees])
        retrieval = [
            F.pad(torch.cat([t.retrieval, *[t.retrieval[:, :, -1:]] * (depth - t.depth)], dim=2), (0, 0, 0, more))
            for t, more in zip(trees, missing, strict=True)
        ]
        parents, depths, chain, real = (
            torch.cat([F.pad(a, (0, more)) for a, more in zip(arrays, missing, strict=True)])
            for arrays in (
                [t.parents for t in trees], [t.depths for t in trees], [t.chain for t in trees], [torch.ones_like(t.chain) for t in trees],
            )
        )  # fmt: skip
        ancestors = torch.cat([_with_themselves(t.ancestors, more) for t, more in zip(trees, missing, strict=True)])
        return cls(
            nodes, depth, heads, width, lookup, parents, depths, ancestors, torch.cat(retrieval), torch.cat(picks), chain, mask, real,
        )  # fmt: skip

    def rows(self, which: Tensor) -> TreeBuffers:
        """Of stacked trees those numbered ``which`` (B,) int64, one a sequence."""
        return replace(
            self, parents=self.parents[which], depths=self.depths[which], ancestors=self.ancestors[which], retrieval=self.retrieval[which],
            picks=self.picks[which], chain=self.chain[which], mask=self.mask.rows(which), real=None if self.real is None else self.real[which],
        )  # fmt: skip


def take(values: Tensor, nodes: Tensor) -> Tensor:
    """Each sequence's values at these places: (B, M, ...), (R, K) int64 -> (B, K, ...)."""
    if len(nodes) == 1:
        return values[:, nodes[0]]
    return values[torch.arange(len(nodes), device=nodes.device)[:, None], nodes]


def at_node(table: Tensor, node: Tensor) -> Tensor:
    """A tree's entry for one node of each sequence: (R, M, ...), (B,) int64 -> (B, ...)."""
    return table[0][node] if len(table) == 1 else table[torch.arange(len(table), device=table.device), node]


@dataclass(frozen=True)
class BookBuffers:
    """A book's trees, each by itself, and padded to the largest where sequences of a batch use several.

    numbers: (longest + 1,) int64, match length -> which tree. beside: (F,) int64, the user's text.
    nodes, depth, chain: of the largest tree, the deepest, and the longest chain.
    """

    trees: tuple[TreeBuffers, ...]
    numbers: Tensor
    lookup: Lookup | None
    beside: Tensor
    nodes: int
    depth: int
    chain: int
    _numbers: tuple[int, ...] = ()  # on the host
    _stacks: dict[tuple[int, ...], TreeBuffers] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, book: CandidateTree | TreeBook, device: torch.device) -> BookBuffers:
        book = TreeBook.of(book)
        numbers = book.numbers()
        return cls(
            tuple(TreeBuffers.of(tree, device) for tree in book.trees), torch.as_tensor(numbers, device=device), book.lookup,
            torch.tensor(book.beside, dtype=torch.int64, device=device), book.nodes, book.depth, book.chain, tuple(numbers.tolist()),
        )  # fmt: skip

    def stacked(self, used: tuple[int, ...]) -> TreeBuffers:
        """These trees padded to the largest of them; made once."""
        if used not in self._stacks:
            self._stacks[used] = TreeBuffers.stack([self.trees[t] for t in used])
        return self._stacks[used]

    def on_device(self, match: Tensor) -> TreeBuffers:
        """Each sequence's tree by its match length (B,), in a shape that does not depend on it, and no value is read on the host."""
        if len(self.trees) == 1:
            return self.trees[0]
        return self.stacked(tuple(range(len(self.trees)))).rows(self.numbers[match])

    def on_host(self, match: Tensor, left: Tensor | None) -> TreeBuffers:
        """The same, no larger than the largest of the trees that are in use; where that is one, itself. Sequences that have none ``left``
        (B,) to emit make do with another's."""
        which = [self._numbers[m] for m in match.tolist()]
        if left is not None:
            going = [t for t, more in zip(which, left.tolist(), strict=True) if more] or which
            which = [t if t in going else going[0] for t in which]
        used = tuple(sorted(set(which)))
        if len(used) == 1:
            return self.trees[used[0]]
        return self.stacked(used).rows(torch.tensor([used.index(t) for t in which], device=match.device))


def _with_themselves(ancestors: Tensor, more: int) -> Tensor:
    """(R, M, M) bool and so many rows more, which see themselves alone."""
    padded = F.pad(ancestors, (0, more, 0, more))
    new = torch.arange(ancestors.shape[1], padded.shape[1], device=ancestors.device)
    padded[:, new, new] = True
    return padded
