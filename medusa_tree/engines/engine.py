"""What an engine's file says of it: versions, bound, the best trees within it, and how a tree is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medusa_runtime.tree import CandidateTree

from ..search.order import Expand
from ..traces.trace import RankTrace


@dataclass(frozen=True)
class EngineTree:
    """A tree that the engine can run, and its settings there."""

    tree: CandidateTree
    settings: dict[str, Any] = field(default_factory=dict)


Family = Callable[[Expand, RankTrace, Sequence[int], int], list[EngineTree]]
"""(path frequencies, the trace they come from, sizes, deepest level) -> the best trees of those sizes and every depth."""


@dataclass(frozen=True)
class Engine:
    """One engine, or one form in which engines take a tree.

    name: what ``--format`` and ``--engine`` call it.
    versions: which versions of the engine take this form, in words.
    bound: which trees it can run, in words.
    hint: where the text goes, a line for people; ``{nodes}`` and ``{depth}`` become the tree's.
    text: tree -> the definition as the engine reads it; raises InputError where the engine could not run the tree, with
        the reason and the mend.
    trees: the best trees within the bound; None where any tree goes, so that there is nothing to plan within.
    settings_text: for an engine that is told settings rather than a tree: how those that were planned are written.
    """

    name: str
    versions: str
    bound: str
    hint: str
    text: Callable[[CandidateTree], str]
    trees: Family | None = None
    settings_text: Callable[[Mapping[str, Any]], str] | None = None

    def export(self, tree: CandidateTree, settings: Mapping[str, Any] | None = None) -> tuple[str, str]:
        """(text, hint) of the tree, with the settings under which this engine was planned to run it, if it was.

        Raises:
            InputError: a tree that the engine cannot take.
        """
        text = self.settings_text(settings) if settings and self.settings_text else self.text(tree)
        return text, self.hint.format(nodes=tree.nodes, depth=tree.depth)
