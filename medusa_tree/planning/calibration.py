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
from medusa_runtime.reading import Object, Whole, parse_json, read_as, shown
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Paths

from ..devices.latency import Latency, LatencyGrid
from ..devices.shape import BYTES, ModelShape
from ..traces.probetrace import ProbeTrace
from ..traces.trace import RankTrace
from ..traces.tracefile import LARGEST_RANK, load_arrays, trace_of
from .budget import Memory

VERSION = 2
READABLE = (1, 2)  # 1 is of greedy acceptance


@dataclass(frozen=True)
class Calibration:
    """All that a plan needs; ``provenance`` as in tree.json. ``latency`` is the measured grid, or a roofline in its
    place (``dataclasses.replace``)."""

    trace: RankTrace
    latency: Latency
    provenance: dict[str, Any]
    shape: ModelShape | None = None

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
    arrays: dict[str, Any] = {"ranks": trace.ranks, "starts": trace.starts, "held_out": trace.held_out}
    if isinstance(trace, ProbeTrace):
        meta["probe"] = trace.probe.paths
        arrays["accepted"] = np.packbits(trace.accepted, axis=1)
    with write_beside(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)


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
        raise InputError(
            f"{path}: calibration version {shown(version)}, this medusa-tree reads {READABLE}; calibrate again"
        )
    meta = read_as(_Meta, data, where, mend)
    grid = LatencyGrid.from_json(meta.latency, f'{where}, "latency"')
    trace = trace_of({**arrays, "candidates": np.array(meta.candidates)}, path)
    trace = replace(trace, acceptance=meta.acceptance)
    if meta.probe is not None:
        trace = _probed(trace, CandidateTree(meta.probe), arrays, path)
    return Calibration(trace, grid, meta.provenance, meta.shape)


def _probed(trace: RankTrace, probe: CandidateTree, arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> ProbeTrace:
    """The trace with its probe tree and the packed bits of what was accepted of it."""
    packed = arrays.get("accepted")
    shape = (trace.positions, -(-probe.nodes // 8))
    if packed is None or packed.dtype != np.uint8 or packed.shape != shape:
        raise InputError(f'{path}: array "accepted" is not uint8 of shape {shape}, a bit a probe node; calibrate again')
    accepted = np.unpackbits(packed, axis=1, count=probe.nodes).astype(np.bool_)
    try:
        return ProbeTrace(
            trace.ranks,
            trace.starts,
            trace.held_out,
            trace.candidates,
            trace.acceptance,
            accepted=accepted,
            probe=probe,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
