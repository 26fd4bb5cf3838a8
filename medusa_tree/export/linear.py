"""Engines that draft a chain (vLLM and others today): how many tokens to draft."""

import json

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree


def export(tree: CandidateTree) -> tuple[str, str]:
    if tree.paths != CandidateTree.chain(tree.depth).paths:
        raise InputError(f"a tree of {tree.nodes} nodes, {tree.depth} deep, is no chain; plan one with --engine linear")
    return json.dumps({"num_speculative_tokens": tree.depth}), "vLLM: merge into --speculative-config"
