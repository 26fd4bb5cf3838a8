"""The table of distinct rows: it must say of every position what the ranks themselves say."""

import numpy as np
import pytest
from conftest import trees
from hypothesis import given
from hypothesis import strategies as st
from test_search import random_trace

from medusa_runtime import CandidateTree
from medusa_tree.traces.table import MISS, PathCounts, RankTable


def up_to_first_miss(ranks):
    return [tuple(row[: next((i for i, r in enumerate(row) if r < 0), len(row))]) for row in ranks.tolist()]


@given(st.integers(0, 200), st.booleans())
def test_every_position_finds_its_row(seed, correlated):
    trace = random_trace(seed, correlated=correlated)
    table = trace.table
    assert up_to_first_miss(table.rows[table.index]) == up_to_first_miss(trace.ranks)
    rows = list(map(tuple, table.rows.tolist()))
    assert rows == sorted(set(rows)), "sorted, each row once"
    assert table.weights().sum() == trace.positions


@pytest.mark.parametrize(("heads", "candidates"), [(5, 10), (9, 300), (40, 50), (3, 30000)])
def test_any_number_of_heads_and_candidates(heads, candidates):
    """Small keys are counted in one array, large ones sorted, and past 64 bits prefixes are renumbered."""
    ranks = np.random.default_rng(heads).integers(0, candidates, (500, heads)).astype(np.int16)
    ranks[::3, heads // 2] = MISS
    ranks[250:] = ranks[:250]
    table = RankTable.of(ranks, candidates)
    assert up_to_first_miss(table.rows[table.index]) == up_to_first_miss(ranks)
    assert (np.diff(table.index[:250]) == np.diff(table.index[250:])).all()
    assert table.rows.tolist() == sorted(table.rows.tolist())


@given(trees(depth=3, width=4), st.integers(1, 20), st.integers(0, 50))
def test_a_chain_is_no_path_of_ranks(tree, chain, seed):
    """What heads have right is the same with looked-up nodes beside their paths."""
    table = random_trace(seed).table
    assert table.accepted(CandidateTree(tree.paths, chain)).tolist() == table.accepted(tree).tolist()


@given(trees(depth=3, width=4), st.integers(0, 50))
def test_counts_of_paths_and_their_children(tree, seed):
    trace = random_trace(seed)
    visited = np.arange(0, trace.positions, 3)
    counts = PathCounts(trace.table.rows, trace.table.weights(visited), trace.candidates)
    for path in [(), *tree.paths]:
        follows = (trace.ranks[visited][:, : len(path)] == path).all(axis=1)
        assert counts.of(path) == follows.sum()
        if len(path) < trace.heads:
            below = trace.ranks[visited][follows][:, len(path)]
            assert counts.children(path).tolist() == [(below == r).sum() for r in range(trace.candidates)]


@given(trees(depth=3, width=6), st.integers(0, 50))
def test_accepted_is_the_longest_prefix_in_the_tree(tree, seed):
    trace = random_trace(seed)
    members = {(), *tree.paths}
    expected = [max(d for d in range(trace.heads + 1) if tuple(row[:d]) in members) for row in trace.ranks.tolist()]
    assert trace.table.accepted(tree)[trace.table.index].tolist() == expected


def test_an_empty_tree_accepts_nothing():
    assert not random_trace(1).table.accepted(CandidateTree()).any()
