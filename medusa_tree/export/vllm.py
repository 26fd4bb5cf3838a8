"""vLLM 0.10.1 until tree attention was removed in May 2026: ``speculative_token_tree``, a string holding a list of
tuples, for trees in which all nodes of a level have the same number of children, ranks 0..k-1."""

import json

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree

from .forms import level_order


def export(tree: CandidateTree) -> tuple[str, str]:
    children: dict[tuple[int, ...], list[int]] = {(): []}
    for path in level_order(tree):
        children[path] = []
        children[path[:-1]].append(path[-1])
    for depth in range(tree.depth):
        level = [p for p in children if len(p) == depth]
        want = list(range(len(children[level[0]])))
        odd = next((p for p in level if sorted(children[p]) != want), None)
        if odd is not None:
            raise InputError(
                f"vLLM takes only trees in which all nodes of a level have the same number of children, ranks from 0: "
                f"{list(level[0]) or 'the root'} has ranks {children[level[0]]} below it, {list(odd)} has {children[odd]}; "
                "plan --engine vllm finds the best such tree"
            )
    literal = "[" + ", ".join(map(str, level_order(tree))) + "]"
    config = {"num_speculative_tokens": tree.nodes, "speculative_token_tree": literal}
    return json.dumps(config), "vLLM 0.10.1 until May 2026: merge into --speculative-config"
