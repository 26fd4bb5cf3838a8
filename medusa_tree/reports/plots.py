"""Plots of a plan: head accuracy, speed over tree size, and the tree itself, as PNG.

What they show is said once, in figures.py and charts.py. It is drawn twice, here and in charts.html, as the two are for
different eyes: the page's charts follow the reader's light or dark scheme, tell each mark's figures in a tooltip and keep
their letters readable on a phone, none of which a matplotlib picture can; a PNG goes where no page does, into a README,
a chat or a paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from medusa_runtime.files import write_beside

from ..devices.latency import Load
from ..planning.calibration import Calibration
from ..planning.compare import Compared
from ..planning.plan import Plan
from ..traces.trace import head_accuracy
from .charts import TreeChart, node_ticks, percent
from .figures import booked, drawn, speed
from .tables import RANKS_DRAWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = {"disc": "o", "square": "s", "diamond": "D", "ring": "v", "triangle": "^", "cross": "X"}
CHAIN = "#f4b183"


def plan_plot(calibration: Calibration, plan: Plan, rows: dict[Load, list[Compared]], path: Path) -> None:
    """A PNG of two panels: the accuracy of each head at each rank, and speedup over tree size with the choice. Where no heads
    are planned with, of the second alone, over the length of a chain."""
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    heads = plan.contents.heads > 0
    figure = Figure(figsize=(11 if heads else 7, 4.2), layout="constrained")
    panels = figure.subplots(1, 1 + heads, width_ratios=(1, 1.25) if heads else None, squeeze=False)[0]
    if heads:
        _draw_accuracy(panels[0], calibration)
    _draw_speed(panels[-1], calibration, plan, rows)
    for axis in panels:
        axis.spines[["top", "right"]].set_visible(False)
    with write_beside(path) as beside:
        figure.savefig(beside, dpi=130, format="png")


def _draw_accuracy(left: Axes, calibration: Calibration) -> None:
    accuracy = head_accuracy(calibration.trace)[:, :RANKS_DRAWN]
    left.imshow(accuracy, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (k, i), a in np.ndenumerate(accuracy):
        left.text(i, k, percent(a), ha="center", va="center", fontsize=8, color="white" if a > 0.5 else "black")
    left.set_xticks(range(accuracy.shape[1]), [str(i) for i in range(accuracy.shape[1])])
    left.set_yticks(range(accuracy.shape[0]), [f"head {k + 1}" for k in range(accuracy.shape[0])])
    left.set_xlabel("rank of the emitted token in the head's guesses")
    left.set_title("Head accuracy, % of positions", loc="left")


def _draw_speed(right: Axes, calibration: Calibration, plan: Plan, rows: dict[Load, list[Compared]]) -> None:
    heads = plan.contents.heads > 0
    chart = speed(drawn(calibration, plan), rows, calibration.latency.kind, booked(plan))
    read = any(row.book is not None and row.book.heads for compared in rows.values() for row in compared)
    right.axhline(1, color="0.6", linewidth=1)
    for line in chart.lines:
        right.plot(line.x, line.y, color=f"C{line.style % 10}", label=line.name)
    for m in chart.marks:
        chosen, color = m.shape == "disc", f"C{m.style % 10}"
        look = {"markersize": 9} if chosen else {"markerfacecolor": "white", "label": m.name or None}
        right.plot(m.x, m.y, MARKERS[m.shape], color=color, **look)
        if chosen and len(chart.lines) <= 3:
            told = f"chosen: {m.x:g} nodes, {m.y:.2f}x"
            right.annotate(told, (m.x, m.y), (0, 9), textcoords="offset points", ha="center")
        if m.shape == "cross" and len(chart.lines) <= 3:
            told = f"{'heads and ' if read else ''}lookup: {m.y:.2f}x"
            # Above the best trees of heads there is room to the left, and beside chains, whose line ends lower, to the right.
            at, side, height = ((-9, 0), "right", "center") if heads else ((7, 5), "left", "bottom")
            right.annotate(told, (m.x, m.y), at, textcoords="offset points", ha=side, va=height)
    ticks = node_ticks(max([float(np.max(line.x)) for line in chart.lines] + [m.x for m in chart.marks]))
    right.set_xscale("function", functions=(np.log1p, np.expm1))
    right.set_xticks(list(ticks), list(ticks.values()))
    right.minorticks_off()
    low, high = right.get_ylim()
    right.set_ylim(min(low, 0.9), high + 0.12 * (high - low))
    right.set_xlabel("tree nodes" if heads else "looked-up tokens in the chain")
    right.set_ylabel(f"predicted speedup over plain decoding\n({calibration.latency.kind} step latency)")
    right.set_title("Speed over tree size" if heads else "Speed over chain length", loc="left")
    title = "best tree of each size" if heads else "a chain wherever text is found"
    right.legend(frameon=False, title=title, alignment="left", loc="upper left", bbox_to_anchor=(1, 1))


def tree_plot(charts: Sequence[TreeChart], path: Path, note: str = "") -> None:
    """A PNG of trees one below the other, drawn with networkx: depth to the right, best guess on top, colour by path frequency,
    looked-up tokens in a colour of their own; and below them all a ``note`` on what the numbers are."""
    from matplotlib.figure import Figure

    least, row = (1.3, 0.021) if len(charts) > 1 else (2.5, 0.014)  # of several, titles take their room from the nodes
    heights = [max(least, row * chart.height + 0.7) for chart in charts]
    widest = max(chart.width for chart in charts)
    figure = Figure(figsize=(max(6.0, 0.65 + 0.0164 * widest), sum(heights)), layout="constrained")
    panels = figure.subplots(len(charts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, chart in zip(panels, charts, strict=True):
        _draw_tree(axis, chart)
        axis.set_xlim(-20, widest)  # one scale for all
        axis.set_axis_off()
        axis.set_title(chart.title, fontsize=10, loc="left")
    if note:
        figure.supxlabel(fill(note, int(14 * figure.get_figwidth())), fontsize=9, x=0.01, ha="left")
    with write_beside(path) as beside:
        figure.savefig(beside, dpi=130, format="png")


def _draw_tree(axis: Axes, chart: TreeChart) -> None:
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(chart.nodes)))
    graph.add_edges_from((n.parent, i) for i, n in enumerate(chart.nodes) if i)
    place = {i: (n.x, -n.y) for i, n in enumerate(chart.nodes)}
    chain = [i for i, n in enumerate(chart.nodes) if n.chain]
    rest = [i for i, n in enumerate(chart.nodes) if not n.chain]
    nx.draw_networkx_edges(graph, place, ax=axis, edge_color="0.6", arrows=False)
    nx.draw_networkx_nodes(
        graph, place, rest, ax=axis, node_color=[chart.nodes[i].frequency for i in rest], cmap="YlGnBu", vmin=0, vmax=1.4, node_size=620,
        edgecolors="0.4",
    )  # fmt: skip
    nx.draw_networkx_nodes(graph, place, chain, ax=axis, node_color=CHAIN, node_size=330, edgecolors="0.4")
    names = {i: f"{n.name}\n{n.frequency:.2f}" if n.often else n.name for i, n in enumerate(chart.nodes)}
    nx.draw_networkx_labels(graph, place, names, ax=axis, font_size=7)
