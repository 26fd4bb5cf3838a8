"""Tables of a plan and a comparison: what was measured of the heads, what is predicted of the trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Estimate, OperatingPoint, TreeFile

from ..origin import origin
from ..planning.calibration import Calibration
from ..planning.compare import Compared, compare, lookup_alone, usual
from ..planning.plan import Plan
from ..planning.played import looked_up
from ..traces.trace import RankTrace, top_k_interval

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree

TOP = (1, 3, 5, 10)
RANKS_DRAWN = 16  # of an accuracy heat map; a drafter from elsewhere may have thousands


def comparison(calibration: Calibration, plan: Plan, point: OperatingPoint) -> list[Compared]:
    """Plain decoding, a chain of first guesses, the copied 64-node list, the chosen tree, and where an engine bounds
    it the best tree of any form; where there is a book, its lookup alone, too, and the book last, which is heads and lookup: all
    predicted on the same held-out sequences and latency."""
    _, held = calibration.trace.split()
    load = (point.batch, point.context)
    latency = calibration.latency.curve(*load)
    trees = usual(held, latency)
    engine = origin(plan.contents).plan.engine
    book = None if point.book is None else plan.contents.book_of(point, looked_up(calibration))
    if book is not None and book.lookup is not None and book.chain and book.heads:
        trees.append((f"lookup of {book.chain}", lookup_alone(book.chain, book.lookup, book.beside)))
    if load in plan.free:
        trees.append(("free tree", plan.free[load][1]))
    if point.nodes or book is None:
        trees.append((f"chosen for {engine}" if engine else "chosen tree", plan.contents.tree_of(point)))
    if book is not None:
        trees.append(("tree book", book))
    return compare(trees, held, latency, load, calibration.latency.kind, calibration.latency.gpu)


def narrow_table(title: str, *columns: str, left: int = 1) -> Table:
    """A table that fits 80 columns: rules under the head only, the first ``left`` columns to the left."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right", no_wrap=i >= left, overflow="fold")
    return table


def tops(candidates: int) -> list[int]:
    """The k of TOP for which top-k accuracy is known where K candidates were kept."""
    return [k for k in TOP if k <= candidates]


def accuracy_table(trace: RankTrace) -> Table:
    """Top-k accuracy of each head on all sequences, with 95% intervals."""
    known = tops(trace.candidates)
    table = narrow_table(
        f"Head accuracy on the model's own output, {trace.acceptance}\n{trace.positions:,} positions, {len(trace.lengths)} sequences",
        "head",
        *(f"top-{k}, %" for k in known),
    )
    columns = [top_k_interval(trace, k) for k in known]
    for h in range(trace.heads):
        table.add_row(
            f"{h + 1}: next + {h + 1}",
            *(plus_minus(Estimate(*(100 * float(x[h]) for x in c)), ".1f") for c in columns),
        )
    table.caption = "±: half the 95% interval, whole sequences resampled"
    return table


def comparison_table(rows: list[Compared], device: str, first: str = "", bold: str = "") -> Table:
    """Trees side by side at one batch and context, as speedups, or as ratios to the row called ``first``."""
    point = rows[0].point
    columns = ["tree", "nodes", "depth", "acceptance", "step ms", "tokens/s", f"over {first}" if first else "speedup"]
    modelled = point.latency == "modelled"
    table = narrow_table(
        f"Predicted at batch {point.batch}, context {point.context}\n{device}",
        *columns, *(["time"] if modelled else []),
    )  # fmt: skip
    for row in rows:
        p = row.point
        ratio = f"{p.speedup.value:.2f}x" if not first else plus_minus(row.rate_ratio, ".3f")
        table.add_row(
            row.name.replace("#heads", ", heads"), compared_sizes(row), str(p.depth), plus_minus(p.acceptance_length, ".2f") if p.nodes else "1.00",
            f"{p.step_latency_ms.value:.2f}", f"{p.tokens_per_s.value:,.0f}", ratio, *([p.latency] if modelled else []),
            style="bold" if row.name == bold else None,
        )  # fmt: skip
    books = "\nof a book: nodes, its trees' sizes; depth, the most heads read" if any(row.book for row in rows) else ""
    paired = f"; over {first}: tokens/s, paired" if first else ""
    table.caption = f"acceptance: tokens a step, replay on held-out sequences, ± half the 95% interval\nstep time: {point.latency}{paired}{books}"
    return table


