"""The greedy order against brute force, and the estimators against counting."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medusa_tree.search.order import choose_kappa, greedy_order, joint_frequencies, product_frequencies
from medusa_tree.traces.trace import RankTrace, head_accuracy


def all_paths(heads, candidates):
    return [p for d in range(1, heads + 1) for p in itertools.product(range(candidates), repeat=d)]


def best_by_brute_force(frequency, size):
    """The largest sum of f over all prefix-closed sets of this size."""
    best = 0.0
    for chosen in itertools.combinations(frequency, size):
        members = set(chosen)
        if all(len(p) == 1 or p[:-1] in members for p in chosen):
            best = max(best, sum(frequency[p] for p in chosen))
    return best


def random_trace(seed, sequences=12, length=30, heads=3, candidates=4, correlated=True):
    rng = np.random.default_rng(seed)
    p = np.array([0.3, 0.4, 0.15, 0.1, 0.05][: candidates + 1])
    ranks = rng.choice([-1, *range(candidates)], p=p / p.sum(), size=(sequences * length, heads))
    if correlated:  # where head 1 errs, the others err too
        ranks[ranks[:, 0] != 0, 1:] = -1
    sequence_rows = np.split(ranks.astype(np.int16), sequences)
    return RankTrace.from_sequences(sequence_rows, [i % 4 == 0 for i in range(sequences)], candidates)


@pytest.mark.parametrize(("heads", "candidates"), [(2, 3), (3, 2), (1, 5)])
@given(data=st.data())
def test_greedy_is_the_best_tree_of_every_size(heads, candidates, data):
    row = st.lists(st.floats(0.01, 1), min_size=candidates, max_size=candidates)
    table = np.array([np.array(data.draw(row)) for _ in range(heads)])
    table /= np.maximum(1, table.sum(axis=1, keepdims=True))
    frequency = {p: float(np.prod([table[k, r] for k, r in enumerate(p)])) for p in all_paths(heads, candidates)}
    size = data.draw(st.integers(1, min(7, len(frequency))))
    paths, f = greedy_order(product_frequencies(table), size)
    assert len(paths) == size
    for n in range(1, size + 1):
        assert f[:n].sum() == pytest.approx(best_by_brute_force(frequency, n))
    assert f == pytest.approx([frequency[p] for p in paths])


@given(st.integers(0, 1000), st.sampled_from([1.0, 10.0, 300.0]))
def test_greedy_is_best_under_the_joint_estimator_too(seed, kappa):
    trace = random_trace(seed, heads=2, candidates=4)
    expand = joint_frequencies(trace, kappa)
    frequency = {}
    for path in [(), *((r,) for r in range(4))]:
        for r, f in enumerate(expand(path)):
            frequency[(*path, r)] = float(f)
    paths, f = greedy_order(joint_frequencies(trace, kappa), 6)
    for n in range(1, len(paths) + 1):
        assert f[:n].sum() == pytest.approx(best_by_brute_force(frequency, n))
        assert len(paths[n - 1]) == 1 or paths[n - 1][:-1] in paths[: n - 1]


def test_without_shrinkage_joint_frequencies_are_counts():
    trace = random_trace(3)
    paths, f = greedy_order(joint_frequencies(trace, kappa=1e-9), 30)
    for path, value in zip(paths, f, strict=True):
        matches = np.all(trace.ranks[:, : len(path)] == path, axis=1).mean()
        assert value == pytest.approx(matches, abs=1e-6)


def test_infinite_shrinkage_is_the_product():
    trace = random_trace(4)
    a, fa = greedy_order(joint_frequencies(trace, float("inf")), 20)
    b, fb = greedy_order(product_frequencies(head_accuracy(trace)), 20)
    assert a == b
    assert fa == pytest.approx(fb)


def test_kappa_is_small_where_heads_err_together_and_large_where_they_do_not():
    together = random_trace(0, sequences=200, length=100)
    apart = random_trace(0, sequences=200, length=100, correlated=False)
    assert choose_kappa(together) < choose_kappa(apart)


def test_the_order_ends_where_nothing_is_left():
    paths, f = greedy_order(product_frequencies(np.array([[0.5, 0.0]])), 10)
    assert paths == ((0,),)
    assert f.tolist() == [0.5]
