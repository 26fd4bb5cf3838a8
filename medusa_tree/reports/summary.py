"""What the tables say, for machines: the JSON that commands print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from medusa_runtime.acceptance.rules import rule_json
from medusa_runtime.book import TreeBook

from ..devices.latency import Load
from ..planning.calibration import Calibration
from ..planning.categories import Categories, CategoryAcceptance
from ..planning.compare import Compared
from ..planning.notes import notes, roofline_beside
from ..planning.plan import Plan
from ..traces.trace import RankTrace, top_k_interval
from .tables import tops


def summary(
    calibration: Calibration, plan: Plan, rows: dict[Load, list[Compared]], split: Sequence[Categories]
) -> dict[str, Any]:
    """What the tables say, for machines."""
    fitted = roofline_beside(calibration.latency, calibration.shape)
    return {
        "acceptance": rule_json(plan.contents.acceptance),
        "lossless": plan.contents.acceptance.lossless,
        "head_accuracy": accuracy_json(calibration.trace),
        "predicted": [compared_json(row) for compared in rows.values() for row in compared],
        "categories": [row for found in split for row in categories_json(found)],
        "operating_points": [asdict(p) for p in plan.contents.operating_points],
        "plain_from_batch": {str(k): v for k, v in plan.plain_from.items()},
        "infeasible": {f"batch {b}, context {c}": why for (b, c), why in plan.infeasible.items()},
        "roofline": None if fitted is None else fitted[1],
        "notes": notes(calibration, plan, split),
        "provenance": plan.contents.provenance,
    }


def accuracy_json(trace: RankTrace) -> dict[str, list[dict[str, float]]]:
    """Top-k accuracy of each head."""
    return {
        f"top_{k}": [
            dict(zip(("value", "low", "high"), map(float, h), strict=True))
            for h in zip(*top_k_interval(trace, k), strict=True)
        ]
        for k in tops(trace.candidates)
    }


def trace_json(trace: RankTrace) -> dict[str, Any]:
    """What is in a trace, for machines."""
    return {
        "positions": trace.positions, "sequences": len(trace.lengths), "held_out": int(trace.held_out.sum()), "heads": trace.heads,
        "candidates": trace.candidates, "head_accuracy": accuracy_json(trace),
    }  # fmt: skip


def compared_json(row: Compared) -> dict[str, Any]:
    """One row of a comparison."""
    return {
        "tree": row.name, **asdict(row.point),
        "over_first": {"acceptance_length": asdict(row.acceptance_ratio), "tokens_per_s": asdict(row.rate_ratio)},
        **({} if row.book is None else {"book": _book_json(row.book), "drafted": row.drafted and asdict(row.drafted)}),
    }  # fmt: skip


def _book_json(book: TreeBook) -> dict[str, Any]:
    """A compared book: its lookup, and of each tree from which match length it is used and its size."""
    trees = [
        {"match": match, "nodes": tree.nodes, "heads": tree.heads, "lookup": tree.lookup}
        for match, tree in zip(book.matches, book.trees, strict=True)
    ]
    return {"lookup": book.lookup and asdict(book.lookup), "trees": trees}


def categories_json(split: Categories) -> list[dict[str, Any]]:
    """The common tree against each category's own, a row each; "category" is null for all of them together."""
    batch, context = split.load
    rows = [(row.name, row) for row in split.rows] + [(None, split.whole)]
    return [
        {
            "category": name, "batch": batch, "context": context, "sequences": {"fitting": row.fitting, "held_out": row.held_out},
            "positions": row.positions, "acceptance_length": row.acceptance_length and asdict(row.acceptance_length),
            "speedup": row.speedup and asdict(row.speedup), "own": row.own and asdict(row.own), "why": row.why,
            "book": row.book and asdict(row.book),
        }
        for name, row in rows
    ]  # fmt: skip


def acceptance_by_category_json(names: Sequence[str], rows: Sequence[CategoryAcceptance]) -> list[dict[str, Any]]:
    """Any trees by category; "category" is null for all of them together."""
    return [
        {
            "category": row.name, "held_out": row.held_out,
            "acceptance_length": [{"tree": n, **asdict(e)} for n, e in zip(names, row.lengths, strict=False)],
        }
        for row in rows
    ]  # fmt: skip
