"""The order that covers what is accepted, against brute force over all trees."""

import itertools

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medusa_runtime.tree import CandidateTree
from medusa_tree.search.cover import cover, optimum_bound

PROBE = CandidateTree(((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (2, 0), (0, 0, 0), (1, 0, 0), (2, 0, 0)))


@st.composite
def accepted_sets(draw, probe=PROBE):
    """Distinct outcomes with weights, each closed under parents: a node stands by chance where its parent does."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    chance = rng.beta(*draw(st.sampled_from([(1, 1), (0.3, 0.3), (1, 4)])), size=probe.nodes)
    common = rng.random((40, 1)) ** draw(st.sampled_from([0.0, 1.0]))  # what makes nodes stand and fall together
    bits = rng.random((40, probe.nodes)) * common < chance
    for i in range(1, probe.nodes + 1):
        if probe.parents[i]:
            bits[:, i - 1] &= bits[:, probe.parents[i] - 1]
    return bits, rng.integers(1, 20, size=40)


def expected_depth(bits, weights, nodes, probe=PROBE):
    """E[max depth] of a set of nodes, by its definition."""
    depth = np.array([len(p) for p in probe.paths])
    return float(weights @ (bits[:, nodes] * depth[nodes]).max(axis=1, initial=0) / weights.sum())


def every_tree(size, probe=PROBE):
    for nodes in itertools.combinations(range(probe.nodes), size):
        if all(probe.parents[i + 1] - 1 in (-1, *nodes) for i in nodes):
            yield list(nodes)


def numbers(tree, probe=PROBE):
    return [probe.index[p] - 1 for p in tree.paths]


@settings(max_examples=25)
@given(accepted_sets())
def test_the_guarantee_and_the_bound_hold_against_every_tree(case):
    bits, weights = case
    found = cover(bits, weights, PROBE, PROBE.nodes)
    for size in range(1, found.tree.nodes + 1):
        ours = found.tree.cut(size)
        gain = expected_depth(bits, weights, numbers(ours))
        assert np.isclose(found.gains[:size].sum(), gain), "E[L] is one and the sum of the gains"
        best = max(expected_depth(bits, weights, t) for t in every_tree(size))
        assert gain >= found.guarantee(size) * best - 1e-9
        assert found.picked[:size].sum() < size or found.guarantee(size) >= 1 - 1 / np.e
        assert gain <= best + 1e-9
        for other in (ours, found.tree.cut(3)):
            assert optimum_bound(bits, weights, PROBE, other, size) >= best - 1e-9


@given(accepted_sets(), st.data())
def test_what_is_covered_is_monotone_and_submodular_on_all_sets(case, data):
    """G of the module's proof, on sets that need not be trees; on trees it is E[max depth]."""
    bits, weights = case
    level = np.array([len(p) for p in PROBE.paths])

    def g(nodes):
        return sum(weights @ bits[:, [n for n in nodes if level[n] == d]].any(axis=1) for d in (1, 2, 3))

    large = data.draw(st.sets(st.integers(0, PROBE.nodes - 1)))
    small = {n for n in large if data.draw(st.booleans())}
    new = data.draw(st.integers(0, PROBE.nodes - 1))
    assert g(large | {new}) >= g(large)
    assert g(small | {new}) - g(small) >= g(large | {new}) - g(large)
    for tree in itertools.islice(every_tree(4), 10):
        assert np.isclose(g(tree) / weights.sum(), expected_depth(bits, weights, tree))


@given(accepted_sets())
def test_lazy_is_greedy(case):
    """Against a greedy that looks at every node every time."""
    bits, weights = case
    found = cover(bits, weights, PROBE, PROBE.nodes)
    level, parents = PROBE.depths[1:], PROBE.parents[1:] - 1
    taken = []

    def gain(v):
        met = bits[:, [u for u in taken if level[u] == level[v]]].any(axis=1)
        return weights @ (bits[:, v] & ~met)

    while len(taken) < found.tree.nodes:
        gains = [-1 if v in taken else gain(v) for v in range(PROBE.nodes)]
        v = min(range(PROBE.nodes), key=lambda v: (-gains[v], level[v], v))
        missing = [v]
        while (v := parents[v]) >= 0 and v not in taken:
            missing.append(v)
        taken += missing[::-1]
    assert numbers(found.tree) == taken
    assert cover(bits, weights, PROBE, PROBE.nodes).gains[len(taken) :].sum() == 0


def test_a_node_without_gain_is_fetched_for_its_childs_sake():
    """Wherever (1) stands so does (0), so beside it (1) gains nothing; but its child stands often, and the child of (0) and
    the rest hardly ever. Adding only nodes whose parent is there would never come to it."""
    probe = CandidateTree(((0,), (1,), (2,), (0, 0), (1, 0), (1, 0, 0)))
    bits = np.zeros((100, 6), dtype=bool)
    bits[:90, 0] = True
    bits[:80, [1, 4, 5]] = True
    bits[95:96, 2] = bits[:1, 3] = True
    found = cover(bits, np.ones(100, dtype=np.int64), probe, 4)
    assert found.tree.paths == ((0,), (1,), (1, 0), (1, 0, 0))
    assert found.picked.tolist() == [True, False, True, True]
    assert np.isclose(found.gains.sum(), 0.9 + 0.8 + 0.8)


@given(accepted_sets(), st.integers(1, 3))
def test_the_order_cut_at_a_depth_is_the_order_for_that_depth(case, depth):
    bits, weights = case
    found = cover(bits, weights, PROBE, PROBE.nodes)
    assume(found.picked.all())  # ancestors that deeper nodes fetch stand earlier
    shallow = [i for i, p in enumerate(PROBE.paths) if len(p) <= depth]
    alone = cover(bits[:, shallow], weights, CandidateTree(tuple(PROBE.paths[i] for i in shallow)), len(shallow))
    assert alone.tree.paths == found.tree.cut(found.tree.nodes, depth).paths
