"""Replay against a loop that decodes on paper, one position at a time."""

import numpy as np
import pytest
from conftest import trees
from hypothesis import given
from hypothesis import strategies as st
from test_search import random_trace

from medusa_runtime import CandidateTree, InputError
from medusa_tree.traces.replay import replay, replay_prefixes
from medusa_tree.traces.trace import RankTrace, head_accuracy, top_k_interval


def naive(tree, trace):
    """(tokens, steps) a sequence, walking as decoding does."""
    members, result = set(tree.paths), []
    for ranks in trace.sequences():
        p = steps = 0
        while p < len(ranks):
            accepted = 0
            while accepted < trace.heads and tuple(ranks[p, : accepted + 1]) in members:
                accepted += 1
            p += 1 + accepted
            steps += 1
        result.append((len(ranks), steps))
    return result


@given(trees(depth=3, width=4), st.integers(0, 50))
def test_replay_walks_as_decoding_would(tree, seed):
    trace = random_trace(seed)
    played = replay(tree, trace)
    assert list(zip(played.tokens, played.steps, strict=True)) == naive(tree, trace)


@given(trees(depth=3, width=4), st.integers(0, 50))
def test_one_pass_serves_every_prefix(tree, seed):
    trace = random_trace(seed)
    sizes = np.arange(tree.nodes + 1)
    lengths = replay_prefixes(tree, trace, sizes)
    assert lengths == pytest.approx([replay(tree.cut(n), trace).acceptance_length for n in sizes])


def test_paths_beyond_the_profile_are_never_accepted():
    trace = random_trace(1, heads=2, candidates=4)
    beyond = CandidateTree(((0,), (9,), (0, 0), (0, 0, 0)))
    assert replay(beyond, trace).steps.tolist() == replay(CandidateTree(((0,), (0, 0))), trace).steps.tolist()


def test_a_plain_tree_takes_one_step_a_token():
    played = replay(CandidateTree(), random_trace(2))
    assert played.acceptance_length == 1.0
    assert played.interval() == (1.0, 1.0)


def test_the_interval_covers_the_truth():
    """Of 40 traces from one source, the 95% interval holds the long-run value in at least 34."""
    tree = CandidateTree(((0,), (1,), (0, 0)))
    truth = replay(tree, random_trace(99, sequences=4000)).acceptance_length
    covered = 0
    for seed in range(40):
        low, high = replay(tree, random_trace(seed, sequences=60)).interval()
        covered += low <= truth <= high
    assert covered >= 34


def test_accuracy_counts_ranks():
    trace = random_trace(5)
    a = head_accuracy(trace)
    for k in range(trace.heads):
        for i in range(trace.candidates):
            assert a[k, i] == pytest.approx((trace.ranks[:, k] == i).mean())
    value, low, high = top_k_interval(trace, 3)
    assert value == pytest.approx(a[:, :3].sum(axis=1))
    assert (low < value).all()
    assert (value < high).all()


def test_split_and_merge_keep_every_sequence():
    trace = random_trace(6)
    fit, held = trace.split()
    assert len(fit.starts) + len(held.starts) == len(trace.starts) + 1
    joined = RankTrace.merge([fit, held])
    assert sorted(map(bytes, joined.sequences())) == sorted(map(bytes, trace.sequences()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ranks": np.zeros(7, dtype=np.int16)}, "shape \\(positions, heads\\)"),
        ({"ranks": np.full((7, 2), 9, dtype=np.int16)}, "rank 9; ranks are 0..3"),
        ({"starts": np.array([0, 3])}, "starts must rise from 0 to 7"),
        ({"starts": np.array([0, 7, 7])}, "starts must rise"),
        ({"held_out": np.array([True])}, "held_out has shape"),
    ],
)
def test_bad_traces_are_named(change, words):
    good = {
        "ranks": np.zeros((7, 2), dtype=np.int16),
        "starts": np.array([0, 3, 7]),
        "held_out": np.array([True, False]),
    }
    RankTrace(**good, candidates=4)
    with pytest.raises(InputError, match=words):
        RankTrace(**{**good, **change}, candidates=4)