def compared_sizes(row: Compared) -> str:
    """How many nodes; of a book "0-24"."""
    return str(row.point.nodes) if row.book is None else sizes([tree.nodes for tree in row.book.trees])


def sizes(nodes: Sequence[int]) -> str:
    """ "0-24", or "24" where all are as large."""
    return f"{min(nodes)}-{max(nodes)}" if min(nodes) < max(nodes) else str(nodes[0])


@dataclass(frozen=True)
class Runs:
    """What the runtime does at a point, in the columns of tables: ``nodes`` and ``depth``, "" where decoding is plain, of a book the
    sizes of its trees, and the most heads; ``trees`` of the book, 0 where there is none; and the figures, of the book or of the tree."""

    nodes: str
    depth: str
    trees: int
    acceptance_length: Estimate
    step_latency_ms: Estimate
    tokens_per_s: Estimate
    speedup: Estimate


def runs(contents: TreeFile, point: OperatingPoint) -> Runs:
    """What the runtime does at a point."""
    told = point.book or point
    figures = told.acceptance_length, told.step_latency_ms, told.tokens_per_s, told.speedup
    if point.book is None:
        return Runs(*((str(point.nodes), str(point.depth)) if point.nodes else ("", "")), 0, *figures)
    book = contents.book_of(point)
    return Runs(sizes([tree.nodes for tree in book.trees]), str(book.heads), len(book.trees), *figures)


def points_table(contents: TreeFile, device: str) -> Table:
    """What to run at each batch and context; where there are books, how many trees each has, in the place of a depth."""
    points = contents.operating_points
    modelled, books = any(p.latency == "modelled" for p in points), any(p.book for p in points)
    table = narrow_table(
        f"Operating points\n{device}",
        "batch", "context", "nodes", "book" if books else "depth", "acceptance", "ms" if modelled and books else "step ms",
        "tokens/s", "speedup", *(["time"] if modelled else []), left=0,
    )  # fmt: skip
    for p in points:
        does = runs(contents, p)
        table.add_row(
            str(p.batch), f"{p.context:,}", does.nodes or "plain", str(does.trees or "") if books else does.depth,
            plus_minus(does.acceptance_length, ".2f") if does.nodes else "1.00", f"{does.step_latency_ms.value:.2f}",
            f"{does.tokens_per_s.value:,.0f}", f"{does.speedup.value:.2f}x", *([p.latency] if modelled else []),
        )  # fmt: skip
    if books:
        table.caption = "book: how many trees, by match length; nodes: their sizes" + "; ms: of a step" * modelled
    return table


def plus_minus(e: Estimate, form: str) -> str:
    return f"{e.value:{form}} [dim]±{(e.high - e.low) / 2:{form}}[/dim]"


def path_frequencies(contents: TreeFile, tree: CandidateTree) -> list[float]:
    """f(v) of each of the tree's nodes, in the tree's order."""
    known = dict(zip(contents.paths, contents.path_frequency, strict=True))
    return [known[p] for p in tree.paths]


def terminal_tree(contents: TreeFile, tree: CandidateTree) -> Tree:
    """The tree as branches: rank at each node and its path frequency; a chain of looked-up tokens is one line."""
    from rich.tree import Tree

    branches = {0: Tree("[bold]root[/bold]: the model's own next token")}
    frequency = path_frequencies(contents, tree)
    for i, path in enumerate(tree.paths, start=1):
        f = frequency[i - 1]
        branches[i] = branches[int(tree.parents[i])].add(
            f"{path[-1]}  [dim]head {len(path)}[/dim]  [cyan]{f:.3f}[/cyan] [blue]{'▇' * round(20 * f)}[/blue]"
        )
    if tree.lookup:
        branches[0].add(f"[magenta]lookup[/magenta]  {tree.lookup} token{'s' * (tree.lookup > 1)}")
    return branches[0]
