"""What the engines share that keep the ten best candidates of each head, and so take any tree of ranks 0 to 9."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree, Path

from ..search.order import Expand, greedy_order
from ..traces.trace import RankTrace
from .engine import EngineTree
from .forms import level_order, list_of_lists


def top_ten_trees(expand: Expand, trace: RankTrace, sizes: Sequence[int], depth: int) -> list[EngineTree]:
    """The prefixes of the greedy order over ranks 0 to 9. That is exact: within those, the tree is free."""

    def within(path: Path) -> npt.NDArray[np.float64]:
        return expand(path)[:10]

    orders = [greedy_order(within, max(sizes), d)[0] for d in range(1, depth + 1)]
    return [EngineTree(CandidateTree(order[:n])) for order in orders for n in sizes if n <= len(order)]


def top_ten_list(tree: CandidateTree, engine: str) -> str:
    """The list of lists.

    Raises:
        InputError: names the first path beyond rank 9.
    """
    beyond = next((p for p in level_order(tree) if max(p) > 9), None)
    if beyond is not None:
        raise InputError(
            f"{engine} keeps the top 10 of each head, ranks 0..9, but the tree has path {list(beyond)}; plan --engine medusa finds the best tree of those"
        )
    return list_of_lists(tree)
