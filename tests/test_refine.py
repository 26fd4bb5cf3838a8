"""Refinements for what decoding visits, and Sequoia's dynamic programme beside the greedy order."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_search import random_trace

from medusa_runtime import CandidateTree
from medusa_tree.planning.offers import estimate, ladder
from medusa_tree.search.order import greedy_order, joint_frequencies, product_frequencies
from medusa_tree.search.refine import swap_nodes, visited_tree
from medusa_tree.traces.replay import replay
from medusa_tree.traces.trace import RankTrace

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from sequoia import sequoia_tree


def stretches(seed=0):
    """Easy stretches of two kinds, in which every head's first guess is right, or every head's second, and hard ones, in which
    head 1's third is and no other: of all positions the easy ones are many, of those that decoding visits few."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(40):
        parts = []
        for _ in range(6):
            parts += [np.zeros((12, 3)), np.ones((12, 3))]
            parts.append(np.where(rng.random((8, 1)) < 0.8, [2, -1, -1], [3, 0, -1]))
        sequences.append(np.concatenate(parts).astype(np.int16))
    return RankTrace.from_sequences(sequences, [i % 4 == 0 for i in range(40)], 4)


def test_the_tree_for_visited_positions_replays_better_where_easy_text_is_long():
    fit, held = stretches().split()
    everywhere = greedy_order(joint_frequencies(fit, 3.0), 6)[0]
    assert set(everywhere) == {(r,) * n for r in (0, 1) for n in (1, 2, 3)}, "most positions are easy"
    for nodes in (4, 5, 6):
        plain = replay(CandidateTree(everywhere[:nodes]), held)
        more, low, _ = replay(visited_tree(fit, nodes, 3.0), held).less(plain)
        assert low > 0
        assert more > 0.05 * plain.acceptance_length
    assert estimate(fit).frequency((2,)) > 1.3 * estimate(fit, "joint").frequency((2,))


@given(st.integers(0, 200), st.integers(1, 12))
def test_a_visited_tree_is_never_worse_on_its_own_trace(seed, nodes):

    trace = random_trace(seed)
    start = CandidateTree(greedy_order(joint_frequencies(trace, 10.0), nodes)[0])
    tree = visited_tree(trace, nodes, 10.0)
    assert tree.nodes == start.nodes
    assert replay(tree, trace).acceptance_length >= replay(start, trace).acceptance_length


@pytest.mark.parametrize("seed", range(5))
def test_swaps_mend_a_bad_tree_and_hold_on_the_other_half(seed):

    one, other = random_trace(seed, sequences=40).halves()
    bad = CandidateTree(((3,), (2,), (3, 3), (3, 2)))
    good = swap_nodes(bad, one, other)
    assert good.nodes == bad.nodes
    assert (0,) in good.paths
    for trace in (one, other):
        assert replay(good, trace).acceptance_length > replay(bad, trace).acceptance_length + 0.3


def test_a_swap_that_the_other_half_does_not_confirm_is_not_taken():

    a = RankTrace.from_sequences([np.full((30, 2), 1, dtype=np.int16)], [False], 3)
    b = RankTrace.from_sequences([np.full((30, 2), 0, dtype=np.int16)], [False], 3)
    tree = CandidateTree(((0,),))
    assert swap_nodes(tree, a, b) == tree
    assert swap_nodes(tree, a, a) == CandidateTree(((1,),))


@given(st.data())
def test_sequoia_finds_what_greedy_finds_under_the_same_chances(data):
    heads, candidates = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    row = st.lists(st.floats(0.01, 1), min_size=candidates, max_size=candidates).map(lambda x: sorted(x, reverse=True))
    chances = np.array([data.draw(row) for _ in range(heads)])
    chances /= np.maximum(1, chances.sum(axis=1, keepdims=True))
    nodes = data.draw(st.integers(1, min(12, sum(candidates**d for d in range(1, heads + 1)))))
    paths, f = greedy_order(product_frequencies(chances), nodes)
    tree = sequoia_tree(chances, nodes)
    assert tree.nodes == nodes == len(paths)
    assert sum(np.prod([chances[k, r] for k, r in enumerate(p)]) for p in tree.paths) == pytest.approx(f.sum())


def test_the_ladder_holds_tile_edges_and_what_it_is_given():
    sizes = ladder(300, [100])
    assert {1, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 300} <= set(sizes.tolist())
    assert sizes.max() == 300
    assert (np.diff(np.log(sizes[sizes >= 16])) < 0.13).all()
