"""Roofline: step latency worked out from a device's data sheet and a model's shape, where nothing can be measured.

Each part of a step (layers, attention, output layer, heads) takes the longer of moving its bytes and doing its
arithmetic (Williams et al., 2009, "Roofline"); launches add a constant. What comes of it is *modelled*, never measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.optimize import least_squares

from medusa_runtime.errors import InputError
from medusa_runtime.reading import Number, Positive, Text, Whole, one_of, read_as, read_json

from ..bundled import data_path
from .latency import LARGEST_TREE, LONGEST, LatencyCurve, LatencyGrid, LatencyPoint, Load
from .shape import BYTES, ModelShape

ACHIEVED = 0.8  # of the data sheet's bandwidth and rate; kernels seldom reach more
DOUBT = 0.03  # how much a fit shuns launches: next to nothing where the grid shows them, much where it does not
Rate = Annotated[Number, Field(ge=1e3, le=1e21)]  # a second; no device is beyond that
Overhead = Annotated[Number, Field(ge=0, le=LONGEST)]
Dtype = Annotated[str, one_of(*BYTES)]


@dataclass(frozen=True)
class Roofline:
    """A device and a model on it, behind the interface of a measured grid.

    bandwidth: bytes a second. flops: dense operations a second. overhead: seconds a step that neither explains,
    launches above all; per_head_overhead: the same for each head used.
    """

    device: Text
    shape: ModelShape
    bandwidth: Rate
    flops: Rate
    overhead: Overhead = 0.0
    per_head_overhead: Overhead = 0.0
    dtype: Dtype = "bfloat16"
    kv_dtype: Dtype = "bfloat16"
    max_nodes: Annotated[Whole, Field(le=LARGEST_TREE)] = 256
    kind = "modelled"
    gpu = True

    def loads(self) -> list[Load]:
        return []  # any; the plan says which

    def to_json(self) -> dict[str, Any]:
        """Everything that :meth:`from_json` needs, for provenance."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, where: str = "provenance") -> Roofline:
        """What :meth:`to_json` wrote; InputError where it is not."""
        return read_as(cls, data, where, "plan again")

    def seconds(
        self, nodes: npt.ArrayLike, depth: npt.ArrayLike, batch: npt.ArrayLike, context: npt.ArrayLike
    ) -> npt.NDArray[np.float64]:
        """Seconds a step with N nodes on D heads, for B sequences of C tokens; arrays broadcast."""
        nodes, depth, batch, context = map(np.asarray, (nodes, depth, batch, context))
        s, weight, kv = self.shape, BYTES[self.dtype], BYTES[self.kv_dtype]
        rows = batch * (nodes + 1)

        def part(read: npt.NDArray[np.float64], operations: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return np.maximum(read / self.bandwidth, operations / self.flops)

        logits = 2 * max(2.0, weight)  # bytes: written once, read once
        layers = part(weight * np.full(rows.shape, float(s.layer_params)), 2.0 * s.layer_params * rows)
        used = s.expert_params * (s.experts_per_token / s.experts if s.experts else 0.0)
        experts = part(weight * s.expert_params * s.expert_share(rows), 2.0 * used * rows)
        attention = part(
            kv * s.kv_values * (batch * context + rows),
            4.0 * s.layers * s.query_heads * s.head_dim * rows * (context + nodes + 1),
        )
        output = part(weight * s.output_params + logits * s.vocab_size * rows, 2.0 * s.output_params * rows)
        head = part(weight * s.head_params + logits * s.vocab_size * batch, 2.0 * s.head_params * batch)
        return layers + experts + attention + output + self.overhead + depth * (head + self.per_head_overhead)

    def curve(self, batch: int, context: int) -> LatencyCurve:
        """The curve of any batch and context; no points, no spread: nothing was measured."""
        nodes = np.arange(1, self.max_nodes + 1)
        base = self.seconds(nodes, 0, batch, context)
        plain = float(self.seconds(0, 0, batch, context))
        per_head = float(self.seconds(0, 1, batch, context)) - plain
        return LatencyCurve(LatencyPoint(0, 0, batch, context, plain, plain, plain), nodes, base, per_head)


@dataclass(frozen=True)
class Gpu:
    """A line of data/gpus.json: memory in bytes, bandwidth in bytes a second, dense bf16 operations a second."""

    name: str
    memory: float
    bandwidth: float
    flops: float


@dataclass(frozen=True)
class _Sheet:
    name: Text
    memory_gb: Positive
    bandwidth_gb_s: Positive
    bf16_dense_tflops: Positive


@dataclass(frozen=True)
class _Sheets:
    devices: dict[str, _Sheet]


def gpus() -> dict[str, Gpu]:
    """Devices by the name that --device-model takes; figures and their sources are in data/gpus.json."""
    path = data_path("gpus.json")
    return {
        key: Gpu(d.name, 1e9 * d.memory_gb, 1e9 * d.bandwidth_gb_s, 1e12 * d.bf16_dense_tflops)
        for key, d in read_as(_Sheets, read_json(path), str(path)).devices.items()
    }


def gpu(name: str) -> Gpu:
    """One of :func:`gpus`, or an InputError that lists them."""
    known = gpus()
    if name not in known:
        raise InputError(f"--device-model {name!r} is not known; devices: {', '.join(known)}")
    return known[name]


def fit_roofline(grid: LatencyGrid, shape: ModelShape) -> Roofline:
    """The bandwidth, rate and overheads under which the roofline comes nearest to a measured grid, by least squares of
    the relative errors.

    In a large model's grid of one batch and context launches and reading the weights are both the same in every step, so that
    noise would share them out: then it is taken to be reading. Several contexts or batches tell them apart.
    """
    n, d, b, c, t = np.array([(p.nodes, p.depth, p.batch, p.context, p.seconds) for p in grid.points]).T
    dtype = grid.dtype if grid.dtype in BYTES else "float32"
    plain = replace(Roofline(grid.device, shape, 1.0, 1.0, dtype=dtype, kv_dtype=dtype), max_nodes=int(n.max()))

    def model(x: npt.NDArray[np.float64]) -> Roofline:
        bandwidth, flops, overhead, per_head = np.exp(x)
        return replace(plain, bandwidth=bandwidth, flops=flops, overhead=overhead, per_head_overhead=per_head)

    def errors(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.append(model(x).seconds(n, d, b, c) / t - 1, DOUBT * np.exp(x[2]) / fastest)

    fastest = t.min()
    tries = [
        np.log([BYTES[dtype] * shape.parameters / fastest * s, 2 * shape.parameters * (n + 1).max() / t.max() * f, fastest * o, fastest * 0.02])
        for s in (1.0, 3.0) for f in (1.0, 3.0) for o in (0.1, 0.7)
    ]  # fmt: skip
    return model(min((least_squares(errors, x, loss="soft_l1", f_scale=0.1) for x in tries), key=lambda r: r.cost).x)


def roofline_errors(roofline: Roofline, grid: LatencyGrid) -> npt.NDArray[np.float64]:
    """(points,) modelled over measured latency, less one."""
    n, d, b, c, t = np.array([(p.nodes, p.depth, p.batch, p.context, p.seconds) for p in grid.points]).T
    return roofline.seconds(n, d, b, c) / t - 1


def fitted_overhead(measured: LatencyGrid | None, shape: ModelShape | None, layers: int) -> tuple[float, float, str]:
    """What launches cost a model of so many ``layers``: seconds a step and a head, and a line for people.

    They cost what they were found to cost on a GPU, layer for layer; a CPU's steps say nothing about that, as nothing is launched
    there. Without such a grid 0 and 0.

    Args:
        shape: of the model that was ``measured``.
    """
    if measured is not None and measured.gpu and shape is not None and len(measured.loads()) > 1:
        fitted = fit_roofline(measured, shape)
        overhead = fitted.overhead * layers / shape.layers
        told = f"Modelled launch overhead: {1e3 * overhead:.3g} ms a step, as fitted on {fitted.device}"
        return overhead, fitted.per_head_overhead, f"{told}; --launch-overhead MS sets another."
    why = "none was measured on a GPU"
    if measured is not None and measured.gpu:
        why = "a grid of one batch and context does not tell it from reading weights (calibrate with several --context)"
    return 0.0, 0.0, f"No launch overhead is known, as {why}: modelled with none; --launch-overhead MS sets one."


def model_device(
    name: str,
    shape: ModelShape,
    *,
    dtype: str = "bfloat16",
    kv_dtype: str | None = None,
    overhead: float = 0.0,
    per_head_overhead: float = 0.0,
    achieved: float = ACHIEVED,
    max_nodes: int = 256,
) -> Roofline:
    """A model on a device of data/gpus.json.

    Args:
        dtype, kv_dtype: of weights and KV cache; arithmetic is taken to run at the dense bf16 rate.
        overhead, per_head_overhead: seconds; fitted where a grid was measured, see :func:`fit_roofline`.
        achieved: share of the data sheet's bandwidth and rate that is reached.
    """
    for seconds in (overhead, per_head_overhead):
        if not 0 <= seconds < np.inf:
            raise InputError(f"--launch-overhead: {1e3 * seconds} ms is no time")
    if not 0 < achieved <= 1:
        raise InputError(f"--achieved {achieved}: a share of the data sheet's rates, above 0 and at most 1")
    for option, value in (("--weight-dtype", dtype), ("--kv-dtype", kv_dtype or dtype)):
        if value not in BYTES:
            raise InputError(f"{option} {value!r} is not one of {', '.join(BYTES)}")
    sheet = gpu(name)
    return Roofline(
        sheet.name, shape, achieved * sheet.bandwidth, achieved * sheet.flops, overhead, per_head_overhead, dtype, kv_dtype or dtype, max_nodes
    )  # fmt: skip


def describe(roofline: Roofline, errors: Sequence[float] | npt.NDArray[np.float64] = ()) -> dict[str, Any]:
    """The roofline's figures in the units people use."""
    told: dict[str, Any] = {
        "device": roofline.device, "bandwidth_gb_s": roofline.bandwidth / 1e9, "tflops": roofline.flops / 1e12,
        "overhead_ms": 1e3 * roofline.overhead, "per_head_overhead_ms": 1e3 * roofline.per_head_overhead,
        "weight_dtype": roofline.dtype, "kv_dtype": roofline.kv_dtype,
    }  # fmt: skip
    if len(errors):
        size = np.abs(errors)
        told |= {"median_error": float(np.median(size)), "worst_error": float(size.max())}
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in told.items()}
