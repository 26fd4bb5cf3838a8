"""Books for tests: text that repeats itself behind a trace's ranks, and a book at every operating point, with its replay's figures."""

from dataclasses import replace

import numpy as np

from medusa_runtime.book import Lookup, TreeBook
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Book, BookTree, Drafted, Estimate
from medusa_tree.devices.latency import LatencyGrid
from medusa_tree.planning.steps import Prices
from medusa_tree.traces.bookreplay import replay_book
from medusa_tree.traces.bootstrap import rate_ratio, ratio_interval
from medusa_tree.traces.lookup import look_up
from medusa_tree.traces.replay import replay
from medusa_tree.traces.text import Ragged, TraceText


def with_text(trace, seed=0, letters=40, slips=0.15):
    """The trace with a text of phrases that come again, some tokens of them changed."""
    rng = np.random.default_rng(seed)
    phrases = rng.integers(3, 3 + letters, (5, 12))

    def say(count):
        said = np.concatenate([phrases[i] for i in rng.integers(0, 5, count // 12 + 1)])[:count]
        return np.where(rng.random(count) < slips, rng.integers(3, 3 + letters, count), said)

    outputs = Ragged.of([say(n + trace.heads) for n in trace.lengths.tolist()])
    prompts = Ragged.of([say(8) for _ in trace.lengths])
    return replace(trace, text=TraceText(prompts, outputs, np.arange(len(trace.lengths))))


def three_trees(tree, lookup=None):
    """The heads' tree where nothing is found; half of it and a chain of 4 at matches of 1 and 2; a chain of 8 from 3 on."""
    half = CandidateTree(tree.paths[: tree.nodes // 2], 4)
    return TreeBook((tree, half, CandidateTree(lookup=8)), (0, 1, 3), lookup or Lookup())


def estimate(value, low, high):
    return Estimate(float(value), float(low), float(high))


def figures(contents, point, calibration, book):
    """The point with this book, and the figures that follow from replay and the latency curve."""
    _, held = calibration.trace.split()
    curve = calibration.latency.curve(point.batch, point.context)
    padded = not isinstance(calibration.latency, LatencyGrid) or calibration.latency.gpu
    price = Prices(curve.at(*np.meshgrid(np.arange(book.nodes + 1), np.arange(book.heads + 1))), padded).of(book)
    play = replay_book(book, held, look_up(held, book.lookup, book.beside))
    seconds, tree = play.seconds(price, point.batch), contents.tree_of(point)
    plain = curve.plain.seconds
    alone = replay(tree, held)
    alone_seconds = alone.steps * float(curve.at(tree.nodes, tree.heads))
    low, high = ratio_interval(play.tokens, seconds)
    rate = play.tokens.sum() / seconds.sum()
    step = 1e3 * seconds.sum() / play.steps.sum()
    number = {path: i for i, path in enumerate(contents.paths)}
    share = play.used.sum(axis=0) / play.steps.sum()
    trees = tuple(
        BookTree(match, tuple(number[p] for p in t.paths), t.lookup, round(float(s), 6))
        for match, t, s in zip(book.matches, book.trees, share, strict=True)
    )
    return replace(
        point,
        book=Book(
            book.lookup, trees, estimate(play.acceptance_length, *play.interval()), estimate(step, 0.98 * step, 1.02 * step),
            estimate(point.batch * rate, point.batch * low, point.batch * high), estimate(plain * rate, plain * low, plain * high),
            Estimate(*rate_ratio(play.tokens, seconds, alone.tokens, alone_seconds)),
            Drafted(*(float(x) for x in play.drafted.sum(axis=0) / play.steps.sum())),
        ),
    )  # fmt: skip


def with_books(contents, calibration, make=three_trees):
    """A tree.json's contents with a book at every point whose tree has nodes."""
    points = [
        figures(contents, p, calibration, make(contents.tree_of(p))) if p.nodes else p
        for p in contents.operating_points
    ]
    return replace(contents, operating_points=tuple(points))
