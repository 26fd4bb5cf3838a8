"""Where ranks and step latency come from: a calibration, or a rank trace with a latency file or a modelled device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import FILE, stderr, together

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from medusa_tree.devices.latency import LatencyGrid
    from medusa_tree.devices.roofline import Roofline
    from medusa_tree.devices.shape import ModelShape
    from medusa_tree.planning.calibration import Calibration
    from medusa_tree.traces.trace import RankTrace


@dataclass(frozen=True)
class LatencySource:
    """The options that say where step latency comes from, as given: None where they were not."""

    latency: Path | None
    device_model: str | None
    config: Path | None
    weight_dtype: str | None
    kv_dtype: str | None
    head_params: int | None
    launch_overhead: float | None
    achieved: float | None

    def check(self) -> None:
        """InputError where two options do not go together."""
        from medusa_runtime.errors import InputError

        about_the_model = ("config", "weight_dtype", "kv_dtype", "head_params", "launch_overhead", "achieved")
        idle = [name for name in about_the_model if getattr(self, name) is not None]
        if self.device_model is None and idle:
            raise InputError(f"--{idle[0].replace('_', '-')} is for a modelled device; name one with --device-model")
        if self.device_model is not None and self.latency is not None:
            raise InputError("--latency and --device-model both give step latency; use one")


latency_options = together(
    LatencySource,
    "source_of_latency",
    click.option("--latency", type=FILE, help="Step latency from this JSON instead of the calibration's."),
    click.option("--device-model", help="Model the latency of a device, e.g. h100-sxm; an unknown one lists them."),
    click.option("--config", type=FILE, help="config.json of the model to put there.  [default: the calibrated one]"),
    click.option("--weight-dtype", help="Of the modelled weights.  [default: as calibrated]"),
    click.option("--kv-dtype", help="Of the modelled KV cache.  [default: as the weights]"),
    click.option("--head-params", type=click.IntRange(min=0), help="Weights read for each level drafted.  [default: a Medusa head's]"),
    click.option("--launch-overhead", type=click.FloatRange(min=0), metavar="MS", help="Modelled launches a step.  [default: as fitted on a GPU]"),
    click.option("--achieved", type=float, help="Share of the data sheet's rates that is reached.  [default: 0.8]"),
)  # fmt: skip


def read_source(
    path: Path, source: LatencySource, max_nodes: int | None = None
) -> tuple[Calibration, LatencyGrid | None]:
    """The ranks and the step latency to go by, and the grid that was measured, if any.

    Args:
        path: a calibration, or a rank trace of any drafter.
        max_nodes: largest tree on a modelled device.
    """
    from medusa_runtime.errors import InputError
    from medusa_tree.planning.calibration import Calibration

    source.check()
    trace, measured, made, shape, beside = read_parts(path)
    if source.latency is not None:
        measured, its_shape = read_grid(source.latency)
        shape = shape or its_shape
        made = made | {"device": measured.device} if "device" in made else made
    if source.device_model is not None:
        roofline = _model(source.device_model, source, trace, measured, shape, max_nodes)
        of = {} if source.config is None else {"shape": f"of {source.config.name}"}
        return Calibration(trace, roofline, made | of, roofline.shape, beside), measured
    if measured is None:
        raise InputError(
            f"{path}: a rank trace has no step latency; give --latency FILE, or --device-model NAME with --config"
        )
    return Calibration(trace, measured, made, shape, beside), measured


def read_parts(
    path: Path,
) -> tuple[RankTrace, LatencyGrid | None, dict[str, Any], ModelShape | None, npt.NDArray[np.int32]]:
    """A calibration's trace, grid, provenance, shape and the user's own text beside it; or a rank trace, whose latency and shape nobody
    measured, with the provenance that it may have."""
    import numpy as np

    from medusa_tree.planning.calibration import load_calibration
    from medusa_tree.traces.tracefile import load_arrays, provenance_of, read_trace

    if path.suffix == ".npz" and "meta" in load_arrays(path):
        made = load_calibration(path)
        return made.trace, made.grid, made.provenance, made.shape, made.beside
    return read_trace(path), None, provenance_of(path) or {"trace": path.name}, None, np.zeros(0, dtype=np.int32)


def read_grid(path: Path) -> tuple[LatencyGrid, ModelShape | None]:
    """A grid from a --latency file, and the shape of the model that it was measured with, where it says."""
    from medusa_runtime.reading import read_json
    from medusa_tree.devices.latency import LatencyGrid
    from medusa_tree.devices.shape import ModelShape

    said = read_json(path)
    grid = LatencyGrid.from_json(said, str(path))
    shape = said.get("shape")
    return grid, None if shape is None else ModelShape.from_json(shape, f'{path}: field "shape"')


def _model(
    name: str, source: LatencySource, trace: RankTrace, measured: LatencyGrid | None, shape: ModelShape | None, max_nodes: int | None
) -> Roofline:  # fmt: skip
    """The device's roofline, of the model that the options name, or the one that was measured."""
    from medusa_runtime.errors import InputError
    from medusa_runtime.reading import read_json
    from medusa_tree.devices.roofline import ACHIEVED, fitted_overhead, gpu, model_device
    from medusa_tree.devices.shape import BYTES, ModelShape

    gpu(name)  # before anything is said of it
    there = shape
    if source.config is not None:
        there = ModelShape.from_config(read_json(source.config), trace.heads, where=str(source.config))
    if there is None:
        raise InputError("--device-model: the model's shape is not in this file; give its config.json with --config")
    if source.head_params is not None:
        there = replace(there, head_params=source.head_params)
    elif shape is None and trace.heads:
        stderr().print(
            f"[yellow]Each level drafted is modelled as a Medusa head of {there.head_params / 1e6:.4g} million weights; "
            "--head-params N sets what your drafter reads for one.[/yellow]"
        )
    overhead, per_head, note = fitted_overhead(measured, shape, there.layers)
    if source.launch_overhead is not None:
        overhead, per_head = source.launch_overhead / 1e3, 0.0
    else:
        stderr().print(note, style=None if overhead else "yellow")
    known = measured.dtype if measured is not None and measured.dtype in BYTES else "bfloat16"
    return model_device(
        name, there, dtype=source.weight_dtype or known, kv_dtype=source.kv_dtype, overhead=overhead, per_head_overhead=per_head,
        achieved=ACHIEVED if source.achieved is None else source.achieved, max_nodes=max_nodes or 256,
    )  # fmt: skip
