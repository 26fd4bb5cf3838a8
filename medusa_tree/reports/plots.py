"""Plots of a plan: head accuracy, speed over tree size, and the tree itself, as PNG."""

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
from .tables import RANKS_DRAWN, path_frequencies


def plan_plot(
    calibration: Calibration,
    curves: dict[Load, Curve],
    rows: dict[Load, list[Compared]],
    path: Path,
) -> None:
    """A PNG of two panels: the accuracy of each head at each rank, and speedup over tree size with the choice."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.25), layout="constrained")
    accuracy = head_accuracy(calibration.trace)[:, :RANKS_DRAWN]
    left.imshow(accuracy, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (k, i), a in np.ndenumerate(accuracy):
        left.text(
            i,
            k,
            f"{100 * a:.0f}" if a >= 0.095 else f"{100 * a:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if a > 0.5 else "black",
        )
    left.set_xticks(range(accuracy.shape[1]), [str(i) for i in range(accuracy.shape[1])])
    left.set_yticks(range(accuracy.shape[0]), [f"head {k + 1}" for k in range(accuracy.shape[0])])
    left.set_xlabel("rank of the emitted token in the head's guesses")
    left.set_title("Head accuracy, % of positions", loc="left")

    right.axhline(1, color="0.6", linewidth=1)
    one_context = len({c for _, c in curves}) == 1
    for i, (load, curve) in enumerate(curves.items()):
        color, n = f"C{i % 10}", curve.chosen
        name = f"batch {load[0]}" + ("" if one_context else f", context {load[1]}")
        right.plot(curve.nodes, curve.speedup, color=color, label=name)
        right.plot(curve.nodes[n], curve.speedup[n], "o", color=color, markersize=9)
        if len(curves) <= 3:
            right.annotate(
                f"chosen: {curve.nodes[n]} nodes, {curve.speedup[n]:.2f}x", (curve.nodes[n], curve.speedup[n]), (0, 9),
                textcoords="offset points", ha="center",
            )  # fmt: skip
    for i, load in enumerate(curves):
        others = [row for row in rows.get(load, []) if row.point.nodes and not row.name.startswith("chosen")]
        for row, marker in zip(others, "sDv", strict=False):
            right.plot(
                row.point.nodes, row.point.speedup.value, marker, color=f"C{i % 10}", markerfacecolor="white",
                label=row.name if i == 0 else None,
            )  # fmt: skip
    largest = max(int(curve.nodes[-1]) for curve in curves.values())
    ticks = [0, *(2**k for k in range(11) if 2**k <= largest)]
    right.set_xscale("function", functions=(np.log1p, np.expm1))
    right.set_xticks(ticks, ["plain", *map(str, ticks[1:])])
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
    plt.close(figure)


def tree_plot(contents: TreeFile, tree: CandidateTree, path: Path) -> None:
    """A PNG of the tree, drawn with networkx: depth to the right, best guess on top, colour by path frequency."""
    import matplotlib
    import networkx as nx

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    frequency = path_frequencies(contents, tree)
    graph = nx.DiGraph()
    graph.add_node(0)
    graph.add_edges_from((int(tree.parents[i]), i) for i in range(1, tree.nodes + 1))
    row: dict[int, float] = {}
    leaves = 0
    for i in nx.dfs_postorder_nodes(graph, 0, sort_neighbors=sorted):
        below = [row[c] for c in graph.successors(i)]
        if not below:
            leaves += 1
        row[i] = (min(below) + max(below)) / 2 if below else -float(leaves)
    places = {i: (float(tree.depths[i]), row[i]) for i in graph}
    figure, axis = plt.subplots(figsize=(2.2 + 1.9 * tree.depth, max(2.5, 0.32 * leaves + 1)), layout="constrained")
    labels = {0: "root", **{i: f"{p[-1]}\n{frequency[i - 1]:.2f}" for i, p in enumerate(tree.paths, start=1)}}
    colours = [1.0, *frequency]
    nx.draw_networkx(
        graph, places, ax=axis, labels=labels, node_color=colours, cmap="YlGnBu", vmin=0, vmax=1.4, node_size=620, font_size=7,
        edge_color="0.6", arrows=False, edgecolors="0.4",
    )  # fmt: skip
    axis.set_axis_off()
    axis.set_title(
        f"{tree.nodes} nodes, depth {tree.depth}: rank, and how often decoding reaches it", fontsize=10, loc="left"
    )
    with write_beside(path) as beside:
        figure.savefig(beside, dpi=130, format="png")
    plt.close(figure)
