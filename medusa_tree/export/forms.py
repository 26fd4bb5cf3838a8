"""The list forms and the bounds that several engines share."""

from __future__ import annotations

import json

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree, Path


def level_order(tree: CandidateTree) -> list[Path]:
    """Paths by depth, then by rank."""
    return sorted(tree.paths, key=lambda p: (len(p), p))


def list_of_lists(tree: CandidateTree) -> str:
    """[[0], [1], [0, 0], ...] in level order: JSON and a Python literal alike."""
    return json.dumps([list(p) for p in level_order(tree)])


def check_top_10(tree: CandidateTree, engine: str) -> None:
    """Engines that keep the ten best candidates of each head take ranks 0..9.

    Raises:
        InputError: names the first path beyond.
    """
    beyond = next((p for p in level_order(tree) if max(p) > 9), None)
    if beyond is not None:
        raise InputError(
            f"{engine} keeps the top 10 of each head, ranks 0..9, but the tree has path {list(beyond)}; plan --engine medusa finds the best tree of those"
        )
