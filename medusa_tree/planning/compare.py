"""Compare: any trees, ours, published or written by hand, replayed on one trace and set side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medusa_runtime.errors import InputError
from medusa_runtime.reading import read_json
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import FORMAT, Estimate, OperatingPoint, read_tree

from ..bundled import data_path
from ..devices.latency import LatencyCurve, Load
from ..traces.bootstrap import bootstrap
from ..traces.probetrace import ProbeTrace
from ..traces.replay import replay
from ..traces.trace import RankTrace
from .choose import predict

COPIED = "mc_sim_7b_63"  # the list that everyone copies
PATHS = "write a list of paths like [[0], [1], [0, 0]]"


@dataclass(frozen=True)
class Compared:
    """One tree's prediction, and its acceptance length and tokens/s over the first tree's, paired: both on the same
    held-out sequences, whole sequences resampled. Step latencies are taken as they are."""

    name: str
    point: OperatingPoint
    acceptance_ratio: Estimate
    rate_ratio: Estimate


def published() -> dict[str, Path]:
    """The lists kept in data/trees, by name."""
    return {p.stem: p for p in sorted(data_path("trees").glob("*.json"))}


def read_paths(where: Path) -> CandidateTree:
    """A tree from a JSON list of paths, or from an object with "paths", in any order.

    Raises:
        InputError: not there, not JSON, or not a tree.
    """
    data = read_json(where, PATHS)
    paths = data.get("paths") if isinstance(data, dict) else data
    if not isinstance(paths, list) or not all(isinstance(p, list) for p in paths):
        raise InputError(f"{where}: holds no list of paths; {PATHS}")
    try:
        return CandidateTree.by_depth(paths)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except TypeError:  # what cannot be sorted
        raise InputError(f"{where}: a path is not a list of whole numbers; {PATHS}") from None


def published_tree(name: str) -> CandidateTree:
    """A published list by its name."""
    return read_paths(published()[name])


def contender(text: str, load: Load) -> tuple[str, CandidateTree]:
    """What the user named: ``plain``, ``chain:4``, a published list, a tree.json (its point at this load), or a file
    with a list of paths.

    Raises:
        InputError: none of these.
    """
    if text == "plain":
        return "plain decoding", CandidateTree()
    if match := re.fullmatch(r"chain:([1-9]\d*)", text):
        return f"chain of {match[1]}", CandidateTree.chain(int(match[1]))
    if text in published():
        return text, published_tree(text)
    path = Path(text)
    if not path.is_file():
        raise InputError(f"{text!r} is neither a file nor plain, chain:N or a published list: {', '.join(published())}")
    data = read_json(path, PATHS)
    is_tree_file = isinstance(data, dict) and data.get("format") == FORMAT
    return text, read_tree(path).tree(*load) if is_tree_file else read_paths(path)


def fit_to_heads(name: str, tree: CandidateTree, trace: RankTrace) -> tuple[str, CandidateTree]:
    """The tree without the levels that there are no heads for. The name says so, and where the tree has ranks that
    were not profiled, or nodes not probed, which replay takes for misses."""
    if tree.depth > trace.heads:
        name, tree = f"{name}, {trace.heads} levels", tree.cut(tree.nodes, trace.heads)
    if tree.width > trace.candidates:
        name = f"{name}, ranks to {trace.candidates - 1} known"
    elif isinstance(trace, ProbeTrace) and (missing := len(set(tree.paths) - set(trace.probe.paths))):
        name = f"{name}, {missing} nodes not probed"
    return name, tree


def compare(
    contenders: Sequence[tuple[str, CandidateTree]], held: RankTrace, latency: LatencyCurve, load: Load, kind: str
) -> list[Compared]:
    """Predict each contender and set it against the first.

    Raises:
        InputError: a tree larger than step latency is known for.
    """
    for name, tree in contenders:
        if tree.nodes > latency.largest:
            raise InputError(
                f"{name}: has {tree.nodes} nodes, but step latency is known up to {latency.largest}; calibrate with --max-nodes {tree.nodes}"
            )
    points = [(name, predict(tree, held, latency, load, kind)) for name, tree in contenders]
    plays = [replay(tree, held) for _, tree in contenders]
    first, first_point = plays[0], points[0][1]
    rows = []
    for (name, point), play in zip(points, plays, strict=True):
        accepted = first.steps.sum() / play.steps.sum()
        low, high = bootstrap(lambda ours, theirs: theirs / ours, play.steps, first.steps)
        ratio = np.array([accepted, low, high])
        faster = ratio * first_point.step_latency_ms.value / point.step_latency_ms.value
        rows.append(Compared(name, point, Estimate(*map(float, ratio)), Estimate(*map(float, faster))))
    return rows


def usual(held: RankTrace, latency: LatencyCurve) -> list[tuple[str, CandidateTree]]:
    """What people run: plain decoding, a chain of first guesses, and the copied list, as far as step latency is known
    for their size (where it is not, such trees are too slow to win)."""
    name, copied = fit_to_heads("64-node list", published_tree(COPIED), held)
    all_of = [
        ("plain decoding", CandidateTree()),
        (f"chain of {held.heads}", CandidateTree.chain(held.heads)),
        (name, copied),
    ]
    return [(n, t) for n, t in all_of if t.nodes <= latency.largest]
