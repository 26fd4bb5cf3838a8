"""The report page: one self-contained HTML file that says what was measured, what is predicted and where it comes from."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from medusa_runtime.files import write_beside
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Estimate, OperatingPoint, TreeFile

from .budget import Budget
from .calibration import Calibration
from .charts import Mark, Series, chart, key, percent, tree_chart
from .compare import Compared
from .latency import Load
from .plan import Plan, plan
from .report import TOP, comparison, notes, path_frequencies, roofline_beside, roofline_line
from .roofline import Roofline
from .trace import head_accuracy, top_k_interval

SHOWN = 7  # loads told apart in one figure
LARGEST_DRAWN = 64  # nodes
SHAPES = ("square", "diamond", "ring")  # of the trees that people use


def replan(contents: TreeFile, calibration: Calibration) -> tuple[Calibration, Plan]:
    """The plan behind a tree.json, made again from its calibration as its provenance says; the calibration is returned
    with the roofline in place where the latency was modelled."""
    made = contents.provenance
    if "modelled" in made:
        roofline = Roofline.from_json(made["modelled"])
        calibration = replace(calibration, latency=roofline, shape=roofline.shape)
    how = made.get("plan", {})
    loads = [(p.batch, p.context) for p in contents.operating_points]
    again = plan(
        calibration, Budget(**how.get("budget", {})), loads, engine=how.get("engine"), swaps=how.get("swaps", False),
        estimator=made.get("estimator", {}).get("name", "visited"),
    )  # fmt: skip
    return calibration, again


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
        calibration, again = replan(contents, calibration)
        if again.contents.paths != contents.paths or [p.nodes for p in again.contents.operating_points] != [
            p.nodes for p in contents.operating_points
        ]:
            warnings.append(
                "Planning again from this calibration gives another tree: it is not the one that this tree.json was made from, or the file was edited. The curves are left out."
            )
            calibration = again = None
    body = [_head(contents), *(f'<p class="note">{escape(w)}</p>' for w in warnings), _accuracy(contents, calibration)]
    if calibration is not None and again is not None:
        body += _curves(contents, calibration, again)
    body += [_tree(contents), _points(contents, calibration, again), _provenance(contents)]
    style = files("medusa_tree").joinpath("page.css").read_text("utf-8")
    title = escape(_model_name(contents))
    html = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Candidate tree of {title}</title><style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )
    with write_beside(path) as beside:
        beside.write_text(html, "utf-8")
    return warnings


def _model_name(contents: TreeFile) -> str:
    made = contents.provenance
    return str(made.get("model", {}).get("name") or made.get("trace") or "a drafter")


def _head(contents: TreeFile) -> str:
    made, p = contents.provenance, contents.operating_points[0]
    what = [made.get("device"), made.get("dtype"), f"{contents.heads} heads", str(made.get("date", ""))[:10]]
    kind = f"predicted with {_kind(p)} latency"
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


def _kind(p: OperatingPoint) -> str:
    return f"<em>{p.latency}</em>" if p.latency == "modelled" else p.latency


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def _table(columns: list[str], rows: list[list[str]], caption: str = "") -> str:
    """Cells are HTML already; the first of a row is its header."""
    head = "".join(f'<th scope="col">{c}</th>' for c in columns)
    body = "".join(f'<tr><th scope="row">{r[0]}</th>{"".join(f"<td>{c}</td>" for c in r[1:])}</tr>' for r in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<figure><div class="scroll">{table}</div><figcaption>{caption}</figcaption></figure>'


def _accuracy(contents: TreeFile, calibration: Calibration | None) -> str:
    accuracy = np.array(contents.head_accuracy) if calibration is None else head_accuracy(calibration.trace)
    shown = accuracy[:, :16]
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
    tops = [k for k in TOP if k <= contents.candidates]
    if calibration is None:
        rows = [[f"head {h + 1}", *(f"{100 * accuracy[h, :k].sum():.1f}" for k in tops)] for h in range(contents.heads)]
        caption = "top-k accuracy, %"
    else:
        found = [top_k_interval(calibration.trace, k) for k in tops]
        rows = [
            [f"head {h + 1}", *(_plus_minus(Estimate(*(100 * float(x[h]) for x in f)), ".1f") for f in found)]
            for h in range(contents.heads)
        ]
        caption = f"top-k accuracy, %, ± half the 95% interval; {calibration.trace.positions:,} positions, {len(calibration.trace.lengths)} sequences"
    return _section(
        "Head accuracy", f'<div class="pair">{heat}{_table(["", *(f"top-{k}" for k in tops)], rows, caption)}</div>'
    )


def _plus_minus(e: Estimate, form: str) -> str:
    return f'{e.value:{form}} <span class="soft">±{(e.high - e.low) / 2:{form}}</span>'


def _load_name(load: Load, contexts: set[int]) -> str:
    return f"batch {load[0]}" + (f", context {load[1]:,}" if len(contexts) > 1 else "")


def _curves(contents: TreeFile, calibration: Calibration, again: Plan) -> list[str]:
    loads = list(again.curves)
    shown = loads if len(loads) <= SHOWN else [load for load in loads if load[1] == loads[0][1]][:SHOWN]
    left_out = (
        ""
        if len(shown) == len(loads)
        else f" Shown: {len(shown)} of {len(loads)} loads, at context {shown[0][1]:,}; the table below has all."
    )
    contexts = {c for _, c in shown}
    names = {load: _load_name(load, contexts) for load in shown}
    kind = calibration.latency.kind
    said = f"<em>{kind}</em>" if kind == "modelled" else kind
    compared = comparison(calibration, again, contents.operating_points[0])
    lengths, rates, times = [], [], []
    length_marks, rate_marks = [], []
    for i, load in enumerate(shown):
        curve = again.curves[load]
        at = curve.chosen
        tip = f"chosen for {names[load]}: {curve.nodes[at]} nodes, {curve.acceptance[at]:.2f} tokens a step, {curve.tokens_per_s[at]:,.0f} tokens/s, {curve.speedup[at]:.2f}x ({kind})"
        lengths.append(Series(names[load], curve.nodes, curve.acceptance, i))
        rates.append(Series(names[load], curve.nodes, curve.speedup, i))
        length_marks.append(Mark(float(curve.nodes[at]), float(curve.acceptance[at]), tip, i))
        rate_marks.append(Mark(float(curve.nodes[at]), float(curve.speedup[at]), tip, i))
    others = [row for row in compared if row.point.nodes and not row.name.startswith("chosen")]
    for row, look in zip(others, SHAPES, strict=False):
        tip = f"{row.name}: {row.point.acceptance_length.value:.2f} tokens a step, {row.point.speedup.value:.2f}x at {names[shown[0]]} ({kind})"
        length_marks.append(Mark(row.point.nodes, row.point.acceptance_length.value, tip, 6, look))
        rate_marks.append(Mark(row.point.nodes, row.point.speedup.value, tip, 6, look))
    lines = [(names[load], i) for i, load in enumerate(shown)]
    below = key(lines, [(row.name, look, 6) for row, look in zip(others, SHAPES, strict=False)])
    latency_marks = []
    for i, load in enumerate(shown):
        curve, latency = again.curves[load], calibration.latency.curve(*load)
        times.append(Series(names[load], curve.nodes, 1e3 * curve.seconds, i))
        for p in (latency.plain, *latency.points) if latency.points else ():
            if (p.batch, p.context) == load:
                tip = f"measured at {names[load]}: {p.nodes} nodes, depth {p.depth}: {1e3 * p.seconds:.2f} ms, quartiles {1e3 * p.low:.2f} to {1e3 * p.high:.2f}"
                latency_marks.append(Mark(p.nodes, 1e3 * p.seconds, tip, i, "dot", 1e3 * p.low, 1e3 * p.high))
    fitted = roofline_beside(calibration.latency, calibration.shape)
    beside = ""
    if fitted is not None:
        load = shown[0]
        curve = again.curves[load]
        modelled = 1e3 * fitted[0].seconds(curve.nodes, curve.depth, *load)
        times.append(Series(f"roofline, modelled, {names[load]}", curve.nodes, modelled, 6))
        beside = f"<p>{escape(roofline_line(fitted[1]))} The dashed grey curve is that roofline, <em>modelled</em>, at {names[load]}.</p>"
    points = (
        "Dots are measured medians with their quartiles, at several depths; the lines are what the plan takes, at the best depth of each size."
        if latency_marks
        else "Nothing here was measured: latency is <em>modelled</em> from a data sheet."
    )
    return [
        '<div class="pair">',
        _section("Acceptance length over nodes", f"<figure>{chart(lengths, length_marks, 'Acceptance length over tree nodes', 'tokens a step', floor=1)}{below}<figcaption>Replay on held-out sequences; discs are the chosen trees.{left_out}</figcaption></figure>"),
        _section("Speed over nodes", f"<figure>{chart(rates, rate_marks, 'Speedup over plain decoding over tree nodes', f'speedup, {kind} latency')}{below}<figcaption>Tokens a second over those of plain decoding, predicted from replay and {said} latency; plain decoding is 1.</figcaption></figure>"),
        "</div>",
        '<div class="pair">',
        _section("Step latency", f"<figure>{chart(times, latency_marks, 'Step latency over tree nodes', f'ms a step, {kind}')}{key(lines, [])}<figcaption>{points}</figcaption></figure>{beside}"),
        _section("Beside what people use", _compared(compared)),
        "</div>",
    ]  # fmt: skip


def _compared(rows: list[Compared]) -> str:
    modelled = rows[0].point.latency == "modelled"
    cells = [
        [
            escape(r.name), str(r.point.nodes), _plus_minus(r.point.acceptance_length, ".2f") if r.point.nodes else "1.00",
            f"{r.point.step_latency_ms.value:.2f}", f"{r.point.tokens_per_s.value:,.0f}", f"{r.point.speedup.value:.2f}x", *([_kind(r.point)] if modelled else []),
        ]
        for r in rows
    ]  # fmt: skip
    p = rows[0].point
    columns = ["tree", "nodes", "acceptance", "step ms", "tokens/s", "speedup", *(["latency"] if modelled else [])]
    return _table(
        columns,
        cells,
        f"at batch {p.batch}, context {p.context:,}; acceptance: tokens a step, replay on held-out sequences, ± half the 95% interval; step latency {rows[0].point.latency}",
    )


def _tree(contents: TreeFile) -> str:
    p = next((p for p in contents.operating_points if p.nodes), None)
    if p is None:
        return _section("The tree", "<p>Plain decoding is fastest at every load planned for: there is no tree.</p>")
    tree = contents.tree_of(p)
    frequency = path_frequencies(contents, tree)
    drawn, cut = tree, ""
    if tree.nodes > LARGEST_DRAWN:
        drawn = CandidateTree(tree.paths[:LARGEST_DRAWN])
        cut = f" Of its {tree.nodes} nodes the {LARGEST_DRAWN} most frequent are drawn."
    figure = tree_chart(drawn, frequency, f"Candidate tree of {tree.nodes} nodes, {tree.depth} levels")
    return _section(
        f"The tree for batch {p.batch}, context {p.context:,}",
        f"<p>In a node its rank among the head's guesses, 0 the first; beside it how often decoding follows the path.{cut}</p>",
        f'<div class="scroll"><figure>{figure}</figure></div>',
    )


def _points(contents: TreeFile, calibration: Calibration | None, again: Plan | None) -> str:
    rows = [
        [
            str(p.batch), f"{p.context:,}", str(p.nodes) if p.nodes else "plain", str(p.depth) if p.nodes else "",
            _plus_minus(p.acceptance_length, ".2f") if p.nodes else "1.00", f"{p.step_latency_ms.value:.2f}",
            f"{p.tokens_per_s.value:,.0f}", f"{p.speedup.value:.2f}x", _kind(p),
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
    said = [] if calibration is None or again is None else notes(calibration, again)
    listed = f'<ul class="notes">{"".join(f"<li>{escape(line.strip())}</li>" for line in said)}</ul>' if said else ""
    return _section(
        "Operating points",
        _table(
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
    return _section("Where it comes from", f"<dl>{items}</dl>")
