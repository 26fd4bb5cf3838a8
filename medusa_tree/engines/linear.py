"""Engines that draft a chain (vLLM and others today): how many tokens to draft."""

import json
from collections.abc import Sequence

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree

from ..search.order import Expand
from ..traces.trace import RankTrace
from .engine import Engine, EngineTree


def trees(expand: Expand, trace: RankTrace, sizes: Sequence[int], depth: int) -> list[EngineTree]:
    """Chains of each head's first guess, of every length."""
    return [EngineTree(CandidateTree.chain(d)) for d in range(1, depth + 1)]


def text(tree: CandidateTree) -> str:
    """The chain's length."""
    if tree.paths != CandidateTree.chain(tree.depth).paths:
        raise InputError(f"a tree of {tree.nodes} nodes, {tree.depth} deep, is no chain; plan one with --engine linear")
    return json.dumps({"num_speculative_tokens": tree.depth})


ENGINE = Engine(
    name="linear",
    versions="vLLM 0.8.2 and later",
    bound="a chain",
    hint="vLLM: merge into --speculative-config",
    text=text,
    trees=trees,
)
