"""Charts as data: lines and marks over tree nodes, and the tree itself, with their places in SVG units.

What is drawn is said here and in figures.py, once; charts.html draws it for the page, plots.py for a PNG.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medusa_runtime.tree import CandidateTree

WIDTH, HEIGHT = 430, 300  # of a chart, in units that are about a pixel on a phone
LEFT, RIGHT, TOP, BOTTOM = 52, 416, 14, 256  # where its axes end
TICK_ROOM = 34  # for the name of a tick below the axis
BAR_ROOM = 26  # from bar to bar
LABEL, LETTER = 22, 7  # letters of a bar's name that are shown, and the room for one
ACROSS, DOWN = 116, 23  # from a tree's level to the next, and from row to row
LINK, LINKS = 31, 12  # from a looked-up token to the next, and how many are drawn of a longer chain

Scale = Callable[[float], float]
Ticks = dict[float, str]


@dataclass(frozen=True)
class Series:
    """A curve: (x, y) arrays. ``style`` numbers its colour and dashes, which are the page's CSS's."""

    name: str
    x: npt.ArrayLike
    y: npt.ArrayLike
    style: int


@dataclass(frozen=True)
class Mark:
    """A point with a tooltip, whiskers from ``low`` to ``high`` where given, and a name where the key is to have it.
    Shapes: disc, dot, ring, square or diamond."""

    x: float
    y: float
    tip: str
    style: int
    shape: str = "disc"
    name: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axes:
    """Where a chart's nodes (x) and values (y) go, in SVG units, and the ticks by their values, named."""

    x: Scale
    y: Scale
    x_ticks: Ticks
    y_ticks: Ticks
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM

    def points(self, line: Series) -> str:
        """A curve's points, as SVG takes them."""
        pairs = zip(np.asarray(line.x).tolist(), np.asarray(line.y).tolist(), strict=True)
        return " ".join(f"{self.x(a)},{self.y(b)}" for a, b in pairs)


@dataclass(frozen=True)
class Chart:
    """A line chart over tree nodes, on a log scale that has a place for 0 (plain decoding).

    title: what a screen reader says of it.
    y_title: with the unit.
    floor: the least of the y axis.
    """

    lines: Sequence[Series]
    marks: Sequence[Mark]
    title: str
    y_title: str
    floor: float = 0.0

    def axes(self) -> Axes:
        """Axes that all lines and marks lie within."""
        xs = np.concatenate([np.asarray(s.x, dtype=float) for s in self.lines] + [[m.x for m in self.marks]])
        ys = np.concatenate([np.asarray(s.y, dtype=float) for s in self.lines] + [[m.high or m.y for m in self.marks]])
        x, x_ticks = nodes_axis(float(xs.max(initial=1)))
        y, y_ticks = linear_axis(self.floor, float(ys.max(initial=1)))
        return Axes(x, y, x_ticks, y_ticks)


def node_ticks(largest: float) -> Ticks:
    """Plain decoding, and the powers of two up to the largest tree."""
    return {0.0: "plain", **{float(2**k): str(2**k) for k in range(20) if 2**k <= largest}}


def nodes_axis(largest: float) -> tuple[Scale, Ticks]:
    """The log scale from LEFT to RIGHT with a place for 0 nodes, and as many ticks as there is room for."""
    span = np.log2(max(2.0, largest) + 1)
    ticks = node_ticks(largest)
    while len(ticks) > (RIGHT - LEFT) / TICK_ROOM:
        kept = [0.0, *list(ticks)[1::2]]
        ticks = {n: ticks[n] for n in kept}
    return lambda n: round(float(LEFT + (RIGHT - LEFT) * np.log2(n + 1) / span), 1), ticks


def linear_axis(low: float, high: float, start: float = BOTTOM, end: float = TOP) -> tuple[Scale, Ticks]:
    """The scale from ``start`` to ``end`` between round values around ``low`` and ``high``, and about five ticks."""
    rough = (high - low) / 4 or 1.0
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    last = max(np.ceil(high / step), np.floor(low / step) + 1)  # all may be one value
    values = [float(f"{step * i:.10g}") for i in np.arange(np.floor(low / step), last + 1)]
    first, span = values[0], values[-1] - values[0]
    return lambda v: round(float(start + (end - start) * (v - first) / span), 1), {v: f"{v:,g}" for v in values}


