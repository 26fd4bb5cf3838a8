"""TensorRT-LLM: ``medusa_choices``, whose first level must use ranks 0, 1, 2, ... without gaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree, Path

from ..search.order import Expand, greedy_order
from ..traces.trace import RankTrace
from .engine import Engine, EngineTree
from .forms import list_of_lists


def _narrow(expand: Expand, width: int) -> Expand:
    """``expand`` with only so many ranks at the first level."""

    def narrow(path: Path) -> npt.NDArray[np.float64]:
        return expand(path) if path else expand(path)[:width]

    return narrow


def trees(expand: Expand, trace: RankTrace, sizes: Sequence[int], depth: int) -> list[EngineTree]:
    """First-level ranks 0, 1, ..., m - 1 without gaps: for every m, those m nodes and then the greedy order
    behind them; of all m the best at each size. That is exact: given m, the rest is free."""
    chances = expand(())
    best: dict[tuple[int, int], tuple[float, list[Path]]] = {}
    for d in range(1, depth + 1):
        for m in range(1, min(len(chances), max(sizes)) + 1):
            paths, f = greedy_order(_narrow(expand, m), max(sizes), d)
            frequency = dict(zip(paths, f, strict=True))
            rest = [p for p in paths if len(p) > 1]
            below = np.cumsum([0.0, *(frequency[p] for p in rest)])
            for n in sizes:
                if m <= n <= m + len(rest):
                    value = float(chances[:m].sum() + below[n - m])
                    if value > best.get((d, n), (-1.0, []))[0]:
                        best[d, n] = (value, [*((r,) for r in range(m)), *rest[: n - m]])
    return [EngineTree(CandidateTree.by_depth(paths)) for _, paths in best.values()]


def text(tree: CandidateTree) -> str:
    """The list. The draft length is the number of nodes, the depth at most the number of heads built into the engine."""
    first = sorted(p[0] for p in tree.paths if len(p) == 1)
    missing = next((rank for rank in range(len(first)) if rank not in first), None)
    if missing is not None:
        beyond = [rank for rank in first if rank > missing]
        raise InputError(
            f"TensorRT-LLM takes first-level ranks without gaps from 0, but [{missing}] is not in the tree while [{beyond[0]}] is; "
            "plan --engine tensorrt-llm finds the best such tree"
        )
    return list_of_lists(tree)


ENGINE = Engine(
    name="tensorrt-llm",
    versions="TensorRT-LLM 0.8 until TensorRT engines were removed in July 2026",
    bound="first-level ranks without gaps",
    hint="TensorRT-LLM: --medusa_choices=<this list>; build the engine with --max_draft_len {nodes} and at least {depth} heads",
    text=text,
    trees=trees,
)
