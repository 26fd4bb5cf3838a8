"""Tables of a measured grid: what a step takes with trees of each size, at each load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medusa_runtime.acceptance.rules import Rule

from ..devices.latency import LatencyGrid, LatencyPoint
from .tables import narrow_table

if TYPE_CHECKING:
    from rich.table import Table


def latency_tables(grid: LatencyGrid, rule: Rule) -> list[Table]:
    """A table a load: plain decoding, and of each size the deepest tree that was timed."""
    return [_table(grid, rule, batch, context) for batch, context in grid.loads()]


def _table(grid: LatencyGrid, rule: Rule, batch: int, context: int) -> Table:
    curve = grid.curve(batch, context)
    table = narrow_table(
        f"Step latency at batch {batch}, context {context:,}\n{grid.device}, {grid.dtype}\n{rule}",
        "nodes", "depth", "step ms", "quartiles", "over plain", left=0,
    )  # fmt: skip
    deepest: dict[int, LatencyPoint] = {}
    for p in sorted((curve.plain, *curve.points), key=lambda p: (p.nodes, p.depth)):
        deepest[p.nodes] = p
    for p in deepest.values():
        table.add_row(
            str(p.nodes) if p.nodes else "plain", str(p.depth) if p.nodes else "", f"{1e3 * p.seconds:.2f}",
            f"[dim]{1e3 * p.low:.2f} to {1e3 * p.high:.2f}[/dim]", f"{p.seconds / curve.plain.seconds:.2f}x",
        )  # fmt: skip
    if any(p.depth for p in curve.points):
        table.caption = (
            f"a head, whatever the nodes: {1e3 * curve.per_head:.2f} ms, from shallower trees of the same sizes"
        )
    return table
