"""TreeCache: a preallocated KV cache that takes a tree's tokens and keeps the accepted path, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .errors import InputError, out_of_memory


class Slots:
    """How far the slots of each of B sequences are filled: exactly on the device, and on the host as far as it knows.

    lengths: (B,) int64 on ``device``, accepted tokens a sequence; advanced there.
    known: bounds on them that the host knows without asking, the least and the greatest; where the two meet, rows are
        written as slices, and where not static, attention is handed no more slots than that.
    ceiling: no sequence ever grows longer than this.

    Args:
        capacity: slots a sequence.
        static: hand all slots to attention, used or not, so that shapes never change and keys stay contiguous.
        fixed: make no use of ``known``: no shape or address then depends on it, as CUDA graphs and compiled passes need;
            implies static.
        triton: move rows, and attend, by the Triton kernels, which read lengths on the device; implies static.
    """

    def __init__(
        self,
        capacity: int,
        batch: int,
        device: torch.device,
        static: bool = False,
        fixed: bool = False,
        triton: bool = False,
    ) -> None:
        self.capacity, self.static, self.fixed, self.triton = capacity, static or fixed or triton, fixed, triton
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.known, self.ceiling = (0, 0), capacity
        self._rows: dict[torch.device, Tensor] = {}
        self._copies: dict[torch.device, Tensor] = {}  # of the lengths, on devices that hold other layers

    @torch.inference_mode()
    def set_lengths(self, lengths: Sequence[int]) -> None:
        """Say how many accepted tokens each sequence has: of prompts, or to go back in a text."""
        self.lengths.copy_(torch.tensor(lengths, dtype=torch.int64))
        self._copies.clear()
        self.known = (min(lengths), max(lengths))

    def advance(self, emitted: Tensor) -> None:
        """Count the tokens that a step left in the cache, ``emitted`` (B,), on the device."""
        self.lengths += emitted
        self._copies.clear()

    def expect(self, least: int, most: int, lengths: Sequence[int] | None = None) -> None:
        """Tell the host that every length has grown by ``least`` to ``most`` since it knew, or since it read ``lengths``."""
        low, high = self.known if lengths is None else (min(lengths), max(lengths))
        self.known = (min(low + least, self.ceiling), min(high + most, self.ceiling))

    def check_room(self, new: int) -> None:
        """InputError where ``new`` more tokens may not fit behind the longest sequence."""
        if self.known[1] + new > self.capacity:
            raise InputError(
                f"{new} new tokens (a tree of {new - 1} nodes and its root) do not fit behind the {self.known[1]} that a "
                f"sequence may have in a cache of {self.capacity} slots; make the cache larger or the tree smaller"
            )

    def lengths_on(self, device: torch.device) -> Tensor:
        """The lengths on a layer's device, copied there once a step."""
        if device == self.lengths.device:
            return self.lengths
        if device not in self._copies:
            self._copies[device] = self.lengths.to(device, non_blocking=True)
        return self._copies[device]

    def rows_on(self, device: torch.device) -> Tensor:
        """(B, 1) int64, 0 .. B - 1, on a layer's device."""
        if device not in self._rows:
            self._rows[device] = torch.arange(len(self.lengths), device=device)[:, None]
        return self._rows[device]

    def next(self, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Sequence (B, 1) and slot (B, new), int64: where the next ``new`` tokens of each sequence go."""
        return self.rows_on(device), self.lengths_on(device)[:, None] + torch.arange(new, device=device)

    def in_use(self, new: int) -> int:
        """How many slots attention is handed once ``new`` tokens are written."""
        return self.capacity if self.static else self.known[1] + new


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


class TreeCache(Cache):
    """KV cache of B sequences of different lengths, ``capacity`` slots each, nothing reallocated while decoding.

    Every sequence starts at slot 0 (prompts are padded on the right, and padding is overwritten), so a slot's
    index is its token's position. Sliding-window layers keep all slots; the window is the mask's business.
    Layers hold the slots and not the cache: without a cycle, memory is free as soon as the cache is let go.

    Args:
        layers: how many layers the model has.
        capacity: slots a sequence: prompt + new tokens + tree nodes.
        batch, device, static, fixed, triton: see :class:`Slots`.
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
    ) -> None:
        slots = Slots(capacity, batch, device, static, fixed, triton)
        super().__init__(layers=[TreeLayer(slots, layers) for _ in range(layers)])
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
