"""The report page: one self-contained HTML file that says what was measured, what is predicted and where it comes from.

Here are the figures and words that it shows; page.html, with book.html, macros.html and charts.html, puts them into HTML, and page.css
gives them their look.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from medusa_runtime.errors import InputError
from medusa_runtime.files import write_beside
from medusa_runtime.reading import read_as
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Book, Estimate, OperatingPoint, TreeFile

from ..drafters import HEADS
from ..origin import Origin, origin
from ..planning.budget import Budget
from ..planning.calibration import Calibration
from ..planning.notes import notes
from ..planning.plan import Plan, plan
from ..traces.trace import head_accuracy, top_k_interval
from .books import Range, book_charts, drafted_by, drafters, lookup_line, ranges, reads_heads, what_numbers_say
from .categories import called, categories, category_chart, lost
from .charts import TreeChart, percent, tree_chart
from .figures import figures
from .tables import RANKS_DRAWN, compared_sizes, path_frequencies, runs, tops

LARGEST_DRAWN = 64  # nodes


@dataclass(frozen=True)
class Accuracy:
    """Head accuracy: ``by_rank`` shares (heads, ranks drawn), and ``top`` in per cent (heads, tops), with its intervals
    where the trace is at hand."""

    by_rank: list[list[float]]
    tops: list[str]
    top: list[list[Estimate]]


@dataclass(frozen=True)
class DrawnTree:
    """An operating point's tree, of whose ``nodes`` only ``drawn`` are in the chart."""

    point: OperatingPoint
    nodes: int
    drawn: int
    chart: TreeChart


@dataclass(frozen=True)
class DrawnBook:
    """An operating point's book: whether it reads heads, its ranges, what a step adds to the text by who drafted it, the trees as charts, of
    whose paths only ``cut`` are in them (0: all), what their numbers say, and where it looks."""

    point: OperatingPoint
    heads: bool
    ranges: list[Range]
    drafted: list[tuple[str, float]]
    charts: list[TreeChart]
    cut: int
    numbers: str
    lookup: str


