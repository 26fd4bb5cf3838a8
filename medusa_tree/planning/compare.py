"""Compare: any trees and books, ours, published or written by hand, replayed on one trace and set side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy.typing as npt

from medusa_runtime.book import Lookup, TreeBook
from medusa_runtime.errors import InputError
from medusa_runtime.reading import read_json
from medusa_runtime.tree import LONGEST_CHAIN, CandidateTree
from medusa_runtime.treefile import FORMAT, Drafted, Estimate, OperatingPoint, TreeFile, read_tree

from ..bundled import data_path
from ..devices.latency import LatencyCurve, Load
from ..traces.bootstrap import bootstrap
from ..traces.probetrace import ProbeTrace
from ..traces.trace import RankTrace
from .choose import told
from .played import Contender, play

COPIED = "mc_sim_7b_63"  # the list that everyone copies
PATHS = "write a list of paths like [[0], [1], [0, 0]]"


@dataclass(frozen=True)
class Compared:
    """One tree's prediction, and its acceptance length and tokens/s over the first tree's, paired: both on the same
    held-out sequences, whole sequences resampled. Step latencies are taken as they are. Of a book: it, and who drafted what
    a step accepts; its point's nodes and depth are the most nodes and heads of its trees."""

    name: str
    point: OperatingPoint
    acceptance_ratio: Estimate
    rate_ratio: Estimate
    book: TreeBook | None = None
    drafted: Drafted | None = None


def published() -> dict[str, Path]:
    """The lists kept in data/trees, by name."""
    return {p.stem: p for p in sorted(data_path("trees").glob("*.json"))}


def read_paths(where: Path) -> CandidateTree:
    """A tree from a JSON list of paths, or from an object with "paths", in any order.

    Raises:
        InputError: not there, not JSON, or not a tree.
    """
    data = read_json(where, PATHS)
    paths = data.get("paths") if isinstance(data, dict) else data
    if not isinstance(paths, list) or not all(isinstance(p, list) for p in paths):
        raise InputError(f"{where}: holds no list of paths; {PATHS}")
    try:
        return CandidateTree.by_depth(paths)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except TypeError:  # what cannot be sorted
        raise InputError(f"{where}: a path is not a list of whole numbers; {PATHS}") from None


def published_tree(name: str) -> CandidateTree:
    """A published list by its name."""
    return read_paths(published()[name])


def lookup_alone(length: int, lookup: Lookup, beside: tuple[int, ...] = ()) -> TreeBook:
    """A chain of ``length`` looked-up tokens wherever anything is found, and plain decoding elsewhere."""
    return TreeBook((CandidateTree(), CandidateTree(lookup=length)), (0, 1), lookup, beside)


def what_runs(contents: TreeFile, point: OperatingPoint, beside: tuple[int, ...] = ()) -> Contender:
    """What the runtime does at an operating point: its book, or where it has none, its tree."""
    return contents.tree_of(point) if point.book is None else contents.book_of(point, beside)


def contender(text: str, load: Load, beside: tuple[int, ...] = ()) -> tuple[str, Contender]:
    """What the user named: ``plain``, ``chain:4``, ``lookup:8``, a published list, a tree.json (what the runtime does at this load;
    with ``#heads`` behind it, the heads' tree alone), or a file with a list of paths.

    Args:
        beside: tokens of the user's own text, for books that look up in one.

    Raises:
        InputError: none of these.
    """
    if text == "plain":
        return "plain decoding", CandidateTree()
    if match := re.fullmatch(r"(chain|lookup):([1-9]\d*)", text):
        kind, length = match[1], int(match[2])
        if kind == "lookup" and length > LONGEST_CHAIN:
            raise InputError(f"{text}: a chain of looked-up tokens may have 1 to {LONGEST_CHAIN}")
        made = CandidateTree.chain(length) if kind == "chain" else lookup_alone(length, Lookup())
        return f"{kind} of {length}", made
    if text in published():
        return text, published_tree(text)
    path = Path(text)
    alone = not path.is_file() and text.endswith("#heads")
    if alone:
        path = Path(text.removesuffix("#heads"))
    if not path.is_file():
        raise InputError(
            f"{text!r} is neither a file nor plain, chain:N, lookup:N or a published list: {', '.join(published())}"
        )
    data = read_json(path, PATHS)
    if not (isinstance(data, dict) and data.get("format") == FORMAT):
        return text, read_paths(path)
    contents = read_tree(path)
    return text, contents.tree(*load) if alone else what_runs(contents, contents.point(*load), beside)


