"""Offers: the trees that a plan chooses from, each replayed on fitting and on held-out sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree, Path

from ..engines import find_family
from ..search.cover import Cover, cover, optimum_bound
from ..search.order import ENOUGH, Expand, choose_kappa, joint_frequencies, order_for_every_depth, product_frequencies
from ..search.refine import visited_tree
from ..traces.probetrace import ProbeTrace
from ..traces.replay import replay_lengths, replay_prefixes, visited_by
from ..traces.trace import RankTrace, head_accuracy

ESTIMATORS = ("visited", "joint", "product")
COVER = "cover"  # the estimator's name under typical acceptance
REFERENCE = 64  # nodes of the tree whose visits weigh the positions; benchmarks/estimators.py says what that costs


@dataclass(frozen=True)
class Estimator:
    """Path frequencies as estimated: ``expand`` for any path, and by which rule. Under typical acceptance, where several
    siblings may be accepted, what counts is what a node adds to those before it, and ``cover`` has the order."""

    name: str
    kappa: float
    expand: Expand
    cover: Cover | None = None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "kappa": None if np.isinf(self.kappa) else self.kappa}

    def frequency(self, path: Path) -> float:
        """f(v), or what the node adds: E[L] of a prefix of the order is 1 and the sum of these."""
        if self.cover is not None:
            return float(self.cover.gains[self.cover.tree.index[path] - 1])
        return float(self.expand(path[:-1])[path[-1]])

    def place(self, path: Path) -> tuple[float, int, Path]:
        """What the common order is sorted by."""
        first = -self.frequency(path) if self.cover is None else float(self.cover.tree.index[path])
        return first, len(path), path


def estimate(trace: RankTrace, name: str = "visited") -> Estimator:
    """Fit path frequencies: over the positions that a tree of REFERENCE nodes visits, or over all positions, counted
    jointly or as a product of accuracies.

    A trace of typical acceptance has an estimator of its own.

    Raises:
        InputError: another name.
    """
    if isinstance(trace, ProbeTrace):
        if name not in ("visited", COVER):
            raise InputError(f"--estimator {name}: under typical acceptance nodes are chosen by covering; leave it out")
        return _covering(trace)
    if name not in ESTIMATORS:
        raise InputError(f"--estimator {name!r} is not known; estimators: {', '.join(ESTIMATORS)}")
    if name == "product":
        return Estimator(name, np.inf, product_frequencies(head_accuracy(trace)))
    kappa = choose_kappa(trace)
    if name == "joint":
        return Estimator(name, kappa, joint_frequencies(trace, kappa))
    reference = visited_tree(trace.sample(ENOUGH), REFERENCE, kappa)
    return Estimator(name, kappa, joint_frequencies(trace, kappa, visited_by(reference, trace)))


def _covering(trace: ProbeTrace, rounds: int = 4) -> Estimator:
    """The order of :mod:`medusa_tree.search.cover` over the positions that its own first REFERENCE nodes visit."""
    sample = trace.sample(ENOUGH)
    weights = sample.table.weights()
    for _ in range(rounds):
        found = cover(sample.table.accepted_nodes, weights, trace.probe, trace.probe.nodes)
        visits = sample.table.weights(visited_by(found.tree.cut(REFERENCE), sample))
        if np.array_equal(visits, weights):
            break
        weights = visits
    return Estimator(COVER, np.inf, product_frequencies(head_accuracy(trace)), found)


def optimality(tree: CandidateTree, trace: ProbeTrace) -> float:
    """At least this share of the accepted length that the best tree of its size among the probed nodes would have, at the
    positions of the trace that ``tree`` visits."""
    weights = trace.table.weights(visited_by(tree, trace))
    accepted = trace.table.accepted(tree) @ weights / weights.sum()
    bound = optimum_bound(trace.table.accepted_nodes, weights, trace.probe, tree, tree.nodes)
    return float((1 + accepted) / (1 + bound))


@dataclass(frozen=True)
class Offers:
    """T trees to choose from, arrays (T,): nodes; depth; acceptance length replayed on the fitting sequences and on
    the held-out ones. ``tree(i)`` makes the i-th, ``settings(i)`` is how an engine is told to run it."""

    nodes: npt.NDArray[np.int64]
    depth: npt.NDArray[np.int64]
    fitted: npt.NDArray[np.float64]
    seen: npt.NDArray[np.float64]
    tree: Callable[[int], CandidateTree]
    settings: Callable[[int], dict[str, Any]] = field(default=lambda i: {})


def ladder(most: int, also: npt.ArrayLike = ()) -> npt.NDArray[np.int64]:
    """Sizes to try, up to ``most``: all up to 16, then every tenth part more, the sizes at which N + 1 rows fill a tile,
    the one behind, and those given."""
    steps = np.round(16 * 1.1 ** np.arange(0, 80)).astype(np.int64)
    tiles = 16 << np.arange(16)
    sizes = np.unique(
        np.concatenate([np.arange(1, 17), steps, tiles - 1, tiles, [most], np.asarray(also, dtype=np.int64)])
    )
    return sizes[(sizes >= 1) & (sizes <= most)]


def free_offers(
    order: CandidateTree, fit: RankTrace, held: RankTrace, sizes: npt.NDArray[np.int64], depths: int
) -> Offers:
    """The prefixes of one order at every depth; none where no heads are."""
    if not depths:
        none = np.zeros(0, dtype=np.int64)
        return Offers(none, none, none.astype(np.float64), none.astype(np.float64), lambda i: CandidateTree())
    fit, held = fit.sample(ENOUGH), held.sample(ENOUGH)
    cuts = {d: order.cut(int(sizes[-1]), d) for d in range(1, depths + 1)}
    columns: list[list[npt.NDArray[Any]]] = []
    for d, cut in cuts.items():
        here = sizes[sizes <= cut.nodes]
        reached = np.maximum.accumulate(cut.depths)[here]
        here, reached = here[reached == d], reached[reached == d]  # a shallower prefix stands under its own depth
        if len(here):
            columns.append([here, reached, replay_prefixes(cut, fit, here), replay_prefixes(cut, held, here)])
    nodes, depth, fitted, seen = (np.concatenate(c) for c in zip(*columns, strict=True))
    return Offers(nodes, depth, fitted, seen, lambda i: cuts[int(depth[i])].cut(int(nodes[i])))


def engine_offers(
    name: str, estimator: Estimator, fit: RankTrace, held: RankTrace, sizes: npt.NDArray[np.int64], depths: int
) -> Offers:
    """The best trees within what an engine accepts."""
    fit, held = fit.sample(ENOUGH), held.sample(ENOUGH)
    made = find_family(name)(estimator.expand, fit, sizes.tolist(), depths)
    trees = [m.tree for m in made]

    def lengths(trace: RankTrace) -> npt.NDArray[np.float64]:
        return replay_lengths(np.stack([trace.table.accepted(t) for t in trees], axis=1), trace)

    nodes, depth = np.array([t.nodes for t in trees]), np.array([t.depth for t in trees])
    return Offers(nodes, depth, lengths(fit), lengths(held), trees.__getitem__, lambda i: made[i].settings)


def full_order(estimator: Estimator, most: int, depths: int, may_be_empty: bool = False) -> CandidateTree:
    """One order whose cuts are the best trees of every size up to ``most`` and every depth; empty where no heads are.

    Raises:
        InputError: every rank is a miss, so that there is no path to take.
    """
    if not depths:
        return CandidateTree()
    if estimator.cover is not None:
        paths = estimator.cover.tree.cut(most).paths
    else:
        paths, _ = order_for_every_depth(estimator.expand, most, depths)
    if not paths and not may_be_empty:
        raise InputError(
            "rank trace: every rank is a miss on the fitting sequences: no tree can be planned. Head 1's ranks are of the token "
            "behind the model's own next one; docs/formats.md says which row stands where"
        )
    return CandidateTree(paths)
