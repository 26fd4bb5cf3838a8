"""tree.json: read, check and write the file that carries a planned tree. NumPy only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from math import log
from pathlib import Path
from typing import Any

from .acceptance.rules import GREEDY, Rule, read_rule, rule_json
from .errors import InputError
from .files import write_beside
from .tree import CandidateTree, check_paths

FORMAT, MAJOR, MINOR = "medusa-tree", 1, 2


@dataclass(frozen=True)
class Estimate:
    """A predicted figure and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OperatingPoint:
    """What to run at one batch and context, and what to expect of it.

    The tree is the first ``nodes`` paths no deeper than ``depth``, or the paths numbered in ``own`` where it needs an
    order of its own, for the reason in ``why_own``; 0 nodes: plain decoding is fastest.
    ``latency`` says where the times come from: "measured" or "modelled". ``limit`` names the bounds of the budget
    without which another tree would be faster. ``engine`` holds the settings of the engine it was planned for.
    """

    batch: int
    context: int
    nodes: int
    depth: int
    acceptance_length: Estimate
    step_latency_ms: Estimate
    tokens_per_s: Estimate
    speedup: Estimate
    latency: str
    limit: str = ""
    own: tuple[int, ...] | None = None
    why_own: str = ""
    engine: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class TreeFile:
    """The contents of tree.json.

    paths: in greedy order, so that every prefix is the best tree of its size, as far as it was planned and where no engine bounds it.
    path_frequency: one a path, never rising.
    heads, candidates: H and K of the profile that the tree was made from.
    head_accuracy: (H, K), A[k, i].
    provenance: model, heads, corpus, device, versions, date: what is needed to make it again.
    acceptance: the rule that it was calibrated under; greedy in files older than 1.2.
    """

    paths: tuple[tuple[int, ...], ...]
    path_frequency: tuple[float, ...]
    heads: int
    candidates: int
    head_accuracy: tuple[tuple[float, ...], ...]
    operating_points: tuple[OperatingPoint, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    acceptance: Rule = GREEDY

    def point(self, batch: int = 1, context: int | None = None) -> OperatingPoint:
        """The operating point of the batch and context, or of the nearest ones planned for, as ratios (3 is nearer to 4
        than to 2, and of two as near the larger is taken: its tree is the more careful); without a context the shortest."""

        def away(p: OperatingPoint) -> tuple[float, ...]:
            from_context = 0.0 if context is None else abs(log(p.context / context))
            return abs(log(p.batch / batch)), -p.batch, from_context, p.context

        return min(self.operating_points, key=away)

    def tree(self, batch: int = 1, context: int | None = None) -> CandidateTree:
        """The tree to run at this batch and context; empty where plain decoding is fastest."""
        return self.tree_of(self.point(batch, context))

    def tree_of(self, point: OperatingPoint) -> CandidateTree:
        """An operating point's tree."""
        if point.own is not None:
            return CandidateTree(tuple(self.paths[i] for i in point.own))
        return CandidateTree(self.paths).cut(point.nodes, point.depth)


def write_tree(path: Path, tree: TreeFile) -> None:
    """Write tree.json, one path a line, so that it can be read and compared."""
    body = {"format": FORMAT, "version": f"{MAJOR}.{MINOR}", **asdict(tree), "acceptance": rule_json(tree.acceptance)}
    lines = [f"  {json.dumps(key)}: {_layout(key, value)}" for key, value in body.items()]
    with write_beside(path) as beside:
        beside.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def _layout(key: str, value: Any) -> str:
    if key in ("paths", "head_accuracy", "operating_points"):
        return "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
    return json.dumps(value, indent=2).replace("\n", "\n  ") if key == "provenance" else json.dumps(value)


def read_tree(path: Path | str) -> TreeFile:
    """Read and check tree.json.

    Raises:
        InputError: names the file, the field or path, and the mend: not there, not JSON or cut short, another
            format or major version, a field that is missing or of a wrong type, a path without its parent,
            a negative or too large rank, a duplicate path, a path deeper than the heads.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); make it with: medusa-tree calibrate -o {path}"
        ) from None
    except ValueError as error:
        raise InputError(
            f"{path}: not whole, valid JSON ({error}); was it cut short? Write it again with calibrate or plan"
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f'{path}: field "format" is not "{FORMAT}"; this is no tree.json of medusa-tree')
    version = str(data.get("version"))
    if version.split(".")[0] != str(MAJOR):
        raise InputError(
            f'{path}: field "version" is {version!r}, this medusa-tree reads {MAJOR}.x; update it, or plan the tree again'
        )

    def get(name: str, check: Callable[[Any], bool], what: str) -> Any:
        if name not in data:
            raise InputError(f'{path}: field "{name}" is missing; write the file again with calibrate or plan')
        if not check(data[name]):
            raise InputError(f'{path}: field "{name}" must be {what}')
        return data[name]

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    heads = get("heads", whole, "a whole number, 1 or more")
    candidates = get("candidates", whole, "a whole number, 1 or more")
    paths = check_paths(get("paths", lambda v: isinstance(v, list), "a list of paths"), f'{path}: field "paths"')
    for i, p in enumerate(paths):
        if max(p) >= candidates:
            raise InputError(
                f'{path}: field "paths": path {i}, {list(p)}, uses rank {max(p)}, but only {candidates} candidates a head were profiled; drop it'
            )
        if len(p) > heads:
            raise InputError(
                f'{path}: field "paths": path {i}, {list(p)}, is {len(p)} deep, but there are {heads} heads; drop it'
            )
    frequency = get(
        "path_frequency",
        lambda v: isinstance(v, list) and len(v) == len(paths),
        f"a list of {len(paths)} numbers, one a path",
    )
    accuracy = get(
        "head_accuracy",
        lambda v: isinstance(v, list) and len(v) == heads and all(isinstance(row, list) for row in v),
        f"a list of {heads} rows, one a head",
    )
    provenance = data.get("provenance", {})
    if not isinstance(provenance, dict):
        raise InputError(f'{path}: field "provenance" must be an object')
    points = get(
        "operating_points", lambda v: isinstance(v, list) and len(v) > 0, "a list of at least one operating point"
    )
    return TreeFile(
        paths, tuple(frequency), heads, candidates, tuple(map(tuple, accuracy)),
        tuple(_read_point(p, i, path, len(paths), heads) for i, p in enumerate(points)), provenance,
        read_rule(data.get("acceptance", {"rule": GREEDY.name}), f'{path}: field "acceptance"'),
    )  # fmt: skip


def _read_point(data: Any, i: int, path: Path, nodes: int, heads: int) -> OperatingPoint:
    here = f'{path}: field "operating_points", entry {i}'
    try:
        estimates = {
            k: Estimate(**data[k]) for k in ("acceptance_length", "step_latency_ms", "tokens_per_s", "speedup")
        }
        known = {f.name: data[f.name] for f in fields(OperatingPoint) if f.name in data}  # newer fields are let be
        own = None if known.get("own") is None else tuple(known["own"])
        point = OperatingPoint(**{**known, **estimates, "own": own})
    except (KeyError, TypeError) as error:
        raise InputError(f"{here}: {error}; write the file again with calibrate or plan") from None
    if not (
        isinstance(point.nodes, int)
        and 0 <= point.nodes <= nodes
        and isinstance(point.depth, int)
        and 0 <= point.depth <= heads
    ):
        raise InputError(
            f"{here}: {point.nodes} nodes, depth {point.depth}, but the file has {nodes} paths and {heads} heads"
        )
    if point.own is not None and not (
        all(isinstance(i, int) and 0 <= i < nodes for i in point.own) and len(set(point.own)) == point.nodes
    ):
        raise InputError(f'{here}: "own" must be {point.nodes} different numbers of paths, 0..{nodes - 1}')
    for name in ("batch", "context"):
        if not (isinstance(getattr(point, name), int) and getattr(point, name) >= 1):
            raise InputError(f'{here}: "{name}" is {getattr(point, name)!r}; it must be a whole number, 1 or more')
    return point
