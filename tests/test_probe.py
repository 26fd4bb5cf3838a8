"""Calibrating typical acceptance: probes against one forward a node, replay against the runtime, and what is kept on disk."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import BUSHY, random_prompts, tiny_model

from medusa_runtime import CandidateTree, InputError, Sampling, Typical, generate
from medusa_tree.devices.latency import LatencyGrid, LatencyPoint
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.calibration import Calibration, load_calibration, save_calibration
from medusa_tree.planning.compare import fit_to_heads
from medusa_tree.planning.notes import notes
from medusa_tree.planning.offers import estimate, optimality
from medusa_tree.planning.plan import plan
from medusa_tree.profiling import probe as probing
from medusa_tree.profiling.probe import probe, profile_typical, retake, take_trace
from medusa_tree.traces.replay import replay, replay_prefixes

RULE = Typical(0.15, 0.5)
PROBED = CandidateTree.by_depth(
    {*BUSHY.paths, *((a, b) for a in range(4) for b in range(3)), *((0, 0, r) for r in range(4))}
)


def grid():
    points = [LatencyPoint(n, min(n, 4), 1, 64, *[1 + 0.02 * n] * 3) for n in (0, 1, 2, 4, 8, 16, 24)]
    return LatencyGrid(tuple(points), "a clock", "float32")


@pytest.fixture(scope="module")
def traced():
    """A tiny model, 12 prompts, and their probe trace; the probe tree kept small."""
    model, prompts = tiny_model(), random_prompts(12, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "PROBE", 40)
        patch.setattr(probing, "TEXT", 10)
        trace = profile_typical(model, prompts, [i % 3 == 0 for i in range(12)], RULE, 40, candidates=8)
    return model, prompts, trace


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_a_probe_is_a_step_taken_at_every_position(family):
    """Node by node, each behind its own prefix, by the base model's plain forward."""
    model = tiny_model(family)
    base, (prompt,) = model.base, random_prompts(1, seed=1)
    text = model.generate([prompt], tree=BUSHY, max_new_tokens=14, rule=RULE).tokens[0]
    accepted, hidden = probe(model, prompt, text, PROBED, RULE)
    base.set_attn_implementation("eager")
    for p in range(len(text)):
        before = [*prompt, *text[:p]]
        with torch.no_grad():
            out = base(torch.tensor([before]), use_cache=False, output_hidden_states=True)
            logits = out.logits[0, -1]
            guesses = model.heads(hidden[p : p + 1]).topk(4, dim=-1).indices[:, 0].tolist()
        torch.testing.assert_close(hidden[p], out.hidden_states[-1][0, -1], rtol=1e-4, atol=1e-4)
        root = int(logits.argmax())
        for i, path in enumerate(PROBED.paths):
            parent = PROBED.parents[i + 1]
            if parent and not accepted[p, parent - 1]:
                assert not accepted[p, i]
                continue
            words = [guesses[d][r] for d, r in enumerate(path)]
            with torch.no_grad():
                log_p = (
                    base(torch.tensor([[*before, root, *words[:-1]]]), use_cache=False).logits[0, -1].log_softmax(-1)
                )
            bar = min(RULE.epsilon, RULE.delta * float(torch.exp((log_p.exp() * log_p).sum())))
            p_here = float(log_p[words[-1]].exp())
            assert accepted[p, i] == (p_here > bar) or abs(p_here - bar) < 1e-4
    assert accepted.any()


def test_replay_is_exact_for_the_tree_that_made_the_text(traced):
    """As it is for greedy acceptance: every step of every sequence."""
    model, prompts, trace = traced
    held = np.flatnonzero(trace.held_out)
    for tree in (BUSHY, CandidateTree.chain(3)):
        _, own = retake(model, prompts, trace, tree, 40).split()
        out = [generate(model, [prompts[i]], tree, 40, rule=RULE) for i in held]
        played = replay(tree, own)
        assert played.steps.tolist() == [len(o.emitted[0]) for o in out]
        assert played.tokens.tolist() == [len(o.tokens[0]) for o in out]
        assert played.acceptance_length > 1.15


def test_replay_stops_where_a_sequence_ends(traced):
    model, prompts, trace = traced
    model.base.generation_config.eos_token_id = 7
    try:
        _, own = retake(model, prompts, trace, BUSHY, 40).split()
        out = [generate(model, [prompts[i]], BUSHY, 40, rule=RULE) for i in np.flatnonzero(trace.held_out)]
    finally:
        model.base.generation_config.eos_token_id = None
    assert own.lengths.tolist() == [len(o.tokens[0]) for o in out]
    assert min(own.lengths) < 40
    assert replay(BUSHY, own).steps.tolist() == [len(o.emitted[0]) for o in out]


