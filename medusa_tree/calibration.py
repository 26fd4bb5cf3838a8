"""Calibration: the rank trace, the latency grid and where they came from, in one .npz beside tree.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medusa_runtime.errors import InputError
from medusa_runtime.files import write_beside

from .budget import Memory
from .latency import Latency, LatencyGrid
from .shape import BYTES, ModelShape
from .trace import RankTrace
from .tracefile import load_arrays, trace_of

VERSION = 1


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
        "latency": calibration.grid.to_json(),
        "provenance": calibration.provenance,
        "shape": None if calibration.shape is None else calibration.shape.to_json(),
    }
    with write_beside(path) as beside, beside.open("wb") as file:
        np.savez_compressed(
            file, ranks=trace.ranks, starts=trace.starts, held_out=trace.held_out, meta=np.array(json.dumps(meta))
        )


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
    try:
        meta = json.loads(str(arrays["meta"]))
        arrays["candidates"] = np.array(meta["candidates"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a calibration ({error}); give the .calibration.npz that calibrate wrote"
        ) from None
    if meta.get("version") != VERSION:
        raise InputError(
            f"{path}: calibration version {meta.get('version')!r}, this medusa-tree reads {VERSION}; calibrate again"
        )
    trace = trace_of(arrays, path)
    shape = None if meta.get("shape") is None else ModelShape.from_json(meta["shape"], str(path))
    return Calibration(
        trace, LatencyGrid.from_json(meta["latency"], f"{path}: latency grid"), meta["provenance"], shape
    )
