"""Charts as inline SVG, coloured by the page's CSS variables: lines over tree nodes, and the tree itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from medusa_runtime.tree import CandidateTree

WIDTH, HEIGHT = 430, 300  # of the drawing, in units that are about a pixel on a phone
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 44
DASHES = (
    "",
    "7 3",
    "2 3",
    "9 3 2 3",
    "4 4",
    "12 4",
    "14 3 3 3",
    "5 4",
)  # besides colour, for those who cannot tell colours

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """A curve: (x, y) arrays. ``style`` numbers its colour and dashes."""

    name: str
    x: npt.ArrayLike
    y: npt.ArrayLike
    style: int


@dataclass(frozen=True)
class Mark:
    """A point with a tooltip, and whiskers from ``low`` to ``high`` where given. Shapes: those of :func:`shape`."""

    x: float
    y: float
    tip: str
    style: int
    shape: str = "disc"
    low: float | None = None
    high: float | None = None


def shape(name: str, style: int, x: float, y: float) -> str:
    """A mark's outline at (x, y): disc, dot, ring, square or diamond."""
    look = f'class="{name} c{style}"'
    if name == "square":
        return f'<rect {look} x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>'
    if name == "diamond":
        return f'<path {look} d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>'
    radius = {"disc": 5.5, "dot": 2.4, "ring": 5}[name]
    return f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def chart(series: Sequence[Series], marks: Sequence[Mark], title: str, y_title: str, floor: float = 0.0) -> str:
    """A line chart over tree nodes, on a log scale that has a place for 0 (plain decoding).

    Args:
        title: what a screen reader says of it.
        y_title: with the unit.
        floor: the least of the y axis.
    """
    xs = np.concatenate([np.asarray(s.x, dtype=float) for s in series] + [[m.x for m in marks]])
    ys = np.concatenate([np.asarray(s.y, dtype=float) for s in series] + [[m.high or m.y for m in marks]])
    x, x_ticks = _nodes_axis(float(xs.max(initial=1)))
    y, y_ticks = _linear_axis(floor, float(ys.max(initial=1)))
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in y_ticks:
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{value:,g}</text>')
    for value in x_ticks:
        name = "plain" if value == 0 else f"{value:g}"
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{name}</text>')
    across, down = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="axis" x="{across}" y="{HEIGHT - 6}" text-anchor="middle">tree nodes</text>')
    turned = f'transform="translate(12 {down}) rotate(-90)"'
    parts.append(f'<text class="axis" {turned} text-anchor="middle">{escape(y_title)}</text>')
    for s in series:
        pairs = zip(np.asarray(s.x).tolist(), np.asarray(s.y).tolist(), strict=True)
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in pairs)
        look = f'class="line c{s.style}" stroke-dasharray="{_dashes(s.style)}"'
        parts.append(f'<polyline {look} points="{line}"><title>{escape(s.name)}</title></polyline>')
    parts += [_mark(m, x(m.x), y) for m in marks]
    return "".join([*parts, "</svg>"])


def key(lines: Sequence[Series], marks: Sequence[tuple[str, str, int]]) -> str:
    """What the lines and marks (name, shape, style) of a chart mean, as a list below it."""
    drawn = [
        (s.name, f'<line class="line c{s.style}" stroke-dasharray="{_dashes(s.style)}" x1="0" x2="26" y1="7" y2="7"/>')
        for s in lines
    ] + [(name, shape(look, i, 13, 7)) for name, look, i in marks]
    items = (f'<li><svg viewBox="0 0 26 14" aria-hidden="true">{d}</svg>{escape(name)}</li>' for name, d in drawn)
    return f'<ul class="key">{"".join(items)}</ul>'


def _dashes(style: int) -> str:
    return DASHES[style % len(DASHES)]


def _mark(m: Mark, at: float, y: Scale) -> str:
    whisker = ""
    if m.low is not None and m.high is not None:
        ends = f'x1="{at:.1f}" x2="{at:.1f}" y1="{y(m.low):.1f}" y2="{y(m.high):.1f}"'
        whisker = f'<line class="whisker c{m.style}" {ends}/>'
    return f"<g><title>{escape(m.tip)}</title>{whisker}{shape(m.shape, m.style, at, y(m.y))}</g>"


