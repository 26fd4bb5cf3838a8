"""Slots: how far each sequence of a batch has filled its part of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError


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

    def narrow(self, rows: Tensor) -> None:
        """Go on with these sequences alone, ``rows`` (R,) int64."""
        self.lengths = self.lengths[rows]
        self._copies.clear()
        self._rows.clear()

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
