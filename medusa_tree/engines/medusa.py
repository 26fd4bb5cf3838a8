"""FasterDecoding Medusa: ``medusa_choices``, a list of lists of ranks 0..9 with every prefix present."""

from medusa_runtime.tree import CandidateTree

from .engine import Engine
from .top_ten import top_ten_list, top_ten_trees


def text(tree: CandidateTree) -> str:
    """The list, ranks 0..9."""
    return top_ten_list(tree, "the FasterDecoding runtime")


ENGINE = Engine(
    name="medusa",
    versions="FasterDecoding Medusa 1.0 (0.1 took a number of choices a head)",
    bound="ranks under 10",
    hint="FasterDecoding Medusa: model.medusa_generate(..., medusa_choices=<this list>)",
    text=text,
    trees=top_ten_trees,
)