@overload
def fit_to_heads(name: str, what: CandidateTree, trace: RankTrace) -> tuple[str, CandidateTree]: ...
@overload
def fit_to_heads(name: str, what: Contender, trace: RankTrace) -> tuple[str, Contender]: ...
def fit_to_heads(name: str, what: Contender, trace: RankTrace) -> tuple[str, Contender]:
    """The tree, or book, without the levels that there are no heads for. The name says so, and where it has ranks that
    were not profiled, or nodes not probed, which replay takes for misses.

    Raises:
        InputError: a tree of heads alone, where the trace has none.
    """
    if what.heads and not trace.heads and isinstance(what, CandidateTree):
        raise InputError(
            f"{name}: is a tree of heads, and the trace has no heads: all that could be replayed is plain decoding; compare lookup:N, a book, or "
            "give a calibration with heads"
        )
    if what.heads > trace.heads:
        name = f"{name}, {trace.heads} levels" if trace.heads else f"{name}, lookup alone"
        if isinstance(what, TreeBook):
            what = replace(what, trees=tuple(replace(t, paths=t.cut(t.nodes, trace.heads).paths) for t in what.trees))
        else:
            what = what.cut(what.nodes, trace.heads)
    if what.width > trace.candidates:
        name = f"{name}, ranks to {trace.candidates - 1} known"
    elif isinstance(trace, ProbeTrace):
        paths = {p for tree in TreeBook.of(what).trees for p in tree.paths}
        if missing := len(paths - set(trace.probe.paths)):
            name = f"{name}, {missing} nodes not probed"
    return name, what


def compare(
    contenders: Sequence[tuple[str, Contender]],
    held: RankTrace,
    latency: LatencyCurve,
    load: Load,
    kind: str,
    padded: bool = False,
) -> list[Compared]:
    """Predict each contender and set it against the first.

    Args:
        padded: see :func:`medusa_tree.planning.played.play`.

    Raises:
        InputError: a tree larger than step latency is known for, or a lookup where the trace has no text.
    """
    for name, what in contenders:
        if what.nodes > latency.largest:
            raise InputError(
                f"{name}: has {what.nodes} nodes, but step latency is known up to {latency.largest}; calibrate with --max-nodes {what.nodes}"
            )
    plays = [play(what, held, latency, load[0], padded) for _, what in contenders]
    first, rows = plays[0], []
    for (name, what), this in zip(contenders, plays, strict=True):
        ours, theirs = this.replay.steps, first.replay.steps
        point = told(what, this, latency, load, kind)
        book = what if isinstance(what, TreeBook) else None
        ratios = _over(theirs, ours), _over(first.seconds, this.seconds)
        rows.append(Compared(name, point, *ratios, book, this.drafted))
    return rows


def _over(theirs: npt.NDArray[Any], ours: npt.NDArray[Any]) -> Estimate:
    """How many times more the first spends on the same sequences, (S,) each; paired."""
    low, high = bootstrap(lambda a, b: a / b, theirs, ours)
    return Estimate(float(theirs.sum() / ours.sum()), float(low), float(high))


def usual(held: RankTrace, latency: LatencyCurve) -> list[tuple[str, Contender]]:
    """What people run: plain decoding, a chain of first guesses, and the copied list, as far as step latency is known
    for their size (where it is not, such trees are too slow to win); without heads, plain decoding alone."""
    if not held.heads:
        return [("plain decoding", CandidateTree())]
    name, copied = fit_to_heads("64-node list", published_tree(COPIED), held)
    named: list[tuple[str, Contender]] = [
        ("plain decoding", CandidateTree()),
        (f"chain of {held.heads}", CandidateTree.chain(held.heads)),
        (name, copied),
    ]
    return [(n, t) for n, t in named if t.nodes <= latency.largest]
