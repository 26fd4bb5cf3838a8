"""The report page: one self-contained HTML file that says what was measured, what is predicted and where it comes from."""

from __future__ import annotations

from html import escape
from importlib.resources import files as packaged
from pathlib import Path
from typing import Any

import numpy as np

from medusa_runtime.errors import InputError
from medusa_runtime.files import write_beside
from medusa_runtime.reading import read_as
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Estimate, TreeFile

from ..origin import Origin, origin
from ..planning.budget import Budget
from ..planning.calibration import Calibration
from ..planning.notes import notes
from ..planning.plan import Plan, plan
from ..traces.trace import head_accuracy, top_k_interval
from .charts import percent, tree_chart
from .figures import figures
from .markup import acceptance, pair, plus_minus, said, section, table
from .tables import RANKS_DRAWN, path_frequencies, tops

LARGEST_DRAWN = 64  # nodes


def how_planned(contents: TreeFile, where: str = "tree.json") -> tuple[Origin, Budget]:
    """What the file says of how it was planned; InputError, which names ``where``, where that is of a wrong type."""
    made = origin(contents, where)
    return made, read_as(Budget, made.plan.budget, f'{where}: field "provenance", "plan", "budget"')


def replan(contents: TreeFile, calibration: Calibration) -> Plan:
    """The plan behind a tree.json, made again from what it was planned from as its provenance says."""
    made, budget = how_planned(contents)
    loads = [(p.batch, p.context) for p in contents.operating_points]
    return plan(
        calibration,
        budget,
        loads,
        engine=made.plan.engine,
        swaps=made.plan.swaps,
        estimator=made.estimator.name or "visited",
    )


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
    body = [_head(contents), *(f'<p class="note">{escape(w)}</p>' for w in warnings), _accuracy(contents, calibration)]
    if calibration is not None and again is not None:
        body += figures(contents, calibration, again)
    body += [_tree(contents), _points(contents, calibration, again), _provenance(contents)]
    style = packaged("medusa_tree.reports").joinpath("page.css").read_text("utf-8")
    title = escape(_model_name(contents))
    html = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Candidate tree of {title}</title><style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )
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
    told = [[(p.nodes, p.depth, p.acceptance_length, p.step_latency_ms) for p in these] for these in points]
    return again if again.contents.paths == contents.paths and told[0] == told[1] else None


def _model_name(contents: TreeFile) -> str:
    made = origin(contents)
    return made.model.name or made.trace or "a drafter"


def _head(contents: TreeFile) -> str:
    made, p = contents.provenance, contents.operating_points[0]
    what = [
        made.get("device"),
        made.get("dtype"),
        f"{contents.heads} heads",
        str(contents.acceptance),
        str(made.get("date", ""))[:10],
    ]
    kind = f"predicted with {said(p.latency)} latency"
    if p.nodes:
        lead = (
            f"<strong>{p.nodes} nodes, depth {p.depth}</strong>: <strong>{p.acceptance_length.value:.2f} tokens a step</strong>, "
            f"<strong>{p.speedup.value:.2f}x plain decoding</strong>, {kind}"
        )
    else:
        lead = f"<strong>Plain decoding</strong> is fastest, {kind}"
    return (
        f"<header><h1>Candidate tree of {escape(_model_name(contents))}</h1>"
        f'<p class="soft">{escape(" · ".join(str(w) for w in what if w))}</p>'
        f'<p class="lead">{lead}, at batch {p.batch}, context {p.context:,}.</p></header>'
    )


