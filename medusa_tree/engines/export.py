"""A planned tree in an engine's own form: which operating point or size, and what was planned for that engine."""

from __future__ import annotations

import json

from medusa_runtime.book import LONGEST
from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import OperatingPoint, TreeFile

from ..origin import origin
from . import find_format


def export_tree(
    contents: TreeFile, name: str, batch: int = 1, nodes: int | None = None, context: int | None = None
) -> tuple[str, str]:
    """The operating point's tree of heads (or the best of ``nodes`` nodes) in the form of engine ``name``: (text, hint). Where the
    point has a book, the hint says what the engine goes without.

    Raises:
        InputError: an unknown format, a tree the engine cannot take, or no tree to export.
    """
    engine = find_format(name)
    point = contents.point(batch, context)
    tree = contents.tree_of(point) if nodes is None else _best_of(contents, nodes)
    if tree.nodes == 0 and point.book is not None and nodes is None:
        raise InputError(_lookup_alone(contents, point))
    if tree.nodes == 0:
        raise InputError(
            f"at batch {batch} plain decoding is fastest, so there is no tree to export; --nodes N exports the best of N nodes"
        )
    planned_here = nodes is None and origin(contents).plan.engine == name
    text, hint = engine.export(tree, point.engine if planned_here else None)
    return text, hint if nodes is not None else hint + _goes_without(point)


def _goes_without(point: OperatingPoint) -> str:
    """A sentence on what the point's book would give; "" where it has none."""
    if point.book is None:
        return ""
    more = point.book.over_heads
    return (
        f"\nThis is the heads' tree alone: with lookup, medusa-tree's runtime is predicted to make {more.value:.2f} ({more.low:.2f} to "
        f"{more.high:.2f}) times its tokens/s ({point.latency} latency), but the engine cannot switch trees by match length."
    )


def _lookup_alone(contents: TreeFile, point: OperatingPoint) -> str:
    """Why there is no heads' tree where lookup is all there is, and what engines call that. Their names are those of vLLM 0.9 and later,
    SGLang 0.5 and later (whose draft tokens count the root), llama.cpp's examples (in newer builds ``--spec-draft-n-max``) and transformers."""
    book = contents.book_of(point)
    chain, longest = book.chain, LONGEST if book.lookup is None else book.lookup.longest
    least = next((match for match, tree in zip(book.matches, book.trees, strict=True) if tree.lookup), 1)
    vllm = {
        "method": "ngram",
        "num_speculative_tokens": chain,
        "prompt_lookup_min": least,
        "prompt_lookup_max": longest,
    }
    mend = "; --nodes N exports the heads' best tree of N nodes all the same" if contents.paths else ""
    return (
        f"at batch {point.batch}, context {point.context} lookup alone was planned, a chain of up to {chain}, so there is no heads' tree to "
        f"export; engines have lookup under names of their own: vLLM --speculative-config '{json.dumps(vllm)}'; SGLang "
        f"--speculative-algorithm NGRAM --speculative-num-draft-tokens {chain + 1}; llama.cpp llama-lookup --draft-max {chain}; transformers "
        f"generate(prompt_lookup_num_tokens={chain}){mend}"
    )


def _best_of(contents: TreeFile, nodes: int) -> CandidateTree:
    """The first ``nodes`` paths, where these are the best tree of that size."""
    made = origin(contents).plan
    if not contents.heads:
        raise InputError(
            f"--nodes {nodes}: lookup alone was planned, and the file has no trees of heads; plan with --drafts both, for which the calibration "
            "must be of a model with heads"
        )
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
