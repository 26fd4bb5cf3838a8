"""AttentionContext and TreeMask: which cached and new tokens each new token may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tree import CandidateTree

if TYPE_CHECKING:
    from ..cache.slots import Slots

TREE_ATTENTION = "medusa_tree"  # the name under which transformers knows our attention function


@dataclass(frozen=True)
class TreeMask:
    """Who sees whom among a tree's M tokens, made once a tree; one for each device that holds layers.

    R rows: one that all sequences of a batch share, or one a sequence.

    depths: (R, M) int64, each token's distance from the root.
    ancestors: (R, M, M) bool, row i may look at token j. bits: (R, M, ceil(M / 32)) int32, the same, packed.
    tables, which: of rows that were taken for a step, the trees' own masks, and (R,) int64 which of them.
    """

    depths: Tensor
    ancestors: Tensor
    bits: Tensor
    tables: TreeMask | None = field(default=None, repr=False)
    which: Tensor | None = field(default=None, repr=False)
    _strips: dict[tuple, Tensor] = field(default_factory=dict, repr=False)
    _elsewhere: dict[torch.device, TreeMask] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tree: CandidateTree, device: torch.device) -> TreeMask:
        depths, ancestors, bits = (
            torch.as_tensor(a, device=device)[None] for a in (tree.depths, tree.ancestors, tree.ancestor_bits)
        )
        return cls(depths, ancestors, bits)

    @classmethod
    def stack(cls, masks: Sequence[TreeMask]) -> TreeMask:
        """One below the other, padded to the most tokens by some that stand where the root does, and that only they themselves see."""
        most = max(m.depths.shape[1] for m in masks)
        words = -(-most // 32)
        token = torch.arange(most, device=masks[0].depths.device)
        depths, ancestors, bits = [], [], []
        for m in masks:
            count = m.depths.shape[1]
            missing, more = most - count, token[count:]
            depths.append(F.pad(m.depths, (0, missing)))
            ancestors.append(F.pad(m.ancestors, (0, missing, 0, missing)))
            bits.append(F.pad(m.bits, (0, words - m.bits.shape[2], 0, missing)))
            ancestors[-1][:, more, more] = True
            bits[-1][:, more, more // 32] = (1 << more % 32).to(torch.int32)
        return cls(torch.cat(depths), torch.cat(ancestors), torch.cat(bits))

    def rows(self, which: Tensor) -> TreeMask:
        """Those numbered ``which`` (B,) int64, one a sequence."""
        return TreeMask(self.depths[which], self.ancestors[which], self.bits[which], self, which)

    def on(self, device: torch.device) -> TreeMask:
        """The same on another device; copied once."""
        if device == self.depths.device:
            return self
        if device not in self._elsewhere:
            if self.tables is not None and self.which is not None:
                made = self.tables.on(device).rows(self.which.to(device))
            else:
                made = TreeMask(self.depths.to(device), self.ancestors.to(device), self.bits.to(device))
            self._elsewhere[device] = made
        return self._elsewhere[device]

    def strip(self, window: int | None, group: int, dtype: torch.dtype) -> Tensor:
        """(R, group x M, before + M + 1): 0 where visible, -inf where not, by a slot's distance from the root.

        What a token sees of a slot depends on nothing but that distance, so a step's mask is this strip, read from another
        place. ``before`` columns stand for accepted tokens, the furthest for all beyond it; the last for unused slots.
        """
        if self.tables is not None:
            return self.tables.strip(window, group, dtype)[self.which]
        if torch.compiler.is_compiling():  # a compiled pass makes its own, and must not depend on what is there already
            return self._make_strip(window, group, dtype)
        key = (window, group, dtype)
        if key not in self._strips:
            self._strips[key] = self._make_strip(window, group, dtype)
        return self._strips[key]

    def _make_strip(self, window: int | None, group: int, dtype: torch.dtype) -> Tensor:
        device, (rows, new) = self.depths.device, self.depths.shape
        position = torch.cat([torch.arange(-_before(window), 0, device=device).expand(rows, -1), self.depths], dim=1)
        seen = torch.cat([self.ancestors.new_ones(rows, new, _before(window)), self.ancestors], dim=2)
        if window is not None:
            seen = seen & (self.depths[:, :, None] - position[:, None] < window)
        seen = torch.cat([seen, seen.new_zeros(rows, new, 1)], dim=2)
        strip = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
        return strip.repeat(1, group, 1)


def _before(window: int | None) -> int:
    return 1 if window is None else window


@dataclass
class AttentionContext:
    """What tree attention needs beyond queries, keys and values; travels as a keyword of the model's forward.

    The cache holds ``slots.lengths[b]`` accepted tokens of sequence b, and the new ones behind them. A new token sees
    every accepted one and, among the new, itself and its ancestors.

    Args:
        slots: of the cache, how far they are filled.
        tree: the new tokens' tree. None: they are prompts, in empty slots from the first on, each token seeing those before it.
    """

    slots: Slots
    tree: TreeMask | None = None
    _masks: dict[tuple, Tensor | None] = field(default_factory=dict, repr=False)

    def mask(
        self, queries: int, slots: int, window: int | None, group: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """Additive mask (B or 1, 1, group x queries, slots), 0 where visible and -inf where not; None when all is.

        Made once a step and shared by all layers of the same device and sliding ``window`` (None: full attention).
        """
        window = None if window is not None and window >= slots else window
        key = (slots, window, group, dtype, device)
        if key not in self._masks:
            if self.tree is None:
                self._masks[key] = _causal(queries, window, dtype, device).repeat(group, 1)[None, None]
            elif (
                queries == 1 and window is None and not self.slots.fixed and self.slots.known == (slots - 1, slots - 1)
            ):
                self._masks[key] = None
            else:
                strip = self.tree.on(device).strip(window, group, dtype)
                from_root = torch.arange(slots, device=device) - self.slots.lengths_on(device)[:, None]
                column = from_root.clamp_(-_before(window), queries) + _before(window)
                if len(strip) == 1:
                    mask = strip[0].index_select(1, column.flatten()).view(strip.shape[1], -1, slots).transpose(0, 1)
                else:
                    mask = strip.gather(2, column[:, None].expand(-1, strip.shape[1], -1))
                self._masks[key] = mask[:, None]
        return self._masks[key]


def _causal(queries: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(queries, queries) additive mask of prompts from slot 0."""
    seen = torch.ones(queries, queries, dtype=torch.bool, device=device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
