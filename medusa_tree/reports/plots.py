"""Plots of a plan: head accuracy, speed over tree size, and the tree itself, as PNG.

What they show is said once, in figures.py and charts.py. It is drawn twice, here and in charts.html, as the two are for
different eyes: the page's charts follow the reader's light or dark scheme, tell each mark's figures in a tooltip and keep
their letters readable on a phone, none of which a matplotlib picture can; a PNG goes where no page does, into a README,
a chat or a paper.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medusa_runtime.files import write_beside
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import TreeFile

from ..devices.latency import Load
from ..planning.calibration import Calibration
from ..planning.choose import Curve
from ..planning.compare import Compared
from ..traces.trace import head_accuracy
from .charts import node_ticks, percent, tree_chart
from .figures import speed
from .tables import RANKS_DRAWN, path_frequencies

MARKERS = {"disc": "o", "square": "s", "diamond": "D", "ring": "v"}


def plan_plot(
    calibration: Calibration, curves: dict[Load, Curve], rows: dict[Load, list[Compared]], path: Path
) -> None:
    """A PNG of two panels: the accuracy of each head at each rank, and speedup over tree size with the choice."""
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    accuracy = head_accuracy(calibration.trace)[:, :RANKS_DRAWN]
    left.imshow(accuracy, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (k, i), a in np.ndenumerate(accuracy):
        left.text(i, k, percent(a), ha="center", va="center", fontsize=8, color="white" if a > 0.5 else "black")
    left.set_xticks(range(accuracy.shape[1]), [str(i) for i in range(accuracy.shape[1])])
    left.set_yticks(range(accuracy.shape[0]), [f"head {k + 1}" for k in range(accuracy.shape[0])])
    left.set_xlabel("rank of the emitted token in the head's guesses")
    left.set_title("Head accuracy, % of positions", loc="left")

    chart = speed(curves, rows, calibration.latency.kind)
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
    ticks = node_ticks(max(int(curve.nodes[-1]) for curve in curves.values()))
    right.set_xscale("function", functions=(np.log1p, np.expm1))
    right.set_xticks(list(ticks), list(ticks.values()))
    right.minorticks_off()
    low, high = right.get_ylim()
    right.set_ylim(min(low, 0.9), high + 0.12 * (high - low))
    right.set_xlabel("tree nodes")
    right.set_ylabel(f"predicted speedup over plain decoding\n({calibration.latency.kind} step latency)")
    right.set_title("Speed over tree size", loc="left")
    right.legend(
        frameon=False, title="best tree of each size", alignment="left", loc="upper left", bbox_to_anchor=(1, 1)
    )
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    with write_beside(path) as beside:
        figure.savefig(beside, dpi=130, format="png")


def tree_plot(contents: TreeFile, tree: CandidateTree, path: Path) -> None:
    """A PNG of the tree, drawn with networkx: depth to the right, best guess on top, colour by path frequency."""
    import networkx as nx
    from matplotlib.figure import Figure

    chart = tree_chart(tree, path_frequencies(contents, tree), f"{tree.nodes} nodes, depth {tree.depth}")
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(chart.nodes)))
    graph.add_edges_from((n.parent, i) for i, n in enumerate(chart.nodes) if i)
    figure = Figure(figsize=(2.2 + 1.9 * tree.depth, max(2.5, 0.014 * chart.height + 0.7)), layout="constrained")
    axis = figure.subplots()
    nx.draw_networkx(
        graph, {i: (n.x, -n.y) for i, n in enumerate(chart.nodes)}, ax=axis,
        labels={i: f"{n.name}\n{n.frequency:.2f}" if n.often else n.name for i, n in enumerate(chart.nodes)},
        node_color=[n.frequency for n in chart.nodes], cmap="YlGnBu", vmin=0, vmax=1.4, node_size=620, font_size=7, edge_color="0.6",
        arrows=False, edgecolors="0.4",
    )  # fmt: skip
    axis.set_axis_off()
    axis.set_title(f"{chart.title}: rank, and how often decoding reaches it", fontsize=10, loc="left")
    with write_beside(path) as beside:
        figure.savefig(beside, dpi=130, format="png")
