"""What validate holds against what, and what it says: acceptance, weights, times that are not there, and the report."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_prompts, tiny_heads, tiny_model
from test_cli import run, words

from medusa_runtime.heads.checkpoint import save_heads
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Estimate, read_tree, write_tree
from medusa_tree.planning.calibration import calibration_path
from medusa_tree.profiling.profile import profile
from medusa_tree.reports.validation import validation_report
from medusa_tree.traces.replay import Replay, replay
from medusa_tree.validation.acceptance import Acceptance
from medusa_tree.validation.partings import Partings
from medusa_tree.validation.prompts import beginning, held_out_trace
from medusa_tree.validation.result import Lossless, Validation
from medusa_tree.validation.ties import Difference
from medusa_tree.validation.validate import validate

EXACT = Estimate(2.0, 2.0, 2.0)


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def as_json(*args, code=0):
    return json.loads(run("validate", *args, "--json", code=code).stdout, parse_constant=refuse)


@pytest.fixture
def copied(made, tmp_path):
    """The tree in another folder, without its calibration."""
    write_tree(tmp_path / "tree.json", read_tree(made))
    return tmp_path / "tree.json"


def test_one_token_leaves_nothing_to_time(made):
    assert "the first step is not timed" in words(run("validate", made, "--max-new-tokens", 1, code=2))
    data = as_json(made, "--prompts", 2, "--max-new-tokens", 12)
    assert data["step_latency_ms"]["tree"] > 0


def test_texts_that_end_with_their_first_step_are_named(made, monkeypatch):
    """No NaN is printed of them; batches that do end so do not count in the others' times."""
    point = read_tree(made).operating_points[0]
    model = tiny_model()
    prompts = random_prompts(4)
    (first,) = model.generate(prompts[:1], max_new_tokens=1).tokens
    model.base.generation_config.eos_token_id = first[0]
    with pytest.raises(ValueError, match="all texts end with their first step"):
        validate(model, CandidateTree(), replace(point, batch=1), prompts[:1], 8)
    made = validate(model, CandidateTree(), replace(point, batch=1), prompts, 8)
    figures = [made.speedup, *made.step_latency_ms.values(), *made.tokens_per_s.values()]
    assert all(np.isfinite([e.value, e.low, e.high]).all() for e in figures)


def test_acceptance_is_held_against_the_replay_of_these_very_prompts(made, copied):
    data = as_json(made, "--prompts", 4)["acceptance_length"]
    assert data["replayed"] == pytest.approx(data["measured"], rel=1e-6)
    assert data["ratio"]["value"] == pytest.approx(1, rel=1e-6)
    shorter = as_json(made, "--prompts", 4, "--max-new-tokens", 12)["acceptance_length"]
    assert shorter["replayed"] == pytest.approx(shorter["measured"], rel=1e-6)
    for args in (
        (copied,),
        (made, "--max-new-tokens", 48),
        (made, "--corpus", read_tree(made).provenance["corpus"]["name"]),
    ):
        assert as_json(*args, "--prompts", 4)["acceptance_length"]["replayed"] is None


def test_a_calibration_of_other_prompts_beside_the_tree_is_left_alone(made, copied):
    shutil.copy(calibration_path(made), calibration_path(copied))
    assert held_out_trace(copied, read_tree(copied)) is not None
    contents = read_tree(copied)
    assert held_out_trace(copied, replace(contents, provenance={**contents.provenance, "date": "yesterday"})) is None
    calibration_path(copied).write_bytes(b"no calibration")
    assert "so acceptance is held against" in words(run("validate", copied, "--prompts", 2))


def test_the_beginning_of_a_trace_is_that_of_shorter_texts():
    model, prompts = tiny_model(), random_prompts(6)
    whole = profile(model, prompts, [True] * 6, max_new_tokens=30)
    short = profile(model, prompts[:4], [True] * 4, max_new_tokens=11)
    tree = CandidateTree(((0,), (1,), (0, 0)))
    cut = replay(tree, beginning(whole, 4, 11))
    assert cut.tokens.tolist() == replay(tree, short).tokens.tolist()
    assert cut.steps.tolist() == replay(tree, short).steps.tolist()


def test_acceptance_that_is_off_by_more_than_chance_and_a_margin_is_another():
    steps = [[2] * 16 for _ in range(20)]  # 2 tokens a step
    texts = np.full(20, 32)
    assert Acceptance.of(steps, EXACT, Replay(texts, np.full(20, 16))).as_predicted
    far = Acceptance.of(steps, EXACT, Replay(texts, np.full(20, 12)))  # 2.67 replayed
    assert not far.as_predicted
    assert "2.000, where replay predicts 2.667 for these very prompts" in str(far)
    near = Acceptance.of(steps, EXACT, Replay(texts, np.full(20, 15.5)))
    assert near.ratio.high < 1, "beyond chance, but"
    assert near.as_predicted, "less than a twentieth is let be"
    by_chance = Acceptance.of(steps, EXACT, Replay(texts, np.array([16] * 19 + [90])))
    assert by_chance.ratio.value > 1.05, "far, but"
    assert by_chance.as_predicted, "it is one text of twenty"
    few = Acceptance.of(steps[:3], EXACT, Replay(texts[:3], np.full(3, 12)))
    assert few.as_predicted, "of three prompts, only what is off by half says something"