def _nodes_axis(largest: float) -> tuple[Scale, list[float]]:
    span = np.log2(max(2.0, largest) + 1)
    ticks = [0.0, *(float(2**k) for k in range(20) if 2**k <= largest)]
    while len(ticks) > (WIDTH - LEFT - RIGHT) / 34:
        ticks = [0.0, *ticks[1:][::2]]
    return lambda n: float(LEFT + (WIDTH - LEFT - RIGHT) * np.log2(n + 1) / span), ticks


def _linear_axis(low: float, high: float) -> tuple[Scale, list[float]]:
    rough = (high - low) / 4 or 1.0
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    ticks = [float(f"{step * i:.10g}") for i in np.arange(np.floor(low / step), np.ceil(high / step) + 1)]
    span = ticks[-1] - ticks[0]
    return lambda v: float(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (v - ticks[0]) / span), ticks


def tree_chart(tree: CandidateTree, frequency: Sequence[float], title: str) -> str:
    """The tree from left to right, best guess on top; a node shows its rank, beside it how often its path is followed."""
    row = _rows(tree)
    across, down = 116, 23
    width, height = 70 + across * tree.depth + 24, down * (max(row) + 1)
    spots = [(26 + across * int(d), down * r) for d, r in zip(tree.depths, row, strict=True)]
    parts = [
        f'<svg class="tree" viewBox="0 0 {width} {height:.0f}" style="width:{width}px" role="img" aria-label="{escape(title)}">'
    ]
    for i in range(1, tree.nodes + 1):
        (x0, y0), (x1, y1) = spots[int(tree.parents[i])], spots[i]
        leaves = x0 + (46 if tree.parents[i] else 19)  # behind the parent's label, or at the root's rim
        middle = (leaves + x1) / 2
        curve = f"M{leaves} {y0:.1f}C{middle} {y0:.1f} {middle} {y1:.1f} {x1} {y1:.1f}"
        parts.append(f'<path class="edge" d="{curve}" stroke-width="{0.8 + 5 * frequency[i - 1]:.2f}"/>')
    for i, (x, y) in enumerate(spots):
        name, tip, radius = "root", "the model's own next token", 19.0
        if i:
            often = f"{percent(frequency[i - 1])}%"
            name, tip, radius = str(int(tree.ranks[i])), f"path {list(tree.paths[i - 1])}: {often} of steps", 9.5
            parts.append(f'<text class="soft" x="{x + 14}" y="{y + 4:.1f}">{often}</text>')
        node = f'<circle class="node" cx="{x}" cy="{y:.1f}" r="{radius}"/>'
        label = f'<text x="{x}" y="{y + 4:.1f}" text-anchor="middle">{name}</text>'
        parts.append(f"<g><title>{escape(tip)}</title>{node}{label}</g>")
    return "".join([*parts, "</svg>"])


def _rows(tree: CandidateTree) -> list[float]:
    """(M,) the row of each node: leaves from the top in rank order, a parent midway between its first and last child."""
    children: dict[int, list[int]] = {i: [] for i in range(tree.nodes + 1)}
    for i in sorted(range(1, tree.nodes + 1), key=lambda i: tree.paths[i - 1]):
        children[int(tree.parents[i])].append(i)
    row = [0.0] * (tree.nodes + 1)
    leaves = 0
    for i in sorted(children, key=lambda i: ((), *tree.paths)[i], reverse=True):  # children before their parents
        if not children[i]:
            leaves += 1
            row[i] = -float(leaves)
        else:
            row[i] = (row[children[i][0]] + row[children[i][-1]]) / 2
    return [r + leaves + 1 for r in row]


def percent(share: float) -> str:
    """A share in per cent, with a decimal where it is under ten."""
    return f"{100 * share:.0f}" if share >= 0.095 else f"{100 * share:.1f}"
