"""TraceText: the token ids behind a rank trace: what each sequence was prompted with, and all that was emitted. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError

Ids = npt.NDArray[np.int32]
TURN = 1 << 32  # a turn's stream is its prompt's number, and so much for every turn before it


@dataclass(frozen=True)
class Ragged:
    """S lists of whole numbers in one array: list s is ``values[starts[s] : starts[s + 1]]``.

    values: (T,) int32. starts: (S + 1,) int64, from 0 to T.

    Raises:
        InputError: starts that do not rise from 0 to T.
    """

    values: Ids
    starts: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if (
            self.starts.ndim != 1
            or not len(self.starts)
            or self.starts[0] != 0
            or self.starts[-1] != len(self.values)
            or (np.diff(self.starts) < 0).any()
        ):
            raise InputError(f"starts must rise from 0 to {len(self.values)}, one entry a list and one more")

    @classmethod
    def of(cls, lists: Sequence[Sequence[int] | Ids]) -> Self:
        starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        parts = [np.asarray(one, dtype=np.int32) for one in lists]
        return cls(np.concatenate([np.zeros(0, dtype=np.int32), *parts]), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, s: int) -> Ids:
        return self.values[self.starts[s] : self.starts[s + 1]]

    def __iter__(self) -> Iterator[Ids]:
        return (self[s] for s in range(len(self)))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.starts)

    def take(self, order: npt.NDArray[np.int64]) -> Ragged:
        """These lists, in this order."""
        return Ragged(self.values[places(self.starts, order)], starts_of(self.lengths[order]))


def starts_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(S + 1,) where lists of these lengths begin that stand one behind the other."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def places(starts: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where the entries of lists ``order`` stand, of lists that begin at ``starts`` (S + 1,)."""
    lengths = np.diff(starts)[order]
    return np.repeat(starts[order] - starts_of(lengths)[:-1], lengths) + np.arange(lengths.sum())


@dataclass(frozen=True)
class TraceText:
    """The text of S sequences.

    prompts: what each was prompted with.
    outputs: the tokens emitted behind it, the first one position 0's root; at least one a position of the trace, and those
        looked ahead at behind the last.
    streams: (S,) int64, each sequence's stream of random numbers where it was sampled.
    """

    prompts: Ragged
    outputs: Ragged
    streams: npt.NDArray[np.int64]

    def check(self, lengths: npt.NDArray[np.int64]) -> None:
        """InputError where this is not the text of sequences of so many positions."""
        if not len(self.prompts) == len(self.outputs) == len(self.streams) == len(lengths):
            raise InputError(
                f"rank trace: {len(self.prompts)} prompts, {len(self.outputs)} outputs and {len(self.streams)} streams for "
                f"{len(lengths)} sequences"
            )
        if (empty := np.flatnonzero(self.prompts.lengths == 0)).size:
            raise InputError(
                f"rank trace: sequence {empty[0]} has a prompt of no tokens; nothing is decoded behind none"
            )
        if (short := np.flatnonzero(self.outputs.lengths < lengths)).size:
            s = short[0]
            raise InputError(
                f"rank trace: sequence {s} has {lengths[s]} positions and an output of {self.outputs.lengths[s]} tokens; one is emitted at each"
            )

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """(S,) the number of each sequence's prompt, which the turns of a conversation share."""
        return self.streams % TURN

    def take(self, order: npt.NDArray[np.int64]) -> TraceText:
        """The text of these sequences, in this order."""
        return TraceText(self.prompts.take(order), self.outputs.take(order), self.streams[order])

    @classmethod
    def join(cls, texts: Sequence[TraceText]) -> TraceText:
        prompts, outputs = (Ragged.of([one for t in texts for one in part(t)]) for part in (_prompts, _outputs))
        return cls(prompts, outputs, np.concatenate([t.streams for t in texts]))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """As files have it, see docs/formats.md."""
        return {
            "prompt_ids": self.prompts.values, "prompt_starts": self.prompts.starts, "output_ids": self.outputs.values,
            "output_starts": self.outputs.starts, "streams": self.streams,
        }  # fmt: skip


def _prompts(text: TraceText) -> Ragged:
    return text.prompts


def _outputs(text: TraceText) -> Ragged:
    return text.outputs


def text_of(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> TraceText | None:
    """The text in the arrays of a file, or None where it has none.

    Raises:
        InputError: some of the arrays only, or such as hold no whole numbers; names the file and the array.
    """
    names = ("prompt_ids", "prompt_starts", "output_ids", "output_starts")
    there = [name for name in names if name in arrays]
    if not there:
        return None
    if missing := [name for name in names if name not in arrays]:
        raise InputError(
            f'{path}: array "{missing[0]}" is missing beside "{there[0]}"; docs/formats.md shows the format'
        )
    for name in (*names, "streams"):
        array = arrays.get(name, np.zeros(0, dtype=np.int64))
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f'{path}: array "{name}" is {array.dtype} of shape {array.shape}; it must be whole numbers in a row'
            )
    try:
        prompts, outputs = (
            Ragged(arrays[f"{what}_ids"].astype(np.int32), arrays[f"{what}_starts"].astype(np.int64))
            for what in ("prompt", "output")
        )
    except InputError as error:
        raise InputError(f"{path}: prompt or output {error}") from None
    return TraceText(prompts, outputs, arrays.get("streams", np.arange(len(prompts))).astype(np.int64))
