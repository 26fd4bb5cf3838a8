"""vLLM with tree attention: ``speculative_token_tree``, a string holding a list of tuples, for trees in which all nodes
of a level have the same number of children, ranks 0..k-1."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree, Path

from ..search.order import Expand
from ..traces.trace import RankTrace
from .engine import Engine, EngineTree
from .forms import level_order


def uniform_tree(branching: Sequence[int]) -> CandidateTree:
    """All nodes of level d have ``branching[d]`` children, ranks from 0."""
    paths: list[Path] = []
    level: list[Path] = [()]
    for b in branching:
        level = [(*p, r) for p in level for r in range(b)]
        paths += level
    return CandidateTree(tuple(paths))


def trees(expand: Expand, trace: RankTrace, sizes: Sequence[int], depth: int) -> list[EngineTree]:
    """All branchings (b1, ..., bD) of up to the largest size are counted on the trace; kept are those that no smaller
    tree beats."""
    weights, rows = trace.table.weights(), trace.table.rows
    found: list[tuple[int, float, tuple[int, ...]]] = []

    def grow(branching: tuple[int, ...], nodes: int, width: int, value: float, alive: npt.NDArray[np.int64]) -> None:
        level = len(branching)
        if branching:
            found.append((nodes, value, branching))
        if level == depth:
            return
        column, counts = rows[alive, level], weights[alive]
        for b in range(1, trace.candidates + 1):
            if nodes + width * b > max(sizes):
                break
            inside = (column >= 0) & (column < b)
            gain = float(counts[inside].sum())
            grow((*branching, b), nodes + width * b, width * b, value + gain, alive[inside])

    grow((), 0, 1, 0.0, np.arange(len(rows)))
    found.sort(key=lambda entry: (entry[0], -entry[1]))
    return [
        EngineTree(uniform_tree(b), {"branching": list(b)})
        for d in range(1, depth + 1)
        for b in _rising((n, v, b) for n, v, b in found if len(b) == d)
    ]


def _rising(entries: Iterator[tuple[int, float, tuple[int, ...]]]) -> Iterator[tuple[int, ...]]:
    best = -1.0
    for _, value, branching in entries:
        if value > best:
            best = value
            yield branching


def text(tree: CandidateTree) -> str:
    """The number of tokens and the list of tuples, for --speculative-config."""
    children: dict[tuple[int, ...], list[int]] = {(): []}
    for path in level_order(tree):
        children[path] = []
        children[path[:-1]].append(path[-1])
    for depth in range(tree.depth):
        level = [p for p in children if len(p) == depth]
        want = list(range(len(children[level[0]])))
        odd = next((p for p in level if sorted(children[p]) != want), None)
        if odd is not None:
            raise InputError(
                f"vLLM takes only trees in which all nodes of a level have the same number of children, ranks from 0: "
                f"{list(level[0]) or 'the root'} has ranks {children[level[0]]} below it, {list(odd)} has {children[odd]}; "
                "plan --engine vllm finds the best such tree"
            )
    literal = "[" + ", ".join(map(str, level_order(tree))) + "]"
    return json.dumps({"num_speculative_tokens": tree.nodes, "speculative_token_tree": literal})


ENGINE = Engine(
    name="vllm",
    versions="vLLM 0.10.1 until tree attention was removed in May 2026",
    bound="the same number of children at all nodes of a level",
    hint="vLLM 0.10.1 until May 2026: merge into --speculative-config",
    text=text,
    trees=trees,
)
