"""SGLang: --speculative-num-steps, --speculative-eagle-topk and --speculative-num-draft-tokens, from which it drafts a
tree of its own at every step; the planned tree is what that tree is on average."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from medusa_runtime.tree import CandidateTree, Path

from ..search.order import Expand
from ..traces.trace import RankTrace
from .engine import Engine, EngineTree

LARGEST_TOP_K = 16  # that is tried


def trees(expand: Expand, trace: RankTrace, sizes: Sequence[int], depth: int) -> list[EngineTree]:
    """(steps, top-k, draft tokens): each step keeps the k likeliest nodes of a level and drafts k children of each; the
    likeliest draft tokens - 1 of all of them are verified. SGLang ranks by its drafter's confidence at every step;
    here path frequencies, which are its average, stand in for it, so what is predicted is a tree that does not move."""
    made = []
    for steps in range(1, depth + 1):
        for k in range(1, min(trace.candidates, LARGEST_TOP_K) + 1):
            frequency: dict[Path, float] = {}
            beam: list[Path] = [()]
            for _ in range(steps):
                level = {(*p, r): float(f) for p in beam for r, f in enumerate(expand(p)[:k]) if f > 0}
                frequency |= level
                beam = sorted(level, key=lambda p: (-level[p], p))[:k]
            order = sorted(frequency, key=lambda p: (-frequency[p], len(p), p))
            for n in [steps] if k == 1 else [n for n in sizes if steps <= n <= len(order)]:
                made.append(EngineTree(CandidateTree(tuple(order[:n])), _settings(steps, k, n)))
    return made


def text(tree: CandidateTree) -> str:
    """The triple for a tree that was not planned for SGLang. Top-k is the least that keeps every node: as many as the
    most parents of a level and the highest rank need."""
    parents = Counter(len(p) for p in {p[:-1] for p in tree.paths})
    return json.dumps(_settings(tree.depth, max(tree.width, *parents.values()), tree.nodes))


def _settings(steps: int, top_k: int, nodes: int) -> dict[str, int]:
    """What SGLang is told; among the draft tokens it counts the root."""
    return {
        "speculative_num_steps": steps,
        "speculative_eagle_topk": top_k,
        "speculative_num_draft_tokens": nodes + 1,
    }


ENGINE = Engine(
    name="sglang",
    versions="SGLang 0.4.1.post4 and later; from 0.4.4 on with any top-k",
    bound="a (steps, top-k, draft tokens) triple",
    hint="SGLang: --speculative-num-steps, --speculative-eagle-topk, --speculative-num-draft-tokens",
    text=text,
    trees=trees,
    settings_text=json.dumps,
)
