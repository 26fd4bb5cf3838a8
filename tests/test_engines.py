"""Engines: all are listed and described; every tree offered is within the bound, and the best there is, by brute force."""

import itertools
import json
import pkgutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from test_plan import calibration
from test_search import all_paths, random_trace

from medusa_runtime import CandidateTree, InputError
from medusa_tree import engines
from medusa_tree.cli.plan import plan as plan_command
from medusa_tree.engines import ENGINES, FORMATS, find_family
from medusa_tree.engines.engine import Engine
from medusa_tree.engines.export import export_tree
from medusa_tree.engines.vllm import uniform_tree
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.plan import plan
from medusa_tree.search.order import greedy_order, joint_frequencies
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
        FORMATS["vllm"].export(m.tree)


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_planned_for_an_engine_it_accepts(name):
    """Its own export, which refuses what the engine would, takes every tree offered."""
    trace = shuffled(1)
    for made in ENGINES[name].trees(joint_frequencies(trace, 3.0), trace, SIZES, trace.heads):
        text, _ = FORMATS[name].export(made.tree, made.settings)
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
    FORMATS[name].export(made.contents.tree_of(point))
    assert made.contents.provenance["plan"]["engine"] == name


def test_an_unknown_engine_lists_those_there_are():
    with pytest.raises(InputError, match="engines: vllm, tensorrt-llm, medusa, sglang, linear"):
        find_family("lmdeploy")


def test_an_engine_is_one_file_and_every_file_is_listed():
    files = [import_module(f"{engines.__name__}.{f.name}") for f in pkgutil.iter_modules(engines.__path__)]
    defined = [[v for v in vars(f).values() if isinstance(v, Engine)] for f in files]
    assert all(len(one) <= 1 for one in defined)
    assert {e.name: e for (e,) in filter(None, defined)} == FORMATS
    assert {n: e for n, e in FORMATS.items() if e.trees is not None} == ENGINES


@pytest.mark.parametrize("engine", FORMATS.values(), ids=list(FORMATS))
def test_an_engine_is_described_in_its_file_and_in_the_docs(engine):
    assert engine.bound.strip()
    assert engine.hint.strip()
    _, hint = engine.export(CandidateTree.chain(3), {})
    assert "{" not in hint
    docs = (Path(__file__).parents[1] / "docs" / "formats.md").read_text("utf-8")
    assert engine.versions.strip()
    assert f"| `{engine.name}` | {engine.versions} |" in docs


def test_help_lists_the_engines_that_can_be_planned_for():
    (option,) = (o for o in plan_command.params if o.name == "engine")
    assert option.help.endswith(": " + ", ".join(ENGINES) + ".")


@pytest.mark.parametrize("name", ["medusa", "eagle", "hydra"])
@pytest.mark.parametrize("seed", range(2))
def test_engines_that_keep_ten_candidates_get_the_best_tree_of_those(name, seed):
    """On a trace in which ranks 10 and 11 are the likeliest, so that the free tree is none of theirs."""
    chance = np.array([0.1, *np.linspace(0.08, 0.03, 10), 0.2, 0.15])
    ranks = np.random.default_rng(seed).choice(np.arange(-1, 12), p=chance / chance.sum(), size=(400, 2))
    trace = RankTrace(ranks.astype(np.int16), np.array([0, 200, 400]), np.array([False, True]), 12)
    expand = joint_frequencies(trace, 1e-9)
    with pytest.raises(InputError, match="keeps the top 10"):
        FORMATS[name].export(CandidateTree(greedy_order(expand, 1)[0]))
    made = find_family(name)(expand, trace, (1, 2, 5), 2)
    for m in made:
        FORMATS[name].export(m.tree)
    for size in (1, 2):
        within = best_by_brute_force(trace, size, lambda members: max(map(max, members)) < 10)
        assert max(value(m.tree, trace) for m in made if m.tree.nodes == size) == pytest.approx(within)


def test_planned_settings_are_told_to_the_engine_they_were_planned_for_and_to_no_other():
    told = {"speculative_num_steps": 2, "speculative_eagle_topk": 7, "speculative_num_draft_tokens": 3}
    contents = plan(calibration(), Budget(), engine="sglang").contents
    first = replace(contents.operating_points[0], engine=told)
    made = replace(contents, operating_points=(first, *contents.operating_points[1:]))
    assert json.loads(export_tree(made, "sglang")[0]) == told
    assert export_tree(made, "medusa") == FORMATS["medusa"].export(made.tree_of(first))
    silent = replace(made, operating_points=(replace(first, engine={}),))
    assert export_tree(silent, "sglang") == FORMATS["sglang"].export(made.tree_of(first))
