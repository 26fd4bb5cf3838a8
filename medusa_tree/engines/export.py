"""A planned tree in an engine's own form: which operating point or size, and what was planned for that engine."""

from __future__ import annotations

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import TreeFile

from ..origin import origin
from . import find_format


def export_tree(
    contents: TreeFile, name: str, batch: int = 1, nodes: int | None = None, context: int | None = None
) -> tuple[str, str]:
    """The operating point's tree (or the best of ``nodes`` nodes) in the form of engine ``name``: (text, hint).

    Raises:
        InputError: an unknown format, a tree the engine cannot take, or no tree to export.
    """
    engine = find_format(name)
    point = contents.point(batch, context)
    tree = contents.tree_of(point) if nodes is None else _best_of(contents, nodes)
    if tree.nodes == 0:
        raise InputError(
            f"at batch {batch} plain decoding is fastest, so there is no tree to export; --nodes N exports the best of N nodes"
        )
    planned_here = nodes is None and origin(contents).plan.engine == name
    return engine.export(tree, point.engine if planned_here else None)


def _best_of(contents: TreeFile, nodes: int) -> CandidateTree:
    """The first ``nodes`` paths, where these are the best tree of that size."""
    made = origin(contents).plan
    if made.engine:
        raise InputError(
            f"--nodes {nodes}: the file was planned within what {made.engine} takes, and holds those trees only; plan with --max-nodes {nodes}"
        )
    most = min(made.prefixes_to or len(contents.paths), len(contents.paths))
    if nodes > most:
        raise InputError(
            f"--nodes {nodes}: the file has the best trees of up to {most} nodes; plan with --max-nodes {nodes}"
        )
    return CandidateTree(contents.paths).cut(nodes)
