"""EAGLE-1: ``tree_choices``, the same list as Medusa's, ranks 0..9 (EAGLE-2 and later build their tree as they go)."""

from medusa_runtime.tree import CandidateTree

from .engine import Engine
from .top_ten import top_ten_list, top_ten_trees


def text(tree: CandidateTree) -> str:
    """The list, ranks 0..9."""
    return top_ten_list(tree, "EAGLE-1")


ENGINE = Engine(
    name="eagle",
    versions="EAGLE-1, branch v1 of its repository",
    bound="ranks under 10",
    hint="EAGLE-1: model.eagenerate(..., tree_choices=<this list>)",
    text=text,
    trees=top_ten_trees,
)