def test_without_a_replay_intervals_are_compared():
    rng = np.random.default_rng(0)
    steps = [rng.integers(1, 4, 16).tolist() for _ in range(20)]  # about 2 tokens a step
    assert Acceptance.of(steps, Estimate(2.1, 2.0, 2.2)).as_predicted
    other = Acceptance.of(steps, Estimate(3.0, 2.8, 3.2))
    assert not other.as_predicted
    assert "where 3.000 (2.800 to 3.200) was predicted" in str(other)


def test_weights_that_have_changed_are_refused_and_others_named_are_told(made, model, tmp_path):
    kept = (model / "heads" / "medusa_lm_head.safetensors").read_bytes()
    try:
        save_heads(tiny_heads(tiny_model().base, seed=7), model / "heads", base_model=str(model))
        assert "the weights have changed since" in words(run("validate", made, "--prompts", 2, code=2))
        said = words(run("validate", made, "--prompts", 2, "--heads", model / "heads"))
        assert "These are not the heads that the tree was calibrated with" in said
    finally:
        (model / "heads" / "medusa_lm_head.safetensors").write_bytes(kept)
    assert "These are not the heads" not in words(run("validate", made, "--prompts", 2, "--heads", model / "heads"))
    contents = read_tree(made)
    write_tree(tmp_path / "half.json", replace(contents, provenance={**contents.provenance, "dtype": "bfloat16"}))
    half = run("validate", tmp_path / "half.json", "--prompts", 2, "--max-new-tokens", 8)
    assert "bfloat16" in words(half), "planned for another dtype than profiled in: weights are rounded otherwise"


def validation(**changes):
    contents = Validation(
        point=None, rule="greedy", prompts=20, text=Lossless(20, tree=Partings(0, 640)),
        acceptance=Acceptance(20, EXACT, EXACT, None, Estimate(1.0, 1.0, 1.0)),
        step_latency_ms={"plain": EXACT, "tree": EXACT}, tokens_per_s={"plain": EXACT, "tree": EXACT}, speedup=EXACT,
        device="a device", dtype="bfloat16",
    )  # fmt: skip
    return replace(contents, **changes)


def difference(prompt, gap, **changes):
    return replace(Difference(prompt, 7, 11, 12, 12, gap, 0.03, False), **changes)


def printed(made, v):
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(validation_report(replace(v, point=read_tree(made).operating_points[0])))
    return console.export_text()


def test_the_verdict_is_the_last_line_and_says_why(made):
    assert printed(made, validation()).rstrip().endswith("As predicted.")
    parted = Lossless(
        20, [difference(3, 0.1), difference(5, 0.2, cut=True)], Partings(2, 600), Partings(1, 600), 16, 0.004, "float32"
    )
    text = printed(made, validation(text=parted))
    assert "18 of 20 prompts are token for token the plain text; 1 part at a near tie, 1 otherwise." in text
    assert "up to 0.15 is a tie" in text
    assert text.count("not a tie") == 1
    assert "the distance to a cut" in text
    assert text.rstrip().endswith("Not as predicted: 1 text of 20 left the plain text where there was no tie.")


def test_ties_that_are_too_many_fail(made):
    """Each by itself is a tie; plain decoding hardly parts from itself."""
    ties = [difference(i, 0.02) for i in range(18)]
    parted = validation(text=Lossless(20, ties, Partings(18, 300), Partings(1, 620), 16, 0.004, "float32"))
    assert parted.text.no_ties == 0
    (reason,) = parted.reasons
    assert (
        "60 times in 1,000 tokens, plain decoding itself, in another batch shape, 1.6 times, and rounding explains 4"
        in reason
    )
    assert "and 6 nearer ones" in printed(made, parted)
    for explained in ({"plain": Partings(17, 310)}, {"rounding": 0.06}):
        assert replace(parted, text=replace(parted.text, **explained)).reasons == []


def test_memory_that_runs_out_for_a_larger_batch_takes_smaller_ones(made, monkeypatch):
    from medusa_runtime.errors import InputError
    from medusa_tree.validation import validate as module

    sizes = []
    generate = module.generate

    def cramped(model, prompts, *args, **kwargs):
        sizes.append(len(prompts))
        if len(prompts) > 4:
            raise InputError("out of memory")
        return generate(model, prompts, *args, **kwargs)

    monkeypatch.setattr(module, "generate", cramped)
    model, prompts = tiny_model(), random_prompts(9)
    plain = generate(model, prompts, CandidateTree(), 6).tokens
    spoilt = [[*plain[0][:2], (plain[0][2] + 1) % 48, *plain[0][3:]], *plain[1:]]
    text = module._lossless(
        model, prompts, plain, spoilt, 1, 6, module.GREEDY, list(range(9)), lambda stage, done, total: None
    )
    assert sizes == [9, 8, 4, 4, 1]
    assert (text.batch, text.plain.count, text.tree.count, text.no_ties) == (4, 0, 1, 1)
    assert torch.is_inference_mode_enabled() is False
