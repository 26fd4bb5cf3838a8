"""Categories shown: as tables and as bars, what one common tree accepts of each kind of text and what it loses there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medusa_runtime.treefile import Estimate

from ..planning.calibration import Calibration
from ..planning.categories import Categories, Category, CategoryAcceptance, by_category
from ..planning.plan import Plan
from ..planning.played import looked_up
from .charts import Bar, BarChart
from .tables import narrow_table, plus_minus

if TYPE_CHECKING:
    from rich.table import Table

ITS_OWN = "its own: the best tree of at most as many nodes, made from the category's\nfitting sequences alone"


def categories(plan: Plan, shown: int = 1) -> list[Categories]:
    """The first ``shown`` operating points' trees against each category's own, and their books; none where the trace has no categories."""
    points = plan.contents.operating_points[:shown]
    contents, beside = plan.contents, looked_up(plan.task.calibration)
    found = [
        by_category(
            plan.task, contents.tree_of(p), (p.batch, p.context), contents.book_of(p, beside) if p.book else None
        )
        for p in points
    ]
    return [f for f in found if f is not None]


def called(name: str) -> str:
    """A category's name; what has none is told, too."""
    return name or "(none)"


def lost(ratio: Estimate) -> Estimate:
    """A ratio of tokens/s as a change in per cent."""
    return Estimate(*(100 * (x - 1) for x in (ratio.value, ratio.low, ratio.high)))


def category_table(split: Categories, calibration: Calibration) -> Table:
    """The common tree by category beside each category's own tree, and what it loses of tokens/s."""
    from rich.markup import escape

    batch, context = split.load
    latency = calibration.latency
    modelled, book = latency.kind == "modelled", split.whole.book is not None
    table = narrow_table(
        f"One tree for all categories, at batch {batch}, context {context}\n{latency.device}, {latency.dtype}",
        "category", "held out", "acceptance", "speedup", "with its own", "lost", *(["tree book"] if book else []),
        *(["time"] if modelled else []),
    )  # fmt: skip
    for row in (*split.rows, split.whole):
        last = row is split.whole
        if last:
            table.add_section()
        cells = [*_cells(row), *(_of_book(row) if book else []), *([latency.kind] if modelled else [])]
        table.add_row("all" if last else escape(called(row.name)), *cells, style="bold" if last else None)
    more = f"\n{split.left_out} smaller categories have no row" if split.left_out else ""
    more += "\ntree book: by the one book for all, acceptance, and lost to a book of its own" if book else ""
    table.caption = f"held out: sequences; acceptance: tokens a step on them; lost: tokens/s, paired\n{ITS_OWN}{more}\n±: half the 95% interval"
    return table


def _of_book(row: Category) -> list[str]:
    """What the common book accepts, and what it loses to a book of the category's own."""
    if row.book is None:
        return [""]
    price = f", {lost(row.book.over_own).value:+.0f}%" if row.book.over_own else ""
    return [f"{row.book.acceptance_length.value:.2f}{price}"]


def _cells(row: Category) -> list[str]:
    """A row but for its name."""
    if row.acceptance_length is None or row.speedup is None:
        return [str(row.held_out), "", "", f"[dim]{row.why}[/dim]", ""]
    known = [str(row.held_out), plus_minus(row.acceptance_length, ".2f"), f"{row.speedup.value:.2f}x"]
    if row.own is None:
        return [*known, f"[dim]{row.why}[/dim]", ""]
    change = lost(row.own.common_over_own)
    half = (change.high - change.low) / 2
    return [*known, plus_minus(row.own.acceptance_length, ".2f"), f"{change.value:+.1f}% [dim]±{half:.1f}[/dim]"]


def acceptance_by_category_table(names: Sequence[str], rows: Sequence[CategoryAcceptance]) -> Table:
    """Acceptance length of each compared tree, a column each, on each category's held-out sequences."""
    from rich.markup import escape

    table = narrow_table("Acceptance by category", "category", "held out", *map(escape, names))
    for column in table.columns[2:]:  # names may be long
        column.no_wrap = False
    for row in rows:
        whole = row.name is None
        if whole:
            table.add_section()
        cells = [plus_minus(e, ".2f") for e in row.lengths] or ["[dim]too few[/dim]"] * len(names)
        name = "all" if row.name is None else called(row.name)
        table.add_row(escape(name), str(row.held_out), *cells, style="bold" if whole else None)
    table.caption = "held out: sequences; acceptance: tokens a step, replay on them, ± half the 95% interval"
    return table


def category_chart(split: Categories) -> BarChart:
    """A bar a category: the common tree's acceptance length, and a stroke across where the category's own tree is."""
    bars = []
    for row in split.rows:
        if row.acceptance_length is None:
            continue
        e, name = row.acceptance_length, called(row.name)
        tip = f"{name}: {e.value:.2f} tokens a step ({e.low:.2f} to {e.high:.2f})"
        if row.own is not None:
            change = lost(row.own.common_over_own)
            tip += f", its own tree {row.own.acceptance_length.value:.2f}; tokens/s {change.value:+.1f}% ({change.low:+.1f} to {change.high:+.1f})"
        beside = None if row.own is None else row.own.acceptance_length.value
        bars.append(Bar(name, e.value, e.low, e.high, tip, beside))
    told = "; ".join(f"{bar.name} {bar.value:.2f}" for bar in bars)
    return BarChart(bars, f"Acceptance length by category, tokens a step: {told}", "tokens a step", floor=1)
