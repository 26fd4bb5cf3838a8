"""The budget on the command line: what a step may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from .common import COUNT, NODES, Command, together

if TYPE_CHECKING:
    from collections.abc import Callable

    from medusa_tree.planning.budget import Budget


@dataclass(frozen=True)
class Bounds:
    """The options that bound a step, as given: None where they were not."""

    budget: str | None
    max_nodes: int | None
    max_depth: int | None

    def parse(self, memory: float | None = None) -> Budget:
        """The budget that they are, with a bound on ``memory`` in bytes.

        Raises:
            InputError: see :func:`parse_budget`.
        """
        from medusa_tree.planning.budget import Budget, parse_budget

        ratio, seconds = parse_budget(self.budget)
        return Budget(ratio, seconds, self.max_nodes, self.max_depth, memory)


def budget_options(max_nodes: int | None, says: str) -> Callable[[Command], Command]:
    """--budget, --max-nodes and --max-depth; the command gets them as one ``bounds``.

    Args:
        max_nodes: the default, which ``says`` explains.
    """
    return together(
        Bounds,
        "bounds",
        click.option("--budget", help="Longest step: a ratio to plain decoding (1.3x) or a time (25ms).  [default: none]"),
        click.option("--max-nodes", type=NODES, default=max_nodes, help=f"Largest tree.  [default: {says}]"),
        click.option("--max-depth", type=COUNT, help="Deepest tree: how many heads to use.  [default: all]"),
    )  # fmt: skip
