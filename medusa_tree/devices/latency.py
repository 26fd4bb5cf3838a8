"""LatencyGrid: measured seconds a step over nodes, depth, batch and context, and what lies between the points.

A measured grid and a roofline (:mod:`medusa_tree.devices.roofline`) hand out the same :class:`LatencyCurve`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict
from scipy.optimize import isotonic_regression

from medusa_runtime.errors import InputError
from medusa_runtime.reading import Count, Flag, Text, Whole, read_as

Load = tuple[int, int]  # (batch, context)

STEP_RISE = 3.0  # a rise this many times the curve's usual one between two sizes is a step ...
STEP_SHARE = 0.02  # ... if it is at least this share of the latency, and more than the points' own spread
LARGEST_TREE = 1 << 16  # nodes
SHORTEST, LONGEST = 1e-9, 1e5  # seconds that a step may take; what is beyond them was not measured in seconds
Seconds = Annotated[float, Strict()]  # the grid checks them


@dataclass(frozen=True)
class LatencyPoint:
    """One measured step: its tree and load, the median of the repeats in seconds, and their quartiles; where ``calibrate`` measured
    it, all brought to the mean by the factor that all trees share. ``depth`` is the number of heads read: 0 for plain decoding, and
    for a chain of looked-up tokens."""

    nodes: Annotated[Count, Field(le=LARGEST_TREE)]
    depth: Count
    batch: Whole
    context: Whole
    seconds: Seconds
    low: Seconds
    high: Seconds
    lookup: Flag = False


@dataclass(frozen=True)
class LatencyCurve:
    """Step latency over nodes and depth at one (batch, context): t(N, D) = base(N) + D * per_head, t(0) = plain.

    A head is read once a step however many nodes there are, so depth adds a constant a head. More nodes never make a
    step faster, so base is isotonic. Between measured sizes it is linear; but kernels work in tiles, so that
    latency can rise at once by a tile's worth somewhere between two sizes. Where it does, all sizes between them are
    taken to cost what the upper one costs, so that no plan counts on a tile that may already be full.
    """

    plain: LatencyPoint
    nodes: npt.NDArray[np.int64]  # (n,) sizes known, rising
    base: npt.NDArray[np.float64]  # (n,) seconds without heads
    per_head: float
    points: tuple[LatencyPoint, ...] = ()  # measured trees; none where modelled
    steps: npt.NDArray[np.bool_] | None = None  # (n - 1,) is there a step between sizes i and i + 1?
    lookup: float | None = None  # seconds that looking up adds to a step; None where that is not known

    @property
    def largest(self) -> int:
        """Nodes of the largest tree known."""
        return int(self.nodes[-1])

    def at(self, nodes: npt.ArrayLike, depth: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Seconds a step; plain decoding where nodes is 0. Beyond the largest size measured: InputError."""
        nodes, depth = np.asarray(nodes), np.asarray(depth)
        if nodes.max(initial=0) > self.largest:
            raise InputError(
                f"latency grid: {nodes.max()} nodes asked for, known up to {self.largest}; measure again with --max-nodes {nodes.max()}"
            )
        base = np.interp(nodes, self.nodes, self.base)
        if self.steps is not None and len(self.steps):
            upper = np.searchsorted(self.nodes, nodes)
            within = self.steps[np.clip(upper - 1, 0, len(self.steps) - 1)] & (upper > 0)
            base = np.where(within, self.base[upper], base)
        return np.where(nodes == 0, self.plain.seconds, base + depth * self.per_head)

    def spread(self, nodes: int) -> tuple[float, float]:
        """Quartiles over the median of the measured size nearest ``nodes``: relative low and high; 1 where modelled."""
        p = self.plain if nodes == 0 or not self.points else min(self.points, key=lambda p: abs(p.nodes - nodes))
        return p.low / p.seconds, p.high / p.seconds


