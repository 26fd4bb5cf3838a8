"""Merge: runs and traces of one drafter as one trace. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medusa_runtime.errors import InputError

from ..planning.calibration import load_calibration
from ..rows import ending
from ..traces.trace import RankTrace
from ..traces.tracefile import load_arrays, provenance_of, read_trace
from .shards import collect, joined, read_run

# What must be the same for ranks to be of one drafter and one kind of text, where two files say it.
SAME = (("model", "weights"), ("heads", "weights"), ("corpus", "max_new_tokens"))


def merge(sources: Sequence[Path], partial: bool = False) -> tuple[RankTrace, dict[str, Any]]:
    """The trace of runs (folders) and rank traces (files), and its provenance: the first one's, with the corpora of all.

    A prompt that is held out in one is held out in all: the same is never on both sides of the split.

    Args:
        partial: take what is there of runs that are not finished.

    Raises:
        InputError: names the source: none, not finished, or of another model, heads or rule than the first.
    """
    found = [_read(path, partial) for path in sources]
    (first, record), (traces, records) = found[0], zip(*found, strict=True)
    for path, (trace, other) in zip(sources[1:], found[1:], strict=True):
        for what, field in SAME:
            here, there = (_said(r, what, field) for r in (other, record))
            if None not in (here, there) and here != there:
                raise InputError(
                    f"{path}: was made with other {what} {field} than {sources[0]}; merge what belongs together"
                )
        if (trace.heads, trace.acceptance) != (first.heads, first.acceptance):
            raise InputError(
                f"{path}: has {trace.heads} heads, {trace.acceptance}; {sources[0]} has {first.heads} heads, {first.acceptance}"
            )
    if len(found) == 1:
        first.check_split()
        return first, record
    whole = _held_out_everywhere(joined(_numbered(traces)))
    whole.check_split()
    told = [_said(r, "corpus", "name") or "unknown" for r in records]
    names = [name for one in told for name in ([one] if isinstance(one, str) else one)]
    counted = {key: sum(_said(r, "corpus", key) or 0 for r in records) for key in ("prompts", "cut")}
    digests = " ".join(str(_said(r, "corpus", "digest")) for r in records)
    merged = (
        {**record["corpus"], "name": names, "source": "runs", **counted, "digest": digests}
        if record.get("corpus")
        else {}
    )
    return whole, {**record, **({"corpus": merged} if merged else {})}


def _said(record: dict[str, Any], what: str, field: str) -> Any:
    """A field of a provenance, where it has it."""
    part = record.get(what)
    return part.get(field) if isinstance(part, dict) else None


def _read(path: Path, partial: bool) -> tuple[RankTrace, dict[str, Any]]:
    if path.is_dir():
        return collect(path, partial), read_run(path).provenance
    if not path.exists():
        raise InputError(f"{path}: is not there; give folders that profile wrote, or rank traces")
    if ending(path) != ".npz":
        return read_trace(path, part=True), {}
    if "meta" in load_arrays(path):
        made = load_calibration(path)
        return made.trace, made.provenance
    return read_trace(path, part=True), provenance_of(path)


def _numbered(traces: Sequence[RankTrace]) -> list[RankTrace]:
    """The traces with prompts numbered on from one to the next, turns as they are."""
    made, first = [], 0
    for trace in traces:
        if trace.text is not None:
            last = int(trace.text.numbers.max())
            trace = replace(trace, text=replace(trace.text, streams=trace.text.streams + first))
            first += last + 1
        made.append(trace)
    return made


def _held_out_everywhere(trace: RankTrace) -> RankTrace:
    """Whatever shares a prompt with a sequence that is held out, held out, and with it the other turns of its conversation."""
    if trace.text is None:
        return trace
    prompts = [row.tobytes() for row in trace.text.prompts]
    held = {prompt for prompt, out in zip(prompts, trace.held_out, strict=True) if out}
    out = np.array([prompt in held for prompt in prompts])
    together = np.isin(trace.text.numbers, trace.text.numbers[out])
    return replace(trace, held_out=together)