@dataclass(frozen=True)
class Bar:
    """A bar with whiskers from ``low`` to ``high`` and a tooltip, and a stroke across at ``beside`` where there is something to set it beside."""

    name: str
    value: float
    low: float
    high: float
    tip: str
    beside: float | None = None

    @property
    def label(self) -> str:
        """The name as far as there is room for it."""
        return self.name if len(self.name) <= LABEL else f"{self.name[: LABEL - 1]}…"


@dataclass(frozen=True)
class BarChart:
    """Bars from the left, one below the other.

    title: what a screen reader says of it.
    x_title: with the unit.
    floor: of the axis, at most; bars begin where it does.
    """

    bars: Sequence[Bar]
    title: str
    x_title: str
    floor: float = 0.0

    @property
    def bottom(self) -> int:
        return TOP + BAR_ROOM * len(self.bars)

    @property
    def left(self) -> int:
        """Room for the longest name."""
        return 16 + LETTER * max((len(bar.label) for bar in self.bars), default=0)

    def axis(self) -> tuple[Scale, Ticks]:
        """The scale that all bars lie within, and its ticks."""
        most = max((max(bar.high, bar.beside or 0.0) for bar in self.bars), default=1.0)
        return linear_axis(self.floor, most, self.left, RIGHT)


@dataclass(frozen=True)
class Node:
    """A node of a drawn tree: ``name`` is its rank among the head's guesses, ``often`` its frequency in per cent,
    ``parent`` a place in the list of nodes; a node of the lookup's ``chain`` is named by its place behind the root."""

    name: str
    tip: str
    parent: int
    x: int
    y: float
    frequency: float
    often: str
    chain: bool = False


@dataclass(frozen=True)
class TreeChart:
    """A tree from left to right, best guess on top; the first node is the root."""

    title: str
    nodes: Sequence[Node]
    width: int
    height: int


def tree_chart(tree: CandidateTree, frequency: Sequence[float], title: str) -> TreeChart:
    """Lay a tree out, its chain below its paths.

    Args:
        frequency: one a path, how often decoding follows it.
        title: what a screen reader says of it.
    """
    rows = tree_rows(tree)
    nodes = [Node("root", "the model's own next token", 0, 26, round(DOWN * rows[0], 1), 1.0, "")]
    for i, (path, f) in enumerate(zip(tree.paths, frequency, strict=True), start=1):
        often = f"{percent(f)}%"
        x, y = 26 + ACROSS * int(tree.depths[i]), round(DOWN * rows[i], 1)
        nodes.append(Node(str(path[-1]), f"path {list(path)}: {often} of steps", int(tree.parents[i]), x, y, f, often))
    width, lowest = 94 + ACROSS * tree.heads, max(rows) + (1 if tree.paths else 0) * (tree.lookup > 0)
    for k, place in enumerate(links(tree.lookup), start=1):
        tip = f"looked-up token {place} of {tree.lookup}" if place else "and so on"
        parent = 0 if k == 1 else len(nodes) - 1
        x, y = 26 + ACROSS // 2 + LINK * k, round(DOWN * lowest, 1)
        nodes.append(Node(str(place or "…"), tip, parent, x, y, 0.0, "", chain=True))
        width = max(width, x + 20)
    return TreeChart(title, nodes, width, round(DOWN * (lowest + 1)))


def links(length: int) -> list[int]:
    """The tokens of a chain that are drawn, by number: the first ones and the last; 0 stands for those between."""
    return list(range(1, length + 1)) if length <= LINKS else [*range(1, LINKS - 1), 0, length]


def tree_rows(tree: CandidateTree) -> list[float]:
    """The row of the root and of each path: leaves from the top in rank order, a parent midway between its first and last child."""
    paths = ((), *tree.paths)
    rows = [0.0] * len(paths)
    below: list[list[float]] = [[] for _ in paths]
    leaves = 0
    # Children before their parents, last first.
    for i in sorted(range(len(paths)), key=paths.__getitem__, reverse=True):
        if below[i]:
            rows[i] = (below[i][0] + below[i][-1]) / 2
        else:
            leaves += 1
            rows[i] = -float(leaves)
        if i:
            below[int(tree.parents[i])].append(rows[i])
    return [row + leaves + 1 for row in rows]


def percent(share: float) -> str:
    """A share in per cent, with a decimal where it is under ten."""
    return f"{100 * share:.0f}" if share >= 0.095 else f"{100 * share:.1f}"