def test_ranks_of_the_text_are_kept_beside_the_probes(traced):
    """Where the text follows a path of ranks and the root is the text's, the node of that path was accepted."""
    _, _, trace = traced
    assert trace.acceptance == RULE
    assert (trace.ranks >= 0).mean() > 0.1
    greedy = trace.table.accepted(trace.probe)
    assert greedy.max() <= 4
    prefixes = replay_prefixes(trace.probe, trace, np.array([1, 5, 20]))
    each = [replay(trace.probe.cut(n), trace).acceptance_length for n in (1, 5, 20)]
    assert prefixes.tolist() == pytest.approx(each)


def test_the_order_beats_that_of_greedy_ranks_and_says_how_near_to_the_best_it_is(traced):
    _, _, trace = traced
    fit, _ = trace.split()
    found = estimate(fit)
    assert found.name == "cover"
    for n in (4, 8, 16):
        ours = found.cover.tree.cut(n)
        assert replay(ours, fit).acceptance_length >= replay(trace.probe.cut(n), fit).acceptance_length - 1e-9
        assert 1 - 1 / np.e < optimality(ours, fit) <= 1 + 1e-9
    with pytest.raises(InputError, match="--estimator product: under typical acceptance"):
        estimate(fit, "product")


def test_a_plan_keeps_the_rule_and_a_calibration_comes_back_whole(traced, tmp_path):
    _, _, trace = traced
    made = Calibration(trace, grid(), {"device": "a clock"})
    path = tmp_path / "c.npz"
    save_calibration(path, made)
    read = load_calibration(path)
    assert read.trace.acceptance == RULE
    assert np.array_equal(read.trace.accepted, trace.accepted)
    assert read.trace.probe == trace.probe
    found, again = plan(made, Budget()), plan(read, Budget())
    assert found.contents == again.contents
    assert found.contents.acceptance == RULE
    point = found.contents.operating_points[0]
    assert point.nodes > 0
    assert point.own is None, "one order serves every size"
    frequency = found.contents.path_frequency[: point.nodes]
    assert 1 + sum(frequency) == pytest.approx(point.acceptance_length.value, rel=0.25)
    text = " ".join(notes(read, again))
    assert "not lossless" in text
    assert "could accept at most" in text
    for option, words in (({"engine": "vllm"}, "--engine is for greedy"), ({"swaps": True}, "--swaps is for greedy")):
        with pytest.raises(InputError, match=words):
            plan(read, Budget(), **option)


def test_a_damaged_probe_trace_is_refused(traced, tmp_path):
    _, _, trace = traced
    wrong = trace.accepted.copy()
    child = next(i for i, p in enumerate(trace.probe.paths) if len(p) == 2)
    wrong[5, child], wrong[5, trace.probe.parents[child + 1] - 1] = True, False
    with pytest.raises(InputError, match=r"position 5 accepts .* under a rejected parent"):
        replace(trace, accepted=wrong)
    with pytest.raises(InputError, match="accepted must be true or false of shape"):
        replace(trace, accepted=wrong[:-1])
    path = tmp_path / "c.npz"
    save_calibration(path, Calibration(trace, grid(), {}))
    arrays = dict(np.load(path))
    arrays["accepted"] = arrays["accepted"][:, :-1]
    np.savez(path, **arrays)
    with pytest.raises(InputError, match='array "accepted" is not uint8 of shape'):
        load_calibration(path)


def test_nodes_that_were_not_probed_count_as_rejected_and_are_named(traced):
    _, held = traced[2].split()
    a, b = next((a, b) for a in range(8) for b in range(8) if (a, b) not in held.probe.index)
    known, unknown = CandidateTree(((a,),)), CandidateTree(((a,), (a, b)))
    assert replay(unknown, held).acceptance_length == replay(known, held).acceptance_length
    assert fit_to_heads("mine", unknown, held)[0] == "mine, 1 nodes not probed"
    assert fit_to_heads("mine", known, held)[0] == "mine"


@pytest.mark.parametrize("rule", [Sampling(0.9, top_p=0.9, seed=4), Typical(temperature=0.0)], ids=str)
def test_replay_is_exact_for_the_text_that_was_drawn_and_for_no_temperature(rule):
    """Sampling with a seed is decoding greedily on disturbed logits: each stream's steps are replayed to the last one."""
    model, prompts = tiny_model(), random_prompts(9, seed=7)
    trace = take_trace(model, prompts, [False] * 9, 48, 10, rule)
    assert trace.acceptance == rule
    for tree in (BUSHY, CandidateTree.chain(4)):
        for first in (0, 4):
            out = generate(model, prompts[first : first + 4], tree, 48, rule=rule, streams=range(first, first + 4))
            assert [len(row) for row in out.emitted] == replay(tree, trace).steps[first : first + 4].tolist()
