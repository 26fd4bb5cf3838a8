"""Profile: ranks against one token at a time, and replay against the runtime, step for step."""

import numpy as np
import pytest
import torch
from conftest import BUSHY, random_prompts, tiny_model

from medusa_runtime import CandidateTree, InputError
from medusa_tree.profiling.profile import profile
from medusa_tree.traces.replay import replay
from medusa_tree.traces.trace import MISS

TREES = [CandidateTree(), CandidateTree.chain(4), BUSHY, CandidateTree(tuple((r,) for r in range(10)))]


def naive_ranks(model, prompt, length, k_max):
    """One forward over the whole text without a cache; each head's top-k looked up by hand."""
    ahead = model.num_heads
    tokens = model.generate([prompt], max_new_tokens=length + ahead, eos_token_id=[]).tokens[0]
    eager = model.base
    hidden = []
    eager.get_output_embeddings().register_forward_pre_hook(lambda m, a: hidden.append(a[0]))
    eager.set_attn_implementation("sdpa")
    with torch.no_grad():
        eager(torch.tensor([prompt + tokens]), use_cache=False)
    eager.set_attn_implementation("medusa_tree")
    states = hidden[-1][0, len(prompt) - 1 :]
    ranks = np.full((length, ahead), MISS)
    for p in range(length):
        for k in range(1, ahead + 1):
            top = model.heads(states[p : p + 1])[k - 1, 0].topk(k_max).indices.tolist()
            if tokens[p + k] in top:
                ranks[p, k - 1] = top.index(tokens[p + k])
    return ranks


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_ranks_are_those_of_one_token_at_a_time(family):
    model, prompts = tiny_model(family), random_prompts(3)
    trace = profile(model, prompts, [False, True, False], max_new_tokens=20, candidates=10, batch_size=2)
    for prompt, ranks in zip(prompts, trace.sequences(), strict=True):
        assert np.array_equal(ranks, naive_ranks(model, prompt, 20, 10))


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt_neox"])
def profiled(request):
    """A model, twelve prompts, and the trace of 48 tokens behind each."""
    model, prompts = tiny_model(request.param), random_prompts(12, seed=7)
    return model, prompts, profile(model, prompts, [False] * 12, max_new_tokens=48)


@pytest.mark.parametrize("tree", TREES, ids=lambda t: f"{t.nodes}-nodes")
def test_replay_is_the_runtime_step_for_step(profiled, tree):
    model, prompts, trace = profiled
    played = replay(tree, trace)
    for batch in (1, 4):
        emitted = [
            row
            for i in range(0, 12, batch)
            for row in model.generate(prompts[i : i + batch], tree=tree, max_new_tokens=48).emitted
        ]
        assert [len(row) for row in emitted] == played.steps.tolist()
        assert [sum(row) for row in emitted] == played.tokens.tolist()


def test_replay_is_exact_where_sequences_end_early():
    model, prompts = tiny_model(), random_prompts(12, seed=8)
    model.base.generation_config.eos_token_id = 7
    trace = profile(model, prompts, [False] * 12, max_new_tokens=60)
    assert (np.diff(trace.starts) < 60).sum() > 0
    out = model.generate(prompts, tree=BUSHY, max_new_tokens=60)
    played = replay(BUSHY, trace)
    assert [len(row) for row in out.emitted] == played.steps.tolist()
    assert list(map(len, out.tokens)) == played.tokens.tolist()


def test_batches_do_not_change_the_trace():
    model, prompts = tiny_model(), random_prompts(9)
    a, b = (profile(model, prompts, [True] * 9, max_new_tokens=16, batch_size=n) for n in (1, 9))
    assert np.array_equal(a.ranks, b.ranks)


def test_too_long_a_text_is_refused():
    with pytest.raises(InputError, match="exceed the 512 positions"):
        profile(tiny_model(), [[1] * 300], [True], max_new_tokens=300)
