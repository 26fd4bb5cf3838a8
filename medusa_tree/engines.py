"""What other engines accept: for each, the best trees of every size within its bounds.

An engine's family takes path frequencies and the trace they come from, and offers trees with the settings that
make the engine run them. Bounds as documented by the engines; the export formats write the same trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree, Path

from .search.order import Expand, greedy_order
from .traces.trace import RankTrace


@dataclass(frozen=True)
class EngineTree:
    """A tree that the engine can run, and its settings there."""

    tree: CandidateTree
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """What the bound is, in words, and who finds the best trees within it."""

    bound: str
    trees: Callable[[Expand, RankTrace, Sequence[int], int], list[EngineTree]]


def _limited(expand: Expand, first: int | None = None, ranks: int | None = None) -> Expand:
    """``expand`` with only so many ranks at the first level, or at every level."""

    def limited(path: Path) -> npt.NDArray[np.float64]:
        return expand(path)[: first if not path and first is not None else ranks]

    return limited


def _prefixes(order: Sequence[Path], sizes: Sequence[int]) -> list[EngineTree]:
    return [EngineTree(CandidateTree(tuple(order[:n]))) for n in sizes if n <= len(order)]


def linear(expand: Expand, trace: RankTrace, sizes: Sequence[int], depth: int) -> list[EngineTree]:
    """Chains of each head's first guess."""
    return [EngineTree(CandidateTree.chain(d)) for d in range(1, depth + 1)]


def medusa(expand: Expand, trace: RankTrace, sizes: Sequence[int], depth: int) -> list[EngineTree]:
    """Any tree of ranks 0 to 9: the greedy order over those."""
    within = _limited(expand, first=10, ranks=10)
    return [o for d in range(1, depth + 1) for o in _prefixes(greedy_order(within, max(sizes), d)[0], sizes)]


def tensorrt_llm(expand: Expand, trace: RankTrace, sizes: Sequence[int], depth: int) -> list[EngineTree]:
    """First-level ranks 0, 1, ..., m - 1 without gaps: for every m, those m nodes and then the greedy order
    behind them; of all m the best at each size. That is exact: given m, the rest is free."""
    chances = expand(())
    best: dict[tuple[int, int], tuple[float, list[Path]]] = {}
    for d in range(1, depth + 1):
        for m in range(1, min(len(chances), max(sizes)) + 1):
            paths, f = greedy_order(_limited(expand, first=m), max(sizes), d)
            frequency = dict(zip(paths, f, strict=True))
            rest = [p for p in paths if len(p) > 1]
            below = np.cumsum([0.0, *(frequency[p] for p in rest)])
            for n in sizes:
                if m <= n <= m + len(rest):
                    value = float(chances[:m].sum() + below[n - m])
                    if value > best.get((d, n), (-1.0, []))[0]:
                        best[d, n] = (value, [*((r,) for r in range(m)), *rest[: n - m]])
    return [EngineTree(CandidateTree.by_depth(paths)) for _, paths in best.values()]


def vllm(expand: Expand, trace: RankTrace, sizes: Sequence[int], depth: int) -> list[EngineTree]:
    """The same number of children at all nodes of a level. All branchings (b1, ..., bD) of up to the largest size are
    counted on the trace; kept are those that no smaller tree beats."""
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


def uniform_tree(branching: Sequence[int]) -> CandidateTree:
    """All nodes of level d have ``branching[d]`` children, ranks from 0."""
    paths: list[Path] = []
    level: list[Path] = [()]
    for b in branching:
        level = [(*p, r) for p in level for r in range(b)]
        paths += level
    return CandidateTree(tuple(paths))


def sglang(expand: Expand, trace: RankTrace, sizes: Sequence[int], depth: int) -> list[EngineTree]:
    """(steps, top-k, draft tokens): each step keeps the k likeliest nodes of a level and drafts k children of each; the
    likeliest draft tokens - 1 of all of them are verified. SGLang ranks by its drafter's confidence at every step;
    here path frequencies, which are its average, stand in for it, so what is predicted is a tree that does not move."""
    trees = []
    for steps in range(1, depth + 1):
        for k in range(1, min(trace.candidates, 16) + 1):
            frequency: dict[Path, float] = {}
            beam: list[Path] = [()]
            for _ in range(steps):
                level = {(*p, r): float(f) for p in beam for r, f in enumerate(expand(p)[:k]) if f > 0}
                frequency |= level
                beam = sorted(level, key=lambda p: (-level[p], p))[:k]
            order = sorted(frequency, key=lambda p: (-frequency[p], len(p), p))
            for n in [steps] if k == 1 else [n for n in sizes if steps <= n <= len(order)]:
                settings = {
                    "speculative_num_steps": steps,
                    "speculative_eagle_topk": k,
                    "speculative_num_draft_tokens": n + 1,
                }
                trees.append(EngineTree(CandidateTree(tuple(order[:n])), settings))
    return trees


ENGINES = {
    "vllm": Engine("the same number of children at all nodes of a level", vllm),
    "tensorrt-llm": Engine("first-level ranks without gaps", tensorrt_llm),
    "medusa": Engine("ranks under 10", medusa),
    "sglang": Engine("a (steps, top-k, draft tokens) triple", sglang),
    "linear": Engine("a chain", linear),
}


def engine(name: str) -> Engine:
    """One of ENGINES, or an InputError that lists them."""
    if name not in ENGINES:
        raise InputError(f"--engine {name!r} is not known; engines: {', '.join(ENGINES)}")
    return ENGINES[name]
