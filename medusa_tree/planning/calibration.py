"""Calibration: the rank trace, the latency grid and where they came from, in one .npz beside tree.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medusa_runtime.acceptance.rules import GREEDY, RuleJson, rule_json
from medusa_runtime.errors import InputError
from medusa_runtime.files import write_beside
from medusa_runtime.reading import Object, Whole, parse_json, read_as
from medusa_runtime.treefile import Paths

from ..devices.latency import Latency, LatencyGrid
from ..devices.shape import BYTES, ModelShape
from ..traces.beside import Named, digest_of
from ..traces.probetrace import ProbeTrace
from ..traces.trace import RankTrace
from ..traces.tracefile import LARGEST_RANK, load_arrays, probed, trace_arrays, trace_of
from .budget import Memory

VERSION = 2
READABLE = (1, 2)  # 1 is of greedy acceptance


@dataclass(frozen=True)
class Calibration:
    """All that a plan needs; ``provenance`` as in tree.json. ``latency`` is the measured grid, or a roofline in its
    place (``dataclasses.replace``). ``beside`` (F,): token
    ids of the user's own text that is looked up in besides; provenance, "lookup", says which it is."""

    trace: RankTrace
    latency: Latency
    provenance: dict[str, Any]
    shape: ModelShape | None = None
    beside: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))

    @property
    def grid(self) -> LatencyGrid | None:
        """The measured grid; None where a roofline stands in its place."""
        return self.latency if isinstance(self.latency, LatencyGrid) else None

    @property
    def memory(self) -> Memory | None:
        """What the model holds, where its shape is known."""
        if self.shape is None:
            return None
        weight = BYTES.get(self.latency.dtype, 2.0)
        return Memory(self.shape, weight, BYTES.get(getattr(self.latency, "kv_dtype", self.latency.dtype), 2.0))


def calibration_path(tree_json: Path) -> Path:
    """tree.json -> tree.calibration.npz, beside it."""
    return tree_json.with_name(f"{tree_json.stem}.calibration.npz")


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write beside and rename; plain arrays and one JSON text, nothing pickled."""
    trace = calibration.trace
    if calibration.grid is None:
        raise TypeError("a calibration on disk holds what was measured, not a roofline")
    meta = {
        "version": VERSION,
        "candidates": trace.candidates,
        "acceptance": rule_json(trace.acceptance),
        "latency": calibration.grid.to_json(),
        "provenance": calibration.provenance,
        "shape": None if calibration.shape is None else calibration.shape.to_json(),
    }
    if isinstance(trace, ProbeTrace):
        meta["probe"] = trace.probe.paths
    with write_beside(path) as beside, beside.open("wb") as file:
        own: dict[str, Any] = {"beside_ids": calibration.beside} if len(calibration.beside) else {}
        np.savez_compressed(file, meta=np.array(json.dumps(meta)), **trace_arrays(trace), **own)


@dataclass(frozen=True)
class _Meta:
    """The text of a calibration, but for its version."""

    candidates: Annotated[Whole, Field(le=LARGEST_RANK + 1)]
    latency: dict[str, Any]  # which LatencyGrid reads
    acceptance: RuleJson = GREEDY
    provenance: Object = field(default_factory=dict)
    shape: ModelShape | None = None
    probe: Paths | None = None


def load_calibration(path: Path) -> Calibration:
    """Read what :func:`save_calibration` wrote.

    Raises:
        InputError: not there, not a calibration, or arrays that do not fit together.
    """
    arrays = load_arrays(path)
    if "meta" not in arrays:
        raise InputError(
            f"{path}: a rank trace, not a calibration: it has no step latency; plan takes it with --latency FILE or --device-model NAME"
        )
    mend = "give the .calibration.npz that calibrate wrote"
    where = f'{path}: array "meta"'
    data = parse_json(str(arrays["meta"]), where, mend)
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(version, bool) or version not in READABLE:
        raise InputError(f"{path}: calibration version {version!r}, this medusa-tree reads {READABLE}; calibrate again")
    meta = read_as(_Meta, data, where, mend)
    grid = LatencyGrid.from_json(meta.latency, f'{where}, "latency"')
    trace = trace_of({**arrays, "candidates": np.array(meta.candidates)}, path)
    trace = replace(trace, acceptance=meta.acceptance)
    if meta.probe is not None:
        trace = probed(trace, meta.probe, arrays, path)
    return Calibration(trace, grid, meta.provenance, meta.shape, _beside(arrays, meta.provenance, path))


def _beside(arrays: Mapping[str, npt.NDArray[Any]], provenance: Mapping[str, Any], path: Path) -> npt.NDArray[np.int32]:
    """The tokens of the user's own text, if there is one; InputError where they are not those of which provenance has the digest."""
    ids = arrays.get("beside_ids", np.zeros(0, dtype=np.int32))
    here = f'{path}: array "beside_ids"'
    if ids.ndim != 1 or ids.dtype != np.int32 or ids.min(initial=0) < 0:
        raise InputError(
            f"{here} is {ids.dtype} of shape {ids.shape}; it must be int32 token ids in a row; calibrate again"
        )
    if not len(ids):
        return ids
    said = read_as(Named, provenance.get("lookup"), f'{path}: provenance, field "lookup"', "calibrate again")
    if digest_of(ids) != said.digest:
        raise InputError(f"{here} has digest {digest_of(ids)}, and provenance {said.digest}; calibrate again")
    return ids
