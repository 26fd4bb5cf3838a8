"""SGLang: --speculative-num-steps, --speculative-eagle-topk and --speculative-num-draft-tokens, from which it drafts a
tree of its own at every step; the planned tree is what that tree is on average."""

import json
from collections import Counter

from medusa_runtime.tree import CandidateTree


def export(tree: CandidateTree) -> tuple[str, str]:
    """Top-k is the least that keeps every node: as many as the most parents of a level and the highest rank need."""
    parents = Counter(len(p) for p in {p[:-1] for p in tree.paths})
    config = {
        "speculative_num_steps": tree.depth,
        "speculative_eagle_topk": max(tree.width, *parents.values()),
        "speculative_num_draft_tokens": tree.nodes + 1,
    }
    return json.dumps(
        config
    ), "SGLang: --speculative-num-steps, --speculative-eagle-topk, --speculative-num-draft-tokens"
