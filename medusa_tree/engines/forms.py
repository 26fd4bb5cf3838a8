"""The list forms that several engines share."""

from __future__ import annotations

import json

from medusa_runtime.tree import CandidateTree, Path


def level_order(tree: CandidateTree) -> list[Path]:
    """Paths by depth, then by rank."""
    return sorted(tree.paths, key=lambda p: (len(p), p))


def list_of_lists(tree: CandidateTree) -> str:
    """[[0], [1], [0, 0], ...] in level order: JSON and a Python literal alike."""
    return json.dumps([list(p) for p in level_order(tree)])
