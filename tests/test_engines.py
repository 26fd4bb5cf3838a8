"""Engine families: every tree offered is within the engine's bound, and the best there is, by brute force."""

import itertools

import numpy as np
import pytest
from test_plan import calibration
from test_search import all_paths, random_trace

from medusa_runtime import CandidateTree, InputError
from medusa_tree.engines import ENGINES, engine, uniform_tree
from medusa_tree.export import FORMATS
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.plan import plan
from medusa_tree.search.order import joint_frequencies
from medusa_tree.traces.trace import RankTrace

SIZES = (1, 2, 3, 4, 5, 6)


def value(tree, trace):
    """Mean accepted tokens over all positions."""
    return trace.table.accepted(tree)[trace.table.index].mean()


def best_by_brute_force(trace, size, allowed):
    paths = all_paths(trace.heads, trace.candidates)
    best = 0.0
    for chosen in itertools.combinations(paths, size):
        members = set(chosen)
        if all(len(p) == 1 or p[:-1] in members for p in chosen) and allowed(members):
            best = max(best, value(CandidateTree.by_depth(chosen), trace))
    return best


def gap_free(members):
    first = sorted(p[0] for p in members if len(p) == 1)
    return first == list(range(len(first)))


def shuffled(seed):
    """A trace in which rank 2 of head 1 beats rank 1, so that the free order has a gap."""
    trace = random_trace(seed, heads=2, candidates=3)
    ranks = trace.ranks.copy()
    ranks[:, 0] = np.choose(ranks[:, 0] + 1, [-1, 0, 2, 1])
    return RankTrace(ranks, trace.starts, trace.held_out, trace.candidates)


@pytest.mark.parametrize("seed", range(4))
def test_tensorrt_llm_gets_the_best_gap_free_tree(seed):
    trace = shuffled(seed)
    made = ENGINES["tensorrt-llm"].trees(joint_frequencies(trace, 1e-9), trace, SIZES, 2)
    for size in SIZES:
        offered = [m.tree for m in made if m.tree.nodes == size]
        assert all(gap_free(set(t.paths)) for t in offered)
        if offered:
            assert max(value(t, trace) for t in offered) == pytest.approx(best_by_brute_force(trace, size, gap_free))


@pytest.mark.parametrize("seed", range(4))
def test_vllm_gets_the_best_uniform_tree(seed):
    trace = random_trace(seed, heads=3, candidates=3)
    made = ENGINES["vllm"].trees(joint_frequencies(trace, 10.0), trace, range(1, 16), 3)
    for size in range(1, 16):
        every = [b for d in (1, 2, 3) for b in itertools.product((1, 2, 3), repeat=d) if uniform_tree(b).nodes <= size]
        best = max(value(uniform_tree(b), trace) for b in every)
        offered = [m.tree for m in made if m.tree.nodes <= size]
        assert max(value(t, trace) for t in offered) == pytest.approx(best)
    for m in made:
        FORMATS["vllm"](m.tree)


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_planned_for_an_engine_it_accepts(name):
    """Its own export, which refuses what the engine would, takes every tree offered."""
    trace = shuffled(1)
    for made in ENGINES[name].trees(joint_frequencies(trace, 3.0), trace, SIZES, trace.heads):
        text, _ = FORMATS[name](made.tree)
        assert text
        if name == "sglang" and made.settings["speculative_eagle_topk"] > 1:
            assert made.settings["speculative_num_draft_tokens"] == made.tree.nodes + 1
            assert made.tree.depth <= made.settings["speculative_num_steps"]


@pytest.mark.parametrize("name", ENGINES)
def test_a_plan_for_an_engine_is_no_better_than_the_free_one_and_says_what_it_costs(name):
    made = plan(calibration(), Budget(), engine=name)
    point = made.contents.operating_points[0]
    free, tree = made.free[1, 100]
    assert free.nodes == tree.nodes
    assert (
        point.tokens_per_s.value <= 1.02 * free.tokens_per_s.value
    )  # both chosen on the fitting half, shown on the other
    assert made.contents.tree_of(point).nodes == point.nodes
    FORMATS[name](made.contents.tree_of(point))
    assert made.contents.provenance["plan"]["engine"] == name


def test_an_unknown_engine_lists_those_there_are():
    with pytest.raises(InputError, match="engines: vllm, tensorrt-llm, medusa, sglang, linear"):
        engine("lmdeploy")
