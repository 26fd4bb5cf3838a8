"""TensorRT-LLM: ``medusa_choices``, whose first level must use ranks 0, 1, 2, ... without gaps."""

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree

from .forms import list_of_lists


def export(tree: CandidateTree) -> tuple[str, str]:
    """The draft length is the number of nodes, the depth at most the number of heads built into the engine."""
    first = sorted(p[0] for p in tree.paths if len(p) == 1)
    missing = next((rank for rank in range(len(first)) if rank not in first), None)
    if missing is not None:
        beyond = [rank for rank in first if rank > missing]
        raise InputError(
            f"TensorRT-LLM takes first-level ranks without gaps from 0, but [{missing}] is not in the tree while [{beyond[0]}] is; "
            "plan --engine tensorrt-llm finds the best such tree"
        )
    return (
        list_of_lists(tree),
        f"TensorRT-LLM: --medusa_choices=<this list>; build the engine with --max_draft_len {tree.nodes} and at least {tree.depth} heads",
    )
