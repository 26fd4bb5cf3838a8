"""Budget: what a step may cost (latency, nodes, depth, memory), which bound binds, and what is nearest."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError
from medusa_runtime.reading import Positive, Whole

from ..devices.latency import LatencyCurve, Load
from ..devices.shape import ModelShape

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Budget:
    """Bounds on a step: ``ratio`` to plain decoding's latency or ``seconds``; nodes; depth; ``memory`` in bytes."""

    ratio: Positive | None = None
    seconds: Positive | None = None
    max_nodes: Whole | None = None
    max_depth: Whole | None = None
    memory: Positive | None = None

    def __post_init__(self) -> None:
        if any(bound is not None and bound < 1 for bound in (self.max_nodes, self.max_depth)):
            raise InputError("--max-nodes and --max-depth must be at least 1")

    def step_seconds(self, plain: float) -> float:
        """The longest step allowed, given plain decoding's."""
        if self.seconds is not None:
            return self.seconds
        return np.inf if self.ratio is None else self.ratio * plain

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True)
class Memory:
    """What a model holds in memory while decoding, for bounds in bytes."""

    shape: ModelShape
    weight_bytes: float
    kv_bytes: float

    def at(self, nodes: npt.ArrayLike, load: Load) -> npt.NDArray[np.float64]:
        return self.shape.memory(nodes, *load, self.weight_bytes, self.kv_bytes)


def parse_budget(text: str | None) -> tuple[float | None, float | None]:
    """ "1.3x" -> (1.3, None); "25ms" -> (None, 0.025); None -> (None, None).

    Raises:
        InputError: anything else, or a ratio under 1, which no tree can meet.
    """
    if text is None:
        return None, None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(x|ms|us|s)\s*", text)
    if not match:
        raise InputError(
            f"--budget {text!r} is neither a ratio to plain decoding like 1.3x nor a step latency like 25ms"
        )
    value, unit = float(match[1]), match[2]
    if unit == "x":
        if value < 1:
            raise InputError(f"--budget {text}: a step with a tree cannot cost less than one without; give at least 1x")
        return value, None
    if value == 0:
        raise InputError(f"--budget {text}: no step takes no time")
    return None, value * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[unit]


def parse_memory(text: str | None) -> float | None:
    """ "24GB" -> 24e9; "80GiB" -> 80 * 2**30; None -> None. InputError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([MGT])(i?)B\s*", text)
    if not match or float(match[1]) == 0:
        raise InputError(f"--max-memory {text!r} is no amount of memory like 24GB or 80GiB")
    power = "MGT".index(match[2]) + 2
    return float(match[1]) * (1024.0 if match[3] else 1000.0) ** power


def within(
    budget: Budget,
    load: Load,
    latency: LatencyCurve,
    nodes: npt.NDArray[np.int64],
    depth: npt.NDArray[np.int64],
    seconds: npt.NDArray[np.float64],
    memory: Memory | None,
) -> dict[str, Mask]:
    """For each bound given, which of the (T,) trees meet it.

    Raises:
        InputError: plain decoding alone breaks the latency or memory bound at this load, and what is nearest.
    """
    met: dict[str, Mask] = {}
    plain = latency.plain.seconds
    allowed = budget.step_seconds(plain)
    where = f"at batch {load[0]}, context {load[1]}"
    if allowed < plain:
        raise InputError(
            f"--budget {allowed * 1e3:.3g}ms {where}: latency binds: plain decoding alone takes {plain * 1e3:.3g} ms a step, "
            f"the smallest tree {seconds.min() * 1e3:.3g} ms; nearest feasible: --budget {enough(plain * 1e3)}ms without a tree, "
            f"--budget {enough(seconds.min() * 1e3)}ms with one"
        )
    if np.isfinite(allowed):
        met["latency"] = seconds <= allowed * (1 + 1e-9)
    if budget.max_nodes is not None:
        met["nodes"] = nodes <= budget.max_nodes
    if budget.max_depth is not None:
        met["depth"] = depth <= budget.max_depth
    if budget.memory is not None:
        if memory is None:
            raise InputError(
                "--max-memory: the model's shape is not known here; plan from what calibrate wrote, or give --device-model with --config"
            )
        if (alone := float(memory.at(0, load))) > budget.memory:
            raise InputError(
                f"--max-memory {budget.memory / 1e9:.4g}GB {where}: memory binds: plain decoding holds {alone / 1e9:.4g} GB; {_nearest(budget.memory, memory, load)}"
            )
        met["memory"] = memory.at(nodes, load) <= budget.memory
    return met


def enough(value: float) -> str:
    """A bound that admits ``value``: three digits, rounded up."""
    unit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return f"{np.ceil(value / unit - 1e-6) * unit:.12g}"


def _nearest(bound: float, memory: Memory, load: Load) -> str:
    """The largest batch, or failing that context, that fits."""
    batch, context = load
    fits = [b for b in range(batch - 1, 0, -1) if memory.at(0, (b, context)) <= bound]
    if fits:
        return f"nearest feasible: batch {fits[0]} at this context"
    one = memory.at(0, (1, 0))
    if one < bound:
        shorter = int((bound - one) // (memory.at(0, (1, 1)) - one))
        if shorter:
            return f"nearest feasible: batch 1 at context {shorter}"
    return f"the weights alone hold {memory.shape.parameters * memory.weight_bytes / 1e9:.4g} GB; nothing is feasible with this dtype"
