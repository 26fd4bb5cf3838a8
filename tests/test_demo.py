"""The bundled demo, end to end: lossless, exact in replay, near ties only in bfloat16."""

import json

import numpy as np
import pytest
import torch
from test_cli import run
from transformers import AutoModelForCausalLM

from medusa_runtime import MedusaModel, Sampling, Typical, generate
from medusa_runtime.treefile import read_tree
from medusa_tree.bundled import data_path, resolve_corpus, resolve_model
from medusa_tree.planning.compare import published_tree
from medusa_tree.planning.offers import estimate, full_order
from medusa_tree.profiling.corpus import hold_out, read_corpus
from medusa_tree.profiling.probe import retake, take_trace
from medusa_tree.profiling.profile import profile
from medusa_tree.profiling.tokens import tokenize
from medusa_tree.traces.probetrace import ProbeTrace
from medusa_tree.traces.replay import replay
from medusa_tree.validation.reference import Reference
from medusa_tree.validation.ties import TIE, judge

PROMPTS, NEW = 64, 128


@pytest.fixture(scope="module")
def held_out_prompts(demo):
    texts = read_corpus(resolve_corpus("demo"))
    held = hold_out(texts, 0.25, seed=0)
    rows = tokenize([t for t, h in zip(texts, held, strict=True) if h], demo.tokenizer, 512)
    assert len(rows) >= PROMPTS
    return rows[:PROMPTS]


@pytest.fixture(scope="module")
def trace(demo, held_out_prompts):
    return profile(demo, held_out_prompts, [True] * PROMPTS, max_new_tokens=NEW, batch_size=64)


@pytest.fixture(scope="module")
def tree():
    return published_tree("mc_sim_7b_63").cut(24)


@pytest.fixture(scope="module")
def plain_text(held_out_prompts):
    """transformers' own greedy text in float32, the end token repeated."""
    model, _ = resolve_model("demo", None)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    width = max(map(len, held_out_prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in held_out_prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in held_out_prompts])
    out = base.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return out[:, width:].tolist()


@pytest.mark.parametrize("batch", [1, 4])
def test_it_is_lossless_against_transformers(demo, held_out_prompts, tree, trace, plain_text, batch):
    """64 held-out prompts of 128 new tokens in float32; and replay predicts every step of them."""
    tokens, steps = [], []
    for i in range(0, PROMPTS, batch):
        got = demo.generate(held_out_prompts[i : i + batch], tree=tree, max_new_tokens=NEW)
        tokens += got.tokens
        steps += map(len, got.emitted)
    assert [
        t + row[len(t) :] for t, row in zip(tokens, plain_text, strict=True)
    ] == plain_text  # a row goes on with padding after its end
    assert steps == replay(tree, trace).steps.tolist()


def test_the_heads_are_worth_having(trace, tree):
    """The demo is trained: a tree of 24 nodes gives well over two tokens a step on held-out prompts."""
    assert replay(tree, trace).acceptance_length > 2.5
    top1 = (trace.ranks == 0).mean(axis=0)
    assert (np.diff(top1) < 0).all(), "each head looks further ahead and must find it harder"


def test_bfloat16_parts_from_plain_text_at_near_ties_only(held_out_prompts, tree):
    model, heads = resolve_model("demo", None)
    half = MedusaModel.from_pretrained(model, heads, dtype="bfloat16", device="cpu")
    prompts = held_out_prompts[:16]
    plain = [half.generate([p], max_new_tokens=64).tokens[0] for p in prompts]
    fast = [half.generate([p], tree=tree, max_new_tokens=64).tokens[0] for p in prompts]
    reference = Reference(half)
    parted = judge(reference, prompts, plain, fast).differences
    print([(d.gap, d.noise) for d in parted])
    assert all(d.near_tie for d in parted), parted
    assert len(parted) < len(prompts) // 2
    other = [[*text[:9], (text[9] + 1) % 3072, *text[10:]] for text in plain]
    spoilt = judge(reference, prompts, plain, other).differences
    assert sum(d.near_tie for d in spoilt) == 0, "any other token is no tie"
    noise = spoilt[0].noise
    gaps = [
        reference.logits([*p, *t[:-1]], len(t))[1].topk(2).values.diff().abs()
        for p, t in zip(prompts, plain, strict=True)
    ]
    assert float((torch.cat(gaps) <= TIE * noise).float().mean()) < 0.06, "few places could be called a tie"


def test_calibrate_then_validate(tmp_path, monkeypatch):
    """The README's first command on some of the prompts, with fewer rounds of timing, then its proof."""
    path = tmp_path / "tree.json"
    monkeypatch.setattr("medusa_tree.devices.measure.ROUNDS", 4)
    run("calibrate", "--model", "demo", "--prompts", 48, "--max-new-tokens", 64, "--dtype", "float32", "-o", path)
    contents = read_tree(path)
    assert contents.operating_points[0].nodes > 0
    result = json.loads(run("validate", path, "--prompts", 12, "--json").stdout)
    assert result["lossless"]["identical"] == result["lossless"]["prompts"]
    low, high = result["acceptance_length"]["predicted_interval"]
    assert low <= result["acceptance_length"]["measured"] <= high


@pytest.mark.parametrize("rule", [Sampling(0.9, top_p=0.95, seed=5), Typical()], ids=str)
def test_acceptance_is_as_predicted_under_each_rule(demo, held_out_prompts, rule, monkeypatch):
    """On held-out prompts, within 2%, the tree chosen on others. (Greedy acceptance is held to the step above.)"""
    new, count = 40, 12
    monkeypatch.setattr("medusa_tree.profiling.probe.PROBE", 64)
    rows = held_out_prompts[:count]
    trace = take_trace(demo, rows, [i % 2 == 0 for i in range(count)], new, 10, rule)
    tree = full_order(estimate(trace.split()[0]), 16, trace.heads).cut(16)
    if isinstance(trace, ProbeTrace):
        trace = retake(demo, rows, trace, tree, new)
    held = range(0, count, 2)
    emitted = [generate(demo, [rows[i]], tree, new, rule=rule, streams=[i]).emitted[0] for i in held]
    measured = sum(map(sum, emitted)) / sum(map(len, emitted))
    played = replay(tree, trace.split()[1])
    assert measured == pytest.approx(played.acceptance_length, rel=0.02)
    assert measured > 1.4


def test_it_is_small_and_safe():
    files = [p for folder in ("model", "heads") for p in data_path("demo", folder).iterdir()]
    assert sum(p.stat().st_size for p in files) < 40e6
    assert {p.suffix for p in files} <= {".json", ".safetensors"}
    figures = json.loads(data_path("demo", "heads", "training.json").read_text())
    assert len(figures["after"]["head_top_k"]) == 4
    assert figures["after"]["base_loss"] == figures["before"]["base_loss"], "its backbone is the one that was there"