class Latency(Protocol):
    """What a plan needs to know of a device."""

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def gpu(self) -> bool:
        """Whether steps are captured in graphs, each of which has one size."""

    @property
    def kind(self) -> str:
        """ "measured" or "modelled"."""

    def loads(self) -> list[Load]:
        """The (batch, context) pairs there are figures for without interpolation."""

    def curve(self, batch: int, context: int) -> LatencyCurve: ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class LatencyGrid:
    """All measured points, with where they were taken; on a ``gpu`` steps are launched, which takes a time of its own.

    Raises:
        InputError: a latency that is not a positive number, quartiles not around it, a step that stands twice, or a
            (batch, context) without plain decoding or trees.
    """

    points: tuple[LatencyPoint, ...]
    device: Text = "unknown device"
    dtype: Text = "unknown dtype"
    gpu: Flag = False
    kind = "measured"

    def __post_init__(self) -> None:
        if not self.points:
            raise InputError("latency grid: no points in it; measure with calibrate")
        for p in self.points:
            here = f"latency grid: {p.nodes} nodes, depth {p.depth}, batch {p.batch}, context {p.context}:"
            for seconds in (p.seconds, p.low, p.high):
                if not SHORTEST <= seconds <= LONGEST:
                    raise InputError(f"{here} {seconds} is no latency in seconds")
            if not p.low <= p.seconds <= p.high:
                raise InputError(f"{here} the quartiles {p.low} and {p.high} are not around the median, {p.seconds}")
            if p.nodes < 0 or p.batch < 1 or p.context < 1 or not 0 <= p.depth <= p.nodes:
                raise InputError(f"{here} no such step; a tree of N nodes reads N heads at most, plain decoding none")
        (step, times), *_ = Counter((p.nodes, p.depth, p.batch, p.context, p.lookup) for p in self.points).most_common(
            1
        )
        if times > 1:
            raise InputError(f"latency grid: (nodes, depth, batch, context) {step[:4]} stands twice; keep one of them")
        for batch, context in self.loads():
            these = [p for p in self.points if (p.batch, p.context) == (batch, context)]
            if not any(p.nodes == 0 and not p.lookup for p in these) or not any(p.nodes for p in these):
                raise InputError(
                    f"latency grid: batch {batch}, context {context} needs plain decoding (0 nodes) and at least one tree"
                )

    def loads(self) -> list[Load]:
        """The (batch, context) pairs measured."""
        return sorted({(p.batch, p.context) for p in self.points})

    def curve(self, batch: int, context: int) -> LatencyCurve:
        """The curve of a measured (batch, context), or between measured ones, linear in both: the bytes of the KV
        cache and the rows of every product are.

        Raises:
            InputError: outside of what was measured.
        """
        measured = set(self.loads())
        batches = _between(batch, sorted({b for b, _ in measured}))
        contexts = _between(context, sorted({c for _, c in measured}))
        corners = [((b, c), wb * wc) for b, wb in batches for c, wc in contexts]
        if not corners or any(load not in measured for load, _ in corners):
            raise InputError(
                f"latency grid: batch {batch} at context {context} was not measured, nor what lies around it; measured (batch, context): "
                f"{', '.join(map(str, sorted(measured)))}. Calibrate with --batch {batch} --context {context}"
            )
        if len(corners) == 1:
            return self._fit(batch, context)
        return _blend([(self._fit(*load), weight) for load, weight in corners], batch, context)

    def _fit(self, batch: int, context: int) -> LatencyCurve:
        here = [p for p in self.points if (p.batch, p.context) == (batch, context)]
        plain = next(p for p in here if p.nodes == 0 and not p.lookup)
        trees = [p for p in here if p.nodes > 0]
        lookup = 0.0 if any(p.lookup for p in here) else None
        if (looked := next((p for p in here if p.nodes == 0 and p.lookup), None)) is not None:
            lookup = max(0.0, looked.seconds - plain.seconds)
        by_size = {n: [p for p in trees if p.nodes == n] for n in sorted({p.nodes for p in trees})}
        slopes = [
            (deep.seconds - shallow.seconds) / (deep.depth - shallow.depth)
            for same in by_size.values()
            for shallow, deep in [(min(same, key=lambda p: p.depth), max(same, key=lambda p: p.depth))]
            if deep.depth > shallow.depth
        ]
        per_head = max(0.0, float(np.median(slopes))) if slopes else 0.0
        searched = lookup or 0.0  # of steps that looked up
        base = [
            float(np.mean([p.seconds - p.depth * per_head - p.lookup * searched for p in same]))
            for same in by_size.values()
        ]
        spread = [float(np.mean([p.high - p.low for p in same])) for same in by_size.values()]
        nodes, isotonic = np.array(list(by_size)), isotonic_regression(base).x
        steps = _steps(nodes, isotonic, np.array(spread))
        return LatencyCurve(plain, nodes, isotonic, per_head, tuple(trees), steps, lookup)

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device, "dtype": self.dtype, "gpu": self.gpu, "points": [asdict(p) for p in self.points],
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Any, where: str = "latency grid") -> LatencyGrid:
        """Read {"device", "dtype", "gpu", "points": [{"nodes", "depth", "batch", "context", "seconds"}, ...]}; a point's
        "low" and "high" (quartiles) are "seconds" where they are left out, "gpu" is false.

        Raises:
            InputError: names the field or the point.
        """
        if not isinstance(data, dict) or not isinstance(data.get("points"), list):
            raise InputError(f'{where}: has no list "points"; calibrate writes one, docs/formats.md shows it')
        points = []
        for i, raw in enumerate(data["points"]):
            if not isinstance(raw, dict):
                raise InputError(f"{where}: point {i} is not an object")
            seconds = raw.get("seconds")
            full = {"seconds": seconds, "low": seconds, "high": seconds, **raw}
            points.append(read_as(LatencyPoint, full, f"{where}: point {i}"))
        return read_as(cls, {**data, "points": points}, where)


