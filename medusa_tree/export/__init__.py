"""Tree definitions for other engines: one engine a file, and the registry of them all.

An engine's file has one function, tree -> (text, hint), which raises InputError where the engine could not run
the tree, with the reason and the mend. The hint is a line for people: where the text goes.
"""

from __future__ import annotations

from collections.abc import Callable
from json import dumps as json_text

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import TreeFile

from ..origin import origin
from . import eagle, hydra, json, linear, medusa, sglang, tensorrt_llm, vllm

FORMATS: dict[str, Callable[[CandidateTree], tuple[str, str]]] = {
    "medusa": medusa.export,
    "tensorrt-llm": tensorrt_llm.export,
    "vllm": vllm.export,
    "sglang": sglang.export,
    "linear": linear.export,
    "eagle": eagle.export,
    "hydra": hydra.export,
    "json": json.export,
}


def export_tree(
    contents: TreeFile, name: str, batch: int = 1, nodes: int | None = None, context: int | None = None
) -> tuple[str, str]:
    """The operating point's tree (or the best of ``nodes`` nodes) in the form of engine ``name``: (text, hint).

    Raises:
        InputError: an unknown format, a tree the engine cannot take, or no tree to export.
    """
    if name not in FORMATS:
        raise InputError(f"--format {name!r} is not known; formats: {', '.join(FORMATS)}")
    point = contents.point(batch, context)
    tree = contents.tree_of(point) if nodes is None else _best_of(contents, nodes)
    if tree.nodes == 0:
        raise InputError(
            f"at batch {batch} plain decoding is fastest, so there is no tree to export; --nodes N exports the best of N nodes"
        )
    text, hint = FORMATS[name](tree)
    made_for = origin(contents).plan.engine
    return (json_text(point.engine), hint) if name == made_for == "sglang" and nodes is None else (text, hint)


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
