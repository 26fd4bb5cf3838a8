"""TreeCache: a preallocated KV cache that takes a tree's tokens and keeps the accepted path, in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ..errors import out_of_memory
from .slots import Slots


class TreeLayer(CacheLayerMixin):
    """One layer's keys and values, (B, Hkv, capacity, D), allocated at the first update, on the layer's device."""

    is_sliding = False

    def __init__(self, slots: Slots, layers: int) -> None:
        super().__init__()
        self.slots, self.layers = slots, layers

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, width = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        capacity = self.slots.capacity
        size = self.layers * batch * heads * capacity * (width + value_states.shape[-1]) * key_states.element_size()
        with out_of_memory(
            f"a KV cache of {batch} sequence(s) x {capacity} tokens x {self.layers} layers takes {size / 2**30:.2f} GiB",
            self.device,
        ):
            self.keys = key_states.new_zeros(batch, heads, capacity, width)
            self.values = value_states.new_zeros(batch, heads, capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the Q new tokens of every sequence behind its accepted ones; return the slots that may be in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots, new = self.slots, key_states.shape[2]
        if slots.triton:
            from . import kv_rows

            kv_rows.append(key_states, value_states, self.keys, self.values, slots.lengths_on(self.device))
        elif not slots.fixed and slots.known[0] == slots.known[1]:
            start = slots.known[0]
            self.keys[:, :, start : start + new] = key_states
            self.values[:, :, start : start + new] = value_states
        else:
            at = slots.next(new, self.device)
            self.keys.transpose(1, 2)[at] = key_states.transpose(1, 2)
            self.values.transpose(1, 2)[at] = value_states.transpose(1, 2)
        end = slots.in_use(new)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.in_use(query_length), 0

    def get_seq_length(self) -> int:
        return self.slots.capacity if self.slots.fixed else self.slots.known[1]

    def get_max_length(self) -> int:
        return self.slots.capacity


class PassingLayer(TreeLayer):
    """A layer that keeps nothing: for texts that go through in one pass, which see their own keys and values only."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class TreeCache(Cache):
    """KV cache of B sequences of different lengths, ``capacity`` slots each, nothing reallocated while decoding.

    Every sequence starts at slot 0 (prompts are padded on the right, and padding is overwritten), so a slot's
    index is its token's position. Sliding-window layers keep all slots; the window is the mask's business.
    Layers hold the slots and not the cache: without a cycle, memory is free as soon as the cache is let go.

    Args:
        layers: how many layers the model has.
        capacity: slots a sequence: prompt + new tokens + tree nodes.
        batch, device, static, fixed, triton: see :class:`Slots`.
        passing: keep nothing, see :class:`PassingLayer`.
    """

    def __init__(
        self,
        layers: int,
        capacity: int,
        batch: int,
        device: torch.device,
        static: bool = False,
        fixed: bool = False,
        triton: bool = False,
        passing: bool = False,
    ) -> None:
        slots = Slots(capacity, batch, device, static, fixed, triton)
        kind = PassingLayer if passing else TreeLayer
        super().__init__(layers=[kind(slots, layers) for _ in range(layers)])
        self.slots = slots
        self._tables: list[tuple[Tensor, Tensor]] = []  # addresses of like tensors, and one of them

    def keep(self, path: Tensor, accepted: Tensor) -> None:
        """Move the accepted tokens' rows together, behind the accepted prefix, in every layer.

        A path's node numbers grow and node i stands at or behind place i, so reading all rows before writing
        any makes overlap harmless. Lengths are left as they are, see :meth:`Slots.advance`.

        Args:
            path: (B, D + 1) int64 node numbers from the root to the deepest accepted node, that node repeated
                (rows behind the accepted ones are never read).
            accepted: (B,) int64, how many of the path's nodes behind the root stand.
        """
        slots = self.slots
        if slots.triton:
            from . import kv_rows

            self._tables = self._tables or kv_rows.tables([s for x in self.layers for s in (x.keys, x.values)])
            for table, like in self._tables:
                at = like.device
                kv_rows.keep(table, like, path.to(at), slots.lengths_on(at), accepted.to(at))
            return
        places: dict[torch.device, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = {}
        for layer in self.layers:
            at = layer.keys.device
            if at not in places:
                target = slots.next(path.shape[1], at)
                places[at] = (target[0], slots.lengths_on(at)[:, None] + path.to(at)), target
            source, target = places[at]
            for states in (layer.keys, layer.values):
                by_slot = states.transpose(1, 2)
                by_slot[target] = by_slot[source]

    def put(self, rows: Tensor, other: TreeCache) -> None:
        """Give sequences ``rows`` (R,) int64 the slots of another cache of R sequences; lengths are left as they are."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            at = rows.to(mine.keys.device)
            mine.keys[at, :, : other.slots.capacity] = theirs.keys
            mine.values[at, :, : other.slots.capacity] = theirs.values

    def narrow(self, rows: Tensor) -> None:
        """Keep these sequences alone, ``rows`` (R,) int64; a layer at a time, so that what is let go makes room for what is kept."""
        for layer in self.layers:
            at = rows.to(layer.keys.device)
            layer.keys, layer.values = layer.keys[at], layer.values[at]
        self.slots.narrow(rows)
        self._tables = []  # addresses of what was let go
