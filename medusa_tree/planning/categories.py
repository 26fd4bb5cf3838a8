"""Categories: what one common tree loses on each kind of text against a tree made for that kind alone. NumPy only.

A category's own tree has at most as many nodes as the common one and is made as the plan makes its trees: by the same estimator,
within the same budget and what the engine takes, but from the category's fitting sequences alone. Both are replayed on its
held-out sequences. A tree of as many nodes takes the same time a step, up to its depth, so the ratio of acceptance lengths is nearly
that of tokens/s; the latency curve makes it that of tokens/s. Of small categories own trees are noisy: one that does worse on
held-out text than the common tree is shown as it is, as a ratio above 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medusa_runtime.book import Lookup, TreeBook
from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Estimate

from ..devices.latency import LatencyCurve, Load
from ..engines import find_family
from ..search.order import ENOUGH
from ..traces.bootstrap import ratio_interval
from ..traces.lookup import look_up
from ..traces.replay import Replay, replay, replay_lengths
from ..traces.trace import FEW, RankTrace
from .book import plan_book
from .budget import Mask, within
from .choose import all_of, predict
from .compare import compare
from .lookup import prices_at
from .offers import estimate, full_order
from .plan import Task, refined
from .played import Contender, Played, play, replayed

FITTING, HELD_OUT = 4, 2  # sequences: of fewer no tree is made, and nothing is said
MOST = 32  # categories looked at, the largest
MUCH = 0.03  # of tokens/s: from such a loss on a tree of its own pays


@dataclass(frozen=True)
class Own:
    """A category's own tree: its size (None for all categories, each with its own), its acceptance length on the category's
    held-out sequences, and the tokens/s of the common tree over its, paired: both on the same sequences, whole ones resampled."""

    nodes: int | None
    depth: int | None
    acceptance_length: Estimate
    common_over_own: Estimate


@dataclass(frozen=True)
class OfBook:
    """What the book that serves all gives on one kind of text: its acceptance length, its tokens/s over the common heads' tree's,
    paired, and over plain decoding's; and over those of a book planned for that kind alone, paired, where there is text enough for one."""

    acceptance_length: Estimate
    over_heads: Estimate
    speedup: Estimate
    over_own: Estimate | None = None


@dataclass(frozen=True)
class Category:
    """One kind of text: how many sequences of it there are on either side, and the positions of those held out; the common
    tree's acceptance length on these and its speedup over plain decoding; what its own tree gives, or ``why`` there is none; and what
    the common book gives, where there is one."""

    name: str
    fitting: int
    held_out: int
    positions: int
    acceptance_length: Estimate | None = None
    speedup: Estimate | None = None
    own: Own | None = None
    why: str = ""
    book: OfBook | None = None

    @property
    def loses(self) -> bool:
        """Whether the common tree loses more than MUCH beyond doubt; of FEW sequences it is never known."""
        return self.own is not None and self.held_out >= FEW and self.own.common_over_own.high < 1 - MUCH


@dataclass(frozen=True)
class Categories:
    """The common tree at one load.

    rows: the categories by name. whole: all of the text; its own tree is each category's, and the common one where there is
    none. left_out: smaller categories that have no row.
    """

    load: Load
    rows: tuple[Category, ...]
    whole: Category
    left_out: int = 0


def by_category(task: Task, tree: CandidateTree, load: Load, book: TreeBook | None = None) -> Categories | None:
    """The common ``tree`` against each category's own; None where sequences have no categories or all have the same, or where the
    tree is plain decoding, which is the same for all, and there is no book.

    Args:
        task: what the tree was planned from.
        load: (batch, context) that it was planned for.
        book: what the runtime does with heads and lookup together.
    """
    fit, held, kinds = task.fit, task.held, task.calibration.trace.categories
    if not (tree.nodes or book) or kinds is None or (count := len(np.unique(kinds))) < 2:
        return None
    latency = task.latency.curve(*load)
    common = play(tree, held, latency, load[0])
    both = None if book is None else play(book, held, latency, load[0], task.latency.gpu)
    own_steps, own_spent = common.replay.steps.copy(), common.seconds.copy()
    own_books = None if both is None else both.seconds.copy()
    rows = []
    for name in largest(kinds):
        fitting, mine = fit.categories == name, held.categories == name
        row = Category(str(name), int(fitting.sum()), int(mine.sum()), int(held.lengths[mine].sum()))
        if row.held_out < HELD_OUT:
            rows.append(replace(row, why="too few held out"))
            continue
        row, own = _against_own(task, tree, load, row, fitting, mine)
        if both is not None and own_books is not None and book is not None:
            if row.fitting >= FITTING:
                own_books[mine] = _own_book_seconds(task, book, tree, load, fitting, mine)
            row = replace(
                row,
                book=_of_book(
                    both.of(mine), common.of(mine), latency, own_books[mine] if row.fitting >= FITTING else None
                ),
            )
        rows.append(row)
        if own is not None:
            own_steps[mine] = replay(own, held.select(mine)).steps
            own_spent[mine] = own_steps[mine] * latency.at(own.nodes, own.depth)
    point = predict(tree, held, latency, load, task.kind)
    whole = Category("all", len(fit.lengths), len(held.lengths), held.positions, point.acceptance_length, point.speedup)
    if any(row.own for row in rows):
        ratio = Estimate(float(own_spent.sum() / common.seconds.sum()), *ratio_interval(own_spent, common.seconds))
        whole = replace(whole, own=Own(None, None, _acceptance(Replay(common.replay.tokens, own_steps)), ratio))
    if both is not None:
        whole = replace(whole, book=_of_book(both, common, latency, own_books))
    return Categories(load, tuple(rows), whole, count - len(rows))


