"""Hydra: ``hydra_choices``, the same list as Medusa's, ranks 0..9."""

from medusa_runtime.tree import CandidateTree

from .engine import Engine
from .top_ten import top_ten_list, top_ten_trees


def text(tree: CandidateTree) -> str:
    """The list, ranks 0..9."""
    return top_ten_list(tree, "Hydra")


ENGINE = Engine(
    name="hydra",
    versions="Hydra 0.1, as published with its paper",
    bound="ranks under 10",
    hint="Hydra: model.hydra_generate(..., hydra_choices=<this list>)",
    text=text,
    trees=top_ten_trees,
)
