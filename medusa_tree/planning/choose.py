"""Choose: the fastest of the offers within the budget at one batch and context, and what any tree would give there. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medusa_runtime.book import TreeBook
from medusa_runtime.errors import InputError
from medusa_runtime.treefile import OperatingPoint

from ..devices.latency import LatencyCurve, Load
from ..traces.trace import RankTrace
from .budget import Budget, Mask, Memory, within
from .offers import Offers, estimate, free_offers, full_order, ladder
from .played import Contender, Played, play

CLOSE = 0.08  # of the fastest tree's tokens a second: what a few rounds of timing may be wrong by
LARGEST_KNOWN = "largest size known"  # the limit where a tree larger than any considered may be faster


@dataclass(frozen=True)
class Curve:
    """What every tree size would give at one batch and context: (n,) arrays, the best tree of each size within the
    budget, or the best at all where none is. ``acceptance`` is replay on held-out sequences; ``chosen`` is the entry
    that the plan takes, found on the fitting ones; ``limit`` names the bounds without which it were another."""

    nodes: np.ndarray
    depth: np.ndarray
    acceptance: np.ndarray
    seconds: np.ndarray
    tokens_per_s: np.ndarray
    speedup: np.ndarray
    chosen: int
    offer: int | None  # the chosen tree among the offers; None for plain decoding
    limit: str


def pick(offers: Offers, latency: LatencyCurve, load: Load, budget: Budget, memory: Memory | None) -> Curve:
    """The fastest offer within the budget at one load, and the best of every size.

    Raises:
        InputError: not even plain decoding is within the budget.
    """
    known = np.flatnonzero(offers.nodes <= latency.largest)
    nodes, depth = offers.nodes[known], offers.depth[known]
    seconds = latency.at(nodes, depth)
    met = within(budget, load, latency, nodes, depth, seconds, memory)
    feasible = all_of(met, len(known))
    plain = latency.plain.seconds
    rate = offers.fitted[known] / seconds
    # Every size's best: within the budget where it can be, for the plot also beyond.
    order = np.lexsort((-rate, ~feasible, nodes))
    best = order[np.unique(nodes[order], return_index=True)[1]]
    winner = int(np.argmax(np.where(feasible, rate, 0))) if feasible.any() else None
    if winner is not None and rate[winner] <= 1 / plain:
        winner = None
    free = int(np.argmax(rate)) if len(rate) else None
    limit = (
        ""
        if free == winner or free is None or rate[free] <= 1 / plain
        else ", ".join(n for n, ok in met.items() if not ok[free])
    )
    if winner is not None and not limit and nodes[winner] == latency.largest:
        limit = LARGEST_KNOWN
    at = 0 if winner is None else 1 + int(np.searchsorted(nodes[best], nodes[winner]))
    acceptance = np.concatenate([[1.0], offers.seen[known[best]]])
    time = np.concatenate([[plain], seconds[best]])
    return Curve(
        nodes=np.concatenate([[0], nodes[best]]),
        depth=np.concatenate([[0], depth[best]]),
        acceptance=acceptance,
        seconds=time,
        tokens_per_s=load[0] * acceptance / time,
        speedup=acceptance / time * plain,
        chosen=at,
        offer=None if winner is None else int(known[winner]),
        limit=limit,
    )


def all_of(met: dict[str, Mask], trees: int) -> Mask:
    """(T,) which trees meet every bound."""
    return np.logical_and.reduce([np.ones(trees, dtype=np.bool_), *met.values()])


def contenders(trace: RankTrace, largest: int, budget: Budget) -> Callable[[LatencyCurve], tuple[int, int]]:
    """For :func:`medusa_tree.devices.measure.measure`: the smallest and the largest size measured between which, by a first look at the
    latency, all lie that come CLOSE to the fastest within the budget. What these cost decides the plan."""
    fit, _ = trace.split()
    order = full_order(estimate(fit), largest, fit.heads)
    offers = free_offers(order, fit, fit, ladder(largest), fit.heads)

    def sizes(latency: LatencyCurve) -> tuple[int, int]:
        known = offers.nodes <= latency.largest
        nodes, depth, fitted = offers.nodes[known], offers.depth[known], offers.fitted[known]
        seconds = latency.at(nodes, depth)
        try:
            met = within(budget, (latency.plain.batch, latency.plain.context), latency, nodes, depth, seconds, None)
        except InputError:  # the plan's to refuse, when all is measured and kept
            met = {}
        rate = np.where(all_of(met, len(nodes)), fitted / seconds, 0.0)
        near = nodes[rate >= (1 - CLOSE) * rate.max()]
        first = int(np.searchsorted(latency.nodes, near.min(), "right")) - 1
        last = int(np.searchsorted(latency.nodes, near.max()))
        return int(latency.nodes[max(first, 0)]), int(latency.nodes[last])

    return sizes


def predict(
    what: Contender,
    held: RankTrace,
    latency: LatencyCurve,
    load: Load,
    kind: str = "measured",
    limit: str = "",
    settings: dict[str, object] | None = None,
) -> OperatingPoint:
    """What any tree would give: replay on held-out sequences and the latency curve."""
    return told(what, play(what, held, latency, load[0]), latency, load, kind, limit, settings)


def told(
    what: Contender, played: Played, latency: LatencyCurve, load: Load, kind: str, limit: str = "", settings: dict[str, object] | None = None
) -> OperatingPoint:  # fmt: skip
    """The figures of what was played; of a book's trees the most nodes and heads stand for all."""
    return OperatingPoint(
        *load, what.nodes, what.heads if isinstance(what, TreeBook) else what.depth, played.length, played.milliseconds,
        played.rate(load[0]), played.rate(latency.plain.seconds), latency=kind, limit=limit, engine=dict(settings or {}),
    )  # fmt: skip
