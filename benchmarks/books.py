"""What planning heads and lookup together is worth, on paper: ways to choose a book, replayed on the held-out text of a calibration.

    python benchmarks/books.py tree.calibration.npz [-o benchmarks/results/books.json]

heads: the heads' tree alone. fixed: that tree, and from a match length on a chain, the best of all such pairs on the fitting text. one rate: every
token is worth the same time (Dinkelbach's method for ratios). time to go: a token is worth the time that it saves where it stands, which
is what the plan goes by.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from record import keep
from rich.console import Console
from rich.table import Table

from medusa_runtime.book import Lookup, TreeBook
from medusa_runtime.tree import CandidateTree
from medusa_tree.planning.book import Found, books_of, measured, plan_book, trees_to_choose
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.calibration import load_calibration
from medusa_tree.planning.lookup import prices_at
from medusa_tree.planning.plan import plan
from medusa_tree.planning.steps import Prices, Steps
from medusa_tree.traces.bookreplay import replay_book
from medusa_tree.traces.bootstrap import rate_ratio
from medusa_tree.traces.lookup import Lookups, look_up
from medusa_tree.traces.trace import RankTrace

ROUNDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    calibration = load_calibration(args.calibration)
    fit, held = calibration.trace.split()
    load = calibration.latency.loads()[0]
    curve = calibration.latency.curve(*load)
    prices = prices_at(curve, load, Budget(), None, fit.heads, padded=False)
    alone = plan(calibration, Budget(), drafts="heads").contents
    tree, paths = alone.tree(*load), alone.paths
    fitting, found = look_up(fit, Lookup()), look_up(held, Lookup())

    books = {
        "heads": TreeBook((tree,), (0,), Lookup()),
        "fixed": fixed_switch(fit, fitting, prices, tree).book,
        "one rate": at_one_rate(fit, fitting, prices, paths, tree).book,
        "time to go": plan_book(fit, fitting, paths, prices, tree).book,
    }
    plays = {name: replay_book(book, held, found) for name, book in books.items()}
    spent = {name: play.seconds(prices.of(books[name])) for name, play in plays.items()}
    table = Table("", "trees", "tokens a step", "tokens/s", "over heads (95%)")
    rows = {}
    for name, play in plays.items():
        rate = play.tokens.sum() / spent[name].sum()
        ratio = rate_ratio(play.tokens, spent[name], plays["heads"].tokens, spent["heads"])
        table.add_row(
            name,
            str(len(books[name].trees)),
            f"{play.acceptance_length:.2f}",
            f"{rate:.0f}",
            "{:.2f} ({:.2f} to {:.2f})".format(*ratio),
        )
        rows[name] = {
            "book": [[m, t.nodes, t.heads, t.lookup] for m, t in zip(books[name].matches, books[name].trees, strict=True)],
            "acceptance_length": play.acceptance_length, "tokens_per_s": float(rate), "over_heads": ratio,
            "tokens_per_s_fitting": measured(books[name], fit, fitting, prices).rate,
        }  # fmt: skip
    Console(stderr=True).print(table)
    keep(
        "books", args.out, {"device": calibration.latency.device, "dtype": calibration.latency.dtype, "predicted": rows}
    )


def fixed_switch(fit: RankTrace, found: Lookups, prices: Prices, tree: CandidateTree) -> Found:
    """The heads' tree, and a chain from some match length on."""
    chains = (4, 6, 8, 10, 12, 16, 24, 32, 48, 63)
    books = [
        TreeBook((tree, CandidateTree((), n)), (0, m), found.lookup)
        for n in chains
        if n <= prices.largest
        for m in (1, 2, 3, 4, 5)
    ]
    return max((measured(book, fit, found, prices) for book in books), key=lambda f: f.rate)


def at_one_rate(fit: RankTrace, found: Lookups, prices: Prices, paths: tuple, tree: CandidateTree) -> Found:
    """The best book of some rounds in which a token saved is worth the time that the book before needs for one."""
    probe = CandidateTree(paths[:96], prices.largest)
    best = now = measured(TreeBook((tree,), (0,), found.lookup), fit, found, prices)
    ends = np.repeat(fit.starts[1:], fit.lengths)
    for _ in range(ROUNDS):
        steps = replace(Steps.of(now.book, fit, found, prices), to_go=(ends - np.arange(fit.positions)) / now.rate)
        books = books_of(steps, trees_to_choose(probe, steps, prices), prices, found.lookup)
        now = max((measured(book, fit, found, prices) for book in books), key=lambda f: f.rate)
        best = max(best, now, key=lambda f: f.rate)
    return best


if __name__ == "__main__":
    main()
