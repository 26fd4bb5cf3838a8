"""Tree definitions for other engines: one engine a file, and the registry of them all.

An engine's file has one function, tree -> (text, hint), which raises InputError where the engine could not run
the tree, with the reason and the mend. The hint is a line for people: where the text goes.
"""

from __future__ import annotations

from collections.abc import Callable

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import TreeFile

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
    if nodes is not None and nodes > len(contents.paths):
        raise InputError(f"--nodes {nodes}: the file has {len(contents.paths)} paths; plan with --max-nodes {nodes}")
    tree = contents.tree(batch, context) if nodes is None else CandidateTree(contents.paths).cut(nodes)
    if tree.nodes == 0:
        raise InputError(
            f"at batch {batch} plain decoding is fastest, so there is no tree to export; --nodes N exports the best of N nodes"
        )
    return FORMATS[name](tree)
