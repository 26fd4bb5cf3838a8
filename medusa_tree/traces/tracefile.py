"""Rank traces in files: read .npz and JSON lines, and name the row that is wrong; write .npz.

The same mathematics serves any drafter whose guesses are ranked at each depth: Medusa, Hydra, EAGLE-1, block diffusion.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict, ValidationError

from medusa_runtime.acceptance.rules import GREEDY, RuleJson, rule_json
from medusa_runtime.errors import InputError
from medusa_runtime.files import write_beside
from medusa_runtime.reading import Flag, Object, Text, adapter, parse_json, read_as, shown
from medusa_runtime.tree import CandidateTree
from medusa_runtime.tree import Path as TreePath
from medusa_runtime.treefile import Paths

from ..rows import ending, read_entries
from .probetrace import ProbeTrace
from .table import MISS
from .text import text_of
from .trace import RankTrace

HELD_OUT = 0.25
LARGEST_RANK = int(np.iinfo(np.int16).max) - 1


def read_trace(path: Path, seed: int = 0, part: bool = False) -> RankTrace:
    """Read a rank trace; the ending decides (see :func:`medusa_tree.rows.ending`).

    ``.npz``: ``ranks`` (P, H) whole numbers, ``starts`` (S + 1,), and where known ``held_out`` (S,) bool and ``candidates``;
    ``acceptance``, the rule as in tree.json, and under typical acceptance ``probe`` and ``accepted``; ``category`` (S,) text, and
    the token ids (:class:`medusa_tree.traces.text.TraceText`).
    A calibration is one. ``.jsonl``: one sequence a line, {"ranks": [[0, 2, -1], ...]}, with "held_out": true or false,
    "candidates": K, "category" and "acceptance" on every line or on none. Without ``held_out`` a quarter of the sequences is drawn; without
    ``candidates``, K is the largest rank and one; without ``acceptance`` it was greedy.

    Args:
        part: of a larger trace (``.npz``), which need not have both halves of a split.

    Raises:
        InputError: names the file, the line or array, and the row.
    """
    kind = ending(path)
    if kind == ".jsonl":
        return _from_lines(path, seed)
    if kind == ".npz":
        arrays = load_arrays(path)
        trace = trace_of(arrays, path, seed, part)
        if "acceptance" in arrays:
            trace = replace(trace, acceptance=_told(arrays, "acceptance", RuleJson, path))
        return probed(trace, _told(arrays, "probe", Paths, path), arrays, path) if "probe" in arrays else trace
    raise InputError(f"{path}: a rank trace is an .npz or a .jsonl; docs/formats.md shows both")


def save_trace(path: Path, trace: RankTrace, provenance: Mapping[str, Any] | None = None) -> None:
    """Write the ranks, the rule that made the text, and where all comes from, as :func:`read_trace` and :func:`provenance_of`
    read them; whole or not at all."""
    arrays = {**trace_arrays(trace), "candidates": np.array(trace.candidates)}
    arrays["acceptance"] = np.array(json.dumps(rule_json(trace.acceptance)))
    if isinstance(trace, ProbeTrace):
        arrays["probe"] = np.array(json.dumps(trace.probe.paths))
    if provenance is not None:
        arrays["provenance"] = np.array(json.dumps(provenance))
    with write_beside(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)


def provenance_of(path: Path) -> dict[str, Any]:
    """What a trace file says of where it comes from; nothing where it does not.

    Raises:
        InputError: names the file.
    """
    arrays = load_arrays(path) if ending(path) == ".npz" else {}
    told: dict[str, Any] = _told(arrays, "provenance", Object, path) if "provenance" in arrays else {}
    return told


def trace_arrays(trace: RankTrace) -> dict[str, Any]:
    """The arrays of a trace: one row a position or a sequence; what a probe accepts as packed bits."""
    arrays: dict[str, Any] = {"ranks": trace.ranks, "starts": trace.starts, "held_out": trace.held_out}
    if trace.text is not None:
        arrays |= trace.text.arrays()
    if trace.categories is not None:
        arrays["category"] = trace.categories
    return {**arrays, "accepted": np.packbits(trace.accepted, axis=1)} if isinstance(trace, ProbeTrace) else arrays


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
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: not a calibration or rank trace ({error}); give the .calibration.npz that calibrate wrote"
        ) from None


def trace_of(arrays: Mapping[str, npt.NDArray[Any]], path: Path, seed: int = 0, part: bool = False) -> RankTrace:
    """The trace in the arrays of an .npz, each checked by name; ``part`` of a larger one need not have both halves of a split."""
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
    if ranks.size and (ranks.min() < MISS or ranks.max() > LARGEST_RANK):
        p, k = np.argwhere((ranks < MISS) | (ranks > LARGEST_RANK))[0]
        raise InputError(
            f"{path}: position {p}, head {k + 1} has rank {ranks[p, k]}; ranks count from 0 to {LARGEST_RANK}, a miss is {MISS}"
        )
    candidates = arrays.get("candidates", np.array(1 + max(0, int(ranks.max(initial=0)))))
    if candidates.shape or not np.issubdtype(candidates.dtype, np.integer) or candidates < 1:
        raise InputError(f'{path}: "candidates" is {candidates!r}; it must be K, one whole number, 1 or more')
    held = arrays.get("held_out", draw(len(starts) - 1, seed))
    if held.dtype != np.bool_:
        raise InputError(f'{path}: array "held_out" is {held.dtype}; it must be true or false, one a sequence')
    ranks, starts = ranks.astype(np.int16, copy=False), starts.astype(np.int64, copy=False)
    trace = _named(path, ranks, starts, held, int(candidates), part)
    kinds = arrays.get("category")
    if kinds is not None and kinds.dtype.kind != "U":
        raise InputError(f'{path}: array "category" is {kinds.dtype}; it must be text, one a sequence')
    text = text_of(arrays, path)
    if not trace.heads and text is None:
        raise InputError(f'{path}: array "ranks" is of no heads, and there is no text that could be looked up in')
    try:
        return replace(trace, text=text, categories=kinds)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _told(arrays: Mapping[str, npt.NDArray[Any]], name: str, kind: Any, path: Path) -> Any:
    """What the JSON text in an array says."""
    where = f'{path}: array "{name}"'
    return read_as(kind, parse_json(str(arrays[name]), where), where)


def probed(
    trace: RankTrace, paths: tuple[TreePath, ...], arrays: Mapping[str, npt.NDArray[Any]], path: Path
) -> ProbeTrace:
    """The trace with its probe tree and, from the array "accepted", the packed bits of what was accepted of it."""
    probe = CandidateTree(paths)
    packed = arrays.get("accepted")
    shape = (trace.positions, -(-probe.nodes // 8))
    if packed is None or packed.dtype != np.uint8 or packed.shape != shape:
        raise InputError(f'{path}: array "accepted" is not uint8 of shape {shape}, a bit a probe node; calibrate again')
    accepted = np.unpackbits(packed, axis=1, count=probe.nodes).astype(np.bool_)
    own = {f.name: getattr(trace, f.name) for f in fields(RankTrace)}
    try:
        return ProbeTrace(**own, accepted=accepted, probe=probe)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _named(path: Path, ranks: Any, starts: Any, held: Any, candidates: int, part: bool = False) -> RankTrace:
    """The trace, with both a fitting and a held-out part; errors name the file."""
    try:
        trace = RankTrace(ranks, starts, held, candidates)
        if not part:
            trace.check_split()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return trace


def draw(sequences: int, seed: int) -> npt.NDArray[np.bool_]:
    """(S,) a quarter of the sequences, at least one, and never all."""
    held = np.zeros(max(0, sequences), dtype=np.bool_)
    count = min(max(1, round(HELD_OUT * sequences)), sequences - 1)
    held[np.random.default_rng(seed).permutation(sequences)[: max(0, count)]] = True
    return held


@dataclass(frozen=True)
class _Line:
    """A sequence of a ``.jsonl``."""

    ranks: Annotated[list[Annotated[list[Annotated[int, Strict()]], Field(min_length=1)]], Field(min_length=1)]
    held_out: Flag | None = None
    candidates: Annotated[int, Strict(), Field(ge=1, le=LARGEST_RANK + 1)] | None = None
    acceptance: RuleJson | None = None
    category: Text | None = None


def _from_lines(path: Path, seed: int) -> RankTrace:
    sequences: list[npt.NDArray[np.int16]] = []
    held: list[bool | None] = []
    kinds: list[str] = []
    first: _Line | None = None
    for here, row in read_entries(path):
        line = _line(row, here)
        first = first or line
        if line.candidates != first.candidates:
            raise InputError(
                f'{here}: "candidates" is {line.candidates}, before it was {first.candidates}; it must be the same on every line'
            )
        if line.acceptance != first.acceptance:
            raise InputError(
                f'{here}: "acceptance" is {line.acceptance}, before it was {first.acceptance}; it must be the same on every line'
            )
        if (line.held_out is None) != (first.held_out is None):
            raise InputError(f'{here}: "held_out" must be true or false on every line, or on none')
        if (line.category is None) != (first.category is None):
            raise InputError(f'{here}: "category" must stand on every line, or on none')
        sequences.append(_rows(line.ranks, len(first.ranks[0]), line.candidates, here))
        held.append(line.held_out)
        kinds += [] if line.category is None else [line.category]
    if first is None:
        raise InputError(f"{path}: no sequence in it")
    ranks, starts = np.concatenate(sequences), np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    drawn = draw(len(sequences), seed) if first.held_out is None else np.array(held, dtype=np.bool_)
    trace = _named(path, ranks, starts, drawn, first.candidates or 1 + max(0, int(ranks.max())))
    return replace(trace, acceptance=first.acceptance or GREEDY, categories=np.array(kinds) if kinds else None)


def _line(row: Any, here: str) -> _Line:
    try:
        return adapter(_Line).validate_python(row)
    except ValidationError as error:
        match error.errors(include_url=False)[0]["loc"]:
            case ("ranks", int(p), *_):
                raise InputError(
                    f"{here}, row {p}: {shown(row['ranks'][p])} is not a list of whole numbers, one a head"
                ) from None
            case ("acceptance", *_):
                raise InputError(
                    f'{here}: "acceptance": {error.errors()[0]["msg"].removeprefix("Value error, ")}'
                ) from None
            case ("held_out",):
                raise InputError(f'{here}: "held_out" must be true or false on every line, or on none') from None
            case ("category",):
                raise InputError(f'{here}: "category" is {shown(row["category"])}; it must be text') from None
            case ("candidates",):
                raise InputError(
                    f'{here}: "candidates" is {shown(row["candidates"])}; it must be K, a whole number, 1 to {LARGEST_RANK + 1}'
                ) from None
        raise InputError(
            f'{here}: has no list "ranks"; a line is {{"ranks": [[0, 2, -1], ...]}}, one row a position'
        ) from None


def _rows(ranks: list[list[int]], heads: int, candidates: int | None, here: str) -> npt.NDArray[np.int16]:
    """(length, H) of one line; an InputError names the first row that is wrong."""
    most = LARGEST_RANK if candidates is None else candidates - 1
    if set(map(len, ranks)) != {heads} or min(map(min, ranks)) < MISS or max(map(max, ranks)) > most:
        for p, row in enumerate(ranks):
            if len(row) != heads:
                raise InputError(f"{here}, row {p}: {len(row)} ranks where others have {heads}; one a head")
            if min(row) < MISS or max(row) > most:
                raise InputError(f"{here}, row {p}: {shown(row)}: ranks count from 0 to {most}, a miss is {MISS}")
    return np.array(ranks, dtype=np.int16)
