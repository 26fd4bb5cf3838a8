"""Rank traces from elsewhere: read .npz and JSON lines, and name the row that is wrong.

The same mathematics serves any drafter whose guesses are ranked at each depth: Medusa, Hydra, EAGLE-1, block diffusion.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError

from .table import MISS
from .trace import RankTrace

HELD_OUT = 0.25


def read_trace(path: Path, seed: int = 0) -> RankTrace:
    """Read a rank trace; the ending decides.

    ``.npz``: ``ranks`` (P, H) whole numbers, ``starts`` (S + 1,), and where known ``held_out`` (S,) bool and ``candidates``.
    A calibration is one. ``.jsonl``: one sequence a line, {"ranks": [[0, 2, -1], ...]}, with "held_out": true or false on
    every line or on none. Without ``held_out`` a quarter of the sequences is drawn; without ``candidates``, K is the
    largest rank and one.

    Raises:
        InputError: names the file, the line or array, and the row.
    """
    if path.suffix == ".jsonl":
        return _from_lines(path, seed)
    if path.suffix == ".npz":
        arrays = load_arrays(path)
        return trace_of(arrays, path, seed)
    raise InputError(f"{path}: a rank trace is an .npz or a .jsonl; docs/formats.md shows both")


def load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an .npz; nothing pickled.

    Raises:
        InputError: not there, or no .npz of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); give the .calibration.npz that calibrate wrote, or a rank trace"
        ) from None
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise InputError(
            f"{path}: not a calibration or rank trace ({error}); give the .calibration.npz that calibrate wrote"
        ) from None


def trace_of(arrays: Mapping[str, npt.NDArray[Any]], path: Path, seed: int = 0) -> RankTrace:
    """The trace in the arrays of an .npz, each checked by name."""
    for name in ("ranks", "starts"):
        if name not in arrays:
            what = "the ranks" if name == "ranks" else "where sequences begin, so that replay knows what follows what"
            raise InputError(f'{path}: array "{name}" is missing: {what}; docs/formats.md shows the format')
    ranks, starts = arrays["ranks"], arrays["starts"]
    if ranks.ndim != 2 or not np.issubdtype(ranks.dtype, np.integer):
        raise InputError(
            f'{path}: array "ranks" is {ranks.dtype} of shape {ranks.shape}; it must be whole numbers, (positions, heads)'
        )
    if starts.ndim != 1 or not np.issubdtype(starts.dtype, np.integer):
        raise InputError(
            f'{path}: array "starts" is {starts.dtype} of shape {starts.shape}; it must be whole numbers, (sequences + 1,)'
        )
    candidates = int(arrays["candidates"]) if "candidates" in arrays else int(ranks.max(initial=0)) + 1
    held = arrays["held_out"].astype(np.bool_) if "held_out" in arrays else draw(len(starts) - 1, seed)
    try:
        return RankTrace(ranks.astype(np.int16, copy=False), starts.astype(np.int64, copy=False), held, candidates)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def draw(sequences: int, seed: int) -> npt.NDArray[np.bool_]:
    """(S,) a quarter of the sequences, at least one, and never all."""
    held = np.zeros(max(0, sequences), dtype=np.bool_)
    count = min(max(1, round(HELD_OUT * sequences)), sequences - 1)
    held[np.random.default_rng(seed).permutation(sequences)[: max(0, count)]] = True
    return held


def _from_lines(path: Path, seed: int) -> RankTrace:
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    sequences: list[npt.NDArray[np.int16]] = []
    flags: list[Any] = []
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        here = f"{path}, line {i}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{here}: not JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get("ranks"), list) or not row["ranks"]:
            raise InputError(
                f'{here}: has no list "ranks"; a line is {{"ranks": [[0, 2, -1], ...]}}, one row a position'
            )
        heads = sequences[0].shape[1] if sequences else None
        sequences.append(_rows(row["ranks"], heads, here))
        flags.append(row.get("held_out"))
        if not isinstance(flags[-1], (bool, type(None))) or (flags[-1] is None) != (flags[0] is None):
            raise InputError(f'{here}: "held_out" must be true or false on every line, or on none')
    if not sequences:
        raise InputError(f"{path}: no sequence in it")
    held = draw(len(sequences), seed) if flags[0] is None else np.array(flags, dtype=np.bool_)
    return RankTrace.from_sequences(sequences, held.tolist(), 1 + max(int(s.max(initial=0)) for s in sequences))


def _rows(ranks: list[Any], heads: int | None, here: str) -> npt.NDArray[np.int16]:
    """(length, H) of one line; an InputError names the first row that is wrong."""
    for p, row in enumerate(ranks):
        if not isinstance(row, list) or any(isinstance(r, bool) or not isinstance(r, int) for r in row):
            raise InputError(f"{here}, row {p}: {row!r} is not a list of whole numbers, one a head")
        if not row or len(row) != (heads or len(ranks[0])):
            raise InputError(
                f"{here}, row {p}: {len(row)} ranks where others have {heads or len(ranks[0])}; one a head"
            )
        if min(row) < MISS or max(row) > np.iinfo(np.int16).max:
            raise InputError(f"{here}, row {p}: {row!r}: ranks count from 0, a miss is {MISS}")
    return np.array(ranks, dtype=np.int16)