def templates() -> Environment:
    """The templates beside this file. Whatever they are given is escaped; what they are not given is an error."""
    found = Environment(
        loader=PackageLoader("medusa_tree.reports", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters.update(
        number=format,
        percent=percent,
        bounds=_bounds,
        called=called,
        lost=lost,
        sizes=compared_sizes,
        drafters=drafters,
    )
    return found


def how_planned(contents: TreeFile, where: str = "tree.json") -> tuple[Origin, Budget]:
    """What the file says of how it was planned; InputError, which names ``where``, where that is of a wrong type."""
    made = origin(contents, where)
    return made, read_as(Budget, made.plan.budget, f'{where}: field "provenance", "plan", "budget"')


def replan(contents: TreeFile, calibration: Calibration) -> Plan:
    """The plan behind a tree.json, made again from what it was planned from as its provenance says."""
    made, budget = how_planned(contents)
    loads = [(p.batch, p.context) for p in contents.operating_points]
    estimator, engine, swaps = made.estimator.name or "visited", made.plan.engine, made.plan.swaps
    drafts = made.plan.drafts or HEADS  # planned before there was a lookup
    return plan(calibration, budget, loads, engine=engine, estimator=estimator, swaps=swaps, drafts=drafts)


def write_page(path: Path, contents: TreeFile, calibration: Calibration | None) -> list[str]:
    """Write the page; whole or not at all.

    Args:
        calibration: what ``contents`` was planned from; without it the page has no curves.

    Returns:
        what the reader should know: empty, or that the calibration is missing or another one.
    """
    warnings: list[str] = []
    again: Plan | None = None
    if calibration is None:
        warnings.append(
            "The calibration was not found, so there are no curves, intervals of accuracy or comparison here; give it with --calibration."
        )
    else:
        again = _same_plan(contents, calibration)
        if again is None:
            warnings.append(
                "Planning again from this calibration gives another tree or other times: it is not the one that this tree.json was made from, or the file was edited. The curves are left out."
            )
            calibration = None
    planned = None if calibration is None or again is None else (calibration, again)
    split = [] if again is None else categories(again)
    html = templates().get_template("page.html").render(
        contents=contents, name=_model_name(contents), about=_about(contents), warnings=warnings,
        accuracy=_accuracy(contents, calibration), trace=calibration and calibration.trace,
        figures=planned and figures(contents, *planned), tree=_tree(contents), book=_book(contents),
        first=runs(contents, contents.operating_points[0]), does=[(p, runs(contents, p)) for p in contents.operating_points],
        notes=planned and [line.strip() for line in notes(*planned, split)],
        categories=[(found, category_chart(found)) for found in split], provenance=list(_flat("", contents.provenance)),
    )  # fmt: skip
    with write_beside(path) as beside:
        beside.write_text(html, "utf-8")
    return warnings


def _same_plan(contents: TreeFile, calibration: Calibration) -> Plan | None:
    """The plan behind the tree.json; None where this calibration gives another one."""
    try:
        again = replan(contents, calibration)
    except InputError:  # say, loads that were not measured this time
        return None
    points = again.contents.operating_points, contents.operating_points
    told = [
        [(p.nodes, p.depth, p.acceptance_length, p.step_latency_ms, _told(p.book)) for p in these] for these in points
    ]
    return again if again.contents.paths == contents.paths and told[0] == told[1] else None


def _told(book: Book | None) -> Any:
    """What of a book is the same where it is planned again."""
    if book is None:
        return None
    trees = [(t.match, t.paths, t.lookup) for t in book.trees]
    return book.lookup, trees, book.acceptance_length, book.step_latency_ms


def _model_name(contents: TreeFile) -> str:
    made = origin(contents)
    return made.model.name or made.trace or "a drafter"


def _about(contents: TreeFile) -> str:
    made = contents.provenance
    day = str(made.get("date", ""))[:10]
    what = [
        made.get("device"),
        made.get("dtype"),
        f"{contents.heads} heads" if contents.heads else "no heads",
        contents.acceptance,
        day,
    ]
    return " · ".join(str(w) for w in what if w)


def _accuracy(contents: TreeFile, calibration: Calibration | None) -> Accuracy:
    if not contents.heads:  # whatever the calibration has
        return Accuracy([], [], [])
    known = tops(contents.candidates)
    if calibration is None:
        by_rank = np.array(contents.head_accuracy).reshape(contents.heads, contents.candidates)
        found = [(t, t, t) for t in (by_rank[:, :k].sum(axis=1) for k in known)]
    else:
        by_rank = head_accuracy(calibration.trace)
        found = [top_k_interval(calibration.trace, k) for k in known]
    top = [[Estimate(*(100 * float(x[h]) for x in f)) for f in found] for h in range(contents.heads)]
    return Accuracy(by_rank[:, :RANKS_DRAWN].tolist(), [f"top-{k}" for k in known], top)


def _tree(contents: TreeFile) -> DrawnTree | None:
    """The tree of the first operating point that has one."""
    p = next((p for p in contents.operating_points if p.nodes), None)
    if p is None:
        return None
    tree = contents.tree_of(p)
    drawn = CandidateTree(tree.paths[:LARGEST_DRAWN])
    title = f"Candidate tree of {tree.nodes} nodes, {tree.depth} levels"
    return DrawnTree(p, tree.nodes, drawn.nodes, tree_chart(drawn, path_frequencies(contents, drawn), title))


def _book(contents: TreeFile) -> DrawnBook | None:
    """The book of the first operating point that has one."""
    p = next((p for p in contents.operating_points if p.book), None)
    if p is None or p.book is None:
        return None
    drafted = [("the root, the model's own", 1.0), *drafted_by(p.book.drafted)]
    cut = LARGEST_DRAWN if any(len(tree.paths) > LARGEST_DRAWN for tree in p.book.trees) else 0
    return DrawnBook(
        p, reads_heads(p.book), ranges(contents, p), drafted, book_charts(contents, p, LARGEST_DRAWN), cut, what_numbers_say(p.book), lookup_line(p.book),
    )  # fmt: skip


def _bounds(p: OperatingPoint) -> list[str]:
    """What bounds an operating point's tree, and the engine's settings."""
    settings = [f"{k} {v}" for k, v in p.engine.items()]
    return [x for x in (p.limit, "own order" if p.why_own else "", *settings) if x]


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Nested provenance as (name, value) lines; what is empty is left out."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}, {key}" if name else str(key), inner)
    elif value not in (None, {}, ""):
        yield name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value)