def _steps(
    nodes: npt.NDArray[np.int64], base: npt.NDArray[np.float64], spread: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """(n - 1,) whether latency steps up between sizes i and i + 1, and does not merely rise."""
    rise, width = np.diff(base), np.diff(nodes)
    usual = np.median(rise / width) if len(rise) else 0.0
    noise = np.maximum(spread[:-1], spread[1:])
    return (rise > STEP_RISE * usual * width) & (rise > STEP_SHARE * base[:-1]) & (rise > noise)


def _between(value: int, known: list[int]) -> list[tuple[int, float]]:
    """The known values on both sides and their weights; one where it is known; none where it is outside."""
    if value in known:
        return [(value, 1.0)]
    below, above = [k for k in known if k < value], [k for k in known if k > value]
    if not below or not above:
        return []
    low, high = below[-1], above[0]
    share = (value - low) / (high - low)
    return [(low, 1 - share), (high, share)]


def _blend(parts: list[tuple[LatencyCurve, float]], batch: int, context: int) -> LatencyCurve:
    """The weighted mean of curves, as far as all of them reach."""
    largest = min(c.largest for c, _ in parts)
    nodes = np.unique(np.concatenate([c.nodes[c.nodes <= largest] for c, _ in parts]))
    base = np.sum([w * c.at(nodes, 0) for c, w in parts], axis=0)
    per_head = sum(w * c.per_head for c, w in parts)
    seconds, low, high = (
        float(sum(w * getattr(c.plain, name) for c, w in parts)) for name in ("seconds", "low", "high")
    )
    spread = np.zeros(len(nodes))
    known = [w * c.lookup for c, w in parts if c.lookup is not None]
    lookup = sum(known) if len(known) == len(parts) else None
    return LatencyCurve(
        LatencyPoint(0, 0, batch, context, seconds, low, high), nodes, base, per_head,
        tuple(p for c, _ in parts for p in c.points), _steps(nodes, base, spread), lookup,
    )  # fmt: skip