def _accuracy(contents: TreeFile, calibration: Calibration | None) -> str:
    accuracy = np.array(contents.head_accuracy) if calibration is None else head_accuracy(calibration.trace)
    shown = accuracy[:, :RANKS_DRAWN]
    cells = "".join(
        f'<tr><th scope="row">head {k + 1}</th>'
        + "".join(f'<td style="--share:{60 * a:.0f}%">{percent(a)}</td>' for a in row)
        + "</tr>"
        for k, row in enumerate(shown)
    )
    head = "".join(f'<th scope="col">{i}</th>' for i in range(shown.shape[1]))
    heat = (
        f'<figure><div class="scroll"><table class="heat"><thead><tr><th scope="col">rank</th>{head}</tr></thead><tbody>{cells}</tbody></table></div>'
        "<figcaption>% of positions at which the token that the model emits has this rank among the head's guesses; 0 is the first</figcaption></figure>"
    )
    known = tops(contents.candidates)
    if calibration is None:
        rows = [
            [f"head {h + 1}", *(f"{100 * accuracy[h, :k].sum():.1f}" for k in known)] for h in range(contents.heads)
        ]
        caption = "top-k accuracy, %"
    else:
        found = [top_k_interval(calibration.trace, k) for k in known]
        rows = [
            [f"head {h + 1}", *(plus_minus(Estimate(*(100 * float(x[h]) for x in f)), ".1f") for f in found)]
            for h in range(contents.heads)
        ]
        caption = f"top-k accuracy, %, ± half the 95% interval; {calibration.trace.positions:,} positions, {len(calibration.trace.lengths)} sequences"
    return section("Head accuracy", pair(heat, table(["", *(f"top-{k}" for k in known)], rows, caption)))


def _tree(contents: TreeFile) -> str:
    p = next((p for p in contents.operating_points if p.nodes), None)
    if p is None:
        return section("The tree", "<p>Plain decoding is fastest at every load planned for: there is no tree.</p>")
    tree = contents.tree_of(p)
    frequency = path_frequencies(contents, tree)
    drawn, cut = tree, ""
    if tree.nodes > LARGEST_DRAWN:
        drawn = CandidateTree(tree.paths[:LARGEST_DRAWN])
        cut = f" Of its {tree.nodes} nodes the {LARGEST_DRAWN} most frequent are drawn."
    figure = tree_chart(drawn, frequency, f"Candidate tree of {tree.nodes} nodes, {tree.depth} levels")
    return section(
        f"The tree for batch {p.batch}, context {p.context:,}",
        f"<p>In a node its rank among the head's guesses, 0 the first; beside it how often decoding follows the path.{cut}</p>",
        f'<div class="scroll"><figure>{figure}</figure></div>',
    )


def _points(contents: TreeFile, calibration: Calibration | None, again: Plan | None) -> str:
    rows = [
        [
            str(p.batch), f"{p.context:,}", str(p.nodes) if p.nodes else "plain", str(p.depth) if p.nodes else "",
            acceptance(p), f"{p.step_latency_ms.value:.2f}",
            f"{p.tokens_per_s.value:,.0f}", f"{p.speedup.value:.2f}x", said(p.latency),
            escape(", ".join(x for x in (p.limit, "own order" if p.why_own else "", *(f"{k} {v}" for k, v in p.engine.items())) if x)),
        ]
        for p in contents.operating_points
    ]  # fmt: skip
    columns = [
        "batch",
        "context",
        "nodes",
        "depth",
        "acceptance",
        "step ms",
        "tokens/s",
        "speedup",
        "latency",
        "bound by, settings",
    ]
    lines = [] if calibration is None or again is None else notes(calibration, again)
    listed = f'<ul class="notes">{"".join(f"<li>{escape(line.strip())}</li>" for line in lines)}</ul>' if lines else ""
    return section(
        "Operating points",
        table(
            columns,
            rows,
            "acceptance: tokens a step; the runtime picks the point for the batch and context it is given",
        ),
        listed,
    )


def _provenance(contents: TreeFile) -> str:
    rows: list[tuple[str, str]] = []

    def flatten(name: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                flatten(f"{name}, {key}" if name else str(key), inner)
        elif value not in (None, {}, ""):
            rows.append((name.replace("_", " "), str(value)))

    flatten("", contents.provenance)
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows)
    return section("Where it comes from", f"<dl>{items}</dl>")