def _of_book(book: Played, tree: Played, latency: LatencyCurve, own: npt.NDArray[np.float64] | None) -> OfBook:
    """The same sequences with the book, with the heads' tree, and (S,) the seconds that books of their own take."""
    more, lost = (
        None
        if other is None
        else Estimate(float(other.sum() / book.seconds.sum()), *ratio_interval(other, book.seconds))
        for other in (tree.seconds, own)
    )
    return OfBook(book.length, more or Estimate(1.0, 1.0, 1.0), book.rate(latency.plain.seconds), lost)


def _own_book_seconds(
    task: Task, book: TreeBook, tree: CandidateTree, load: Load, fitting: Mask, mine: Mask
) -> npt.NDArray[np.float64]:
    """(S,) what the held-out sequences of a category take with a book planned as the common one was, on its fitting sequences alone."""
    latency, fit = task.latency.curve(*load), task.fit.select(fitting)
    prices = prices_at(latency, load, task.budget, task.calibration.memory, fit.heads, task.latency.gpu)
    paths = full_order(task.estimator, latency.largest, fit.heads, may_be_empty=True).paths
    own = plan_book(fit, look_up(fit, book.lookup or Lookup(), book.beside), paths, prices, tree).book
    return play(replace(own, beside=book.beside), task.held.select(mine), latency, load[0], task.latency.gpu).seconds


def _against_own(
    task: Task, tree: CandidateTree, load: Load, row: Category, fitting: Mask, mine: Mask
) -> tuple[Category, CandidateTree | None]:
    """The row of a category, filled in, and its own tree, if there is one.

    Args:
        fitting, mine: (S,) bool, which of the fitting and of the held-out sequences are of the category.
    """
    latency, held = task.latency.curve(*load), task.held.select(mine)
    point = predict(tree, held, latency, load, task.kind)
    row = replace(row, acceptance_length=point.acceptance_length, speedup=point.speedup)
    if not tree.nodes:
        return replace(row, why="plain decoding"), None
    if row.fitting < FITTING:
        return replace(row, why="too few to fit"), None
    try:
        own = own_tree(task, task.fit.select(fitting), tree.nodes, load)
    except InputError:  # there is no path to take
        return replace(row, why="no guess is right"), None
    its, common = compare([("own", own), ("common", tree)], held, latency, load, task.kind)
    return replace(row, own=Own(own.nodes, own.depth, its.point.acceptance_length, common.rate_ratio)), own


def own_tree(task: Task, fit: RankTrace, nodes: int, load: Load) -> CandidateTree:
    """The tree of at most ``nodes`` nodes with the most tokens/s on the sequences of ``fit``, made from these alone; within the
    task's budget and what its engine takes.

    Raises:
        InputError: no guess is ever right on them, so that there is no path to take.
    """
    latency = task.latency.curve(*load)
    task = replace(task, fit=fit, estimator=estimate(fit, task.estimator.name))
    covered = task.estimator.cover
    order = full_order(task.estimator, nodes if covered is None else covered.tree.nodes, fit.heads)
    if task.engine:
        sizes = [nodes >> k for k in range(nodes.bit_length())]  # halves, too, where there are not paths enough
        made = find_family(task.engine)(task.estimator.expand, fit, sizes, fit.heads)
        trees = [m.tree for m in made if m.tree.nodes <= nodes]
    else:
        trees = [order.cut(nodes, depth) for depth in range(1, fit.heads + 1)]
    sample = fit.sample(ENOUGH)
    lengths = replay_lengths(np.stack([sample.table.accepted(t) for t in trees], axis=1), sample)
    counts, depths = np.array([t.nodes for t in trees]), np.array([t.depth for t in trees])
    seconds = latency.at(counts, depths)
    met = within(task.budget, load, latency, counts, depths, seconds, task.calibration.memory)
    best = trees[int(np.argmax(np.where(all_of(met, len(trees)), lengths / seconds, 0.0)))]
    return best if task.engine else refined(task, best)[0]


@dataclass(frozen=True)
class CategoryAcceptance:
    """How many held-out sequences a category has (None: all of them together), and the acceptance length of each of several trees
    on them; no lengths where there are fewer than HELD_OUT."""

    name: str | None
    held_out: int
    lengths: tuple[Estimate, ...]


def acceptance_by_category(trees: Sequence[Contender], held: RankTrace) -> list[CategoryAcceptance]:
    """Any trees, or books, on each category's held-out sequences, and on all of them, last; nothing where sequences have no categories, or
    all the same."""
    kinds = held.categories
    if kinds is None or len(np.unique(kinds)) < 2:
        return []
    plays = [replayed(what, held) for what in trees]
    rows = []
    for name in largest(kinds):
        mine = kinds == name
        count = int(mine.sum())
        lengths = [_acceptance(Replay(p.tokens[mine], p.steps[mine])) for p in plays if count >= HELD_OUT]
        rows.append(CategoryAcceptance(str(name), count, tuple(lengths)))
    return [*rows, CategoryAcceptance(None, len(kinds), tuple(_acceptance(p) for p in plays))]


def largest(kinds: npt.NDArray[np.str_], most: int = MOST) -> npt.NDArray[np.str_]:
    """The names of the ``most`` categories with the most sequences, in alphabetical order.

    Args:
        kinds: (S,) each sequence's category.
    """
    names, count = np.unique(kinds, return_counts=True)
    return names[np.sort(np.argsort(-count, kind="stable")[:most])]


def _acceptance(play: Replay) -> Estimate:
    return Estimate(play.acceptance_length, *play.interval())
