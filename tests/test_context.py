"""Positions: none that a pass uses lies behind the last, and RoPE whose frequencies depend on the length stays on one side."""

import pytest
import torch
import transformers
from conftest import BUSHY, SMALL, VOCAB, random_prompts, tiny_base, tiny_heads, trees
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_runtime import InputError, MedusaModel, Typical
from medusa_tree.devices.measure import measure
from medusa_tree.profiling import probe as probing
from medusa_tree.profiling.probe import profile_typical, retake
from medusa_tree.profiling.profile import profile
from medusa_tree.traces.replay import replay

CONTEXT, SWITCH = 64, 40


def randomised(base):
    with torch.no_grad():
        for weight in base.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.25)
    base.generation_config.eos_token_id = None
    return base.eval()


@pytest.fixture(scope="module")
def gpt2() -> MedusaModel:
    """Learned positions, 64 of them: a position more is an IndexError, and a device assert on CUDA."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, vocab_size=VOCAB, tie_word_embeddings=False
    )
    base = randomised(transformers.GPT2LMHeadModel(config))
    return MedusaModel(base, tiny_heads(base), name="gpt2")


def own_text(base, prompt, new):
    """transformers' greedy text by one forward a token, without a cache."""
    text = list(prompt)
    attention = base.config._attn_implementation
    base.set_attn_implementation("eager")
    with torch.no_grad():
        for _ in range(new):
            text.append(int(base(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    base.set_attn_implementation(attention)
    return text[len(prompt) :]


def prompts_of(*lengths, seed=8):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("lengths", [(30,), (30, 17), (17, 30, 1)])
def test_text_to_the_last_position(gpt2, lengths):
    prompts, new = prompts_of(*lengths), CONTEXT - max(lengths)
    want = [own_text(gpt2.base, p, new) for p in prompts]
    assert gpt2.generate(prompts, max_new_tokens=new).tokens == want
    out = gpt2.generate(prompts, tree=BUSHY, max_new_tokens=new)
    assert out.tokens == want
    assert out.acceptance_length > 1.1
    with pytest.raises(InputError, match="exceed the 64 positions of gpt2"):
        gpt2.generate(prompts, tree=BUSHY, max_new_tokens=new + 1)


@settings(max_examples=12)
@given(tree=trees(width=6), lengths=st.lists(st.integers(1, 60), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_any_tree_ends_with_the_context(gpt2, tree, lengths, seed):
    prompts, new = prompts_of(*lengths, seed=seed), CONTEXT - max(lengths)
    assert (
        gpt2.generate(prompts, tree=tree, max_new_tokens=new).tokens
        == gpt2.generate(prompts, max_new_tokens=new).tokens
    )


def test_no_pass_uses_a_position_that_does_not_exist(gpt2):
    seen = []
    handle = gpt2.base.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    gpt2.generate(prompts_of(20, 9), tree=BUSHY, max_new_tokens=CONTEXT - 20)
    handle.remove()
    assert max(seen) == CONTEXT - 1


def test_a_shorter_text_is_the_beginning_of_a_longer_one(gpt2):
    """Under typical acceptance, too, where nodes that a text cannot reach say which of two branches it takes."""
    prompts, rule = prompts_of(20, 9), Typical(0.15, 0.5)
    whole = gpt2.generate(prompts, tree=BUSHY, max_new_tokens=30, rule=rule).tokens
    for new in range(1, 30):
        out = gpt2.generate(prompts, tree=BUSHY, max_new_tokens=new, rule=rule).tokens
        assert out == [row[:new] for row in whole]


def check_replay(model, prompts, trace, new):
    """Replay is exact for the tree that made the text: every step of each held-out sequence."""
    _, own = retake(model, prompts, trace, BUSHY, new).split()
    held = [p for p, h in zip(prompts, trace.held_out, strict=True) if h]
    out = [model.generate([p], BUSHY, new, rule=trace.acceptance) for p in held]
    played = replay(BUSHY, own)
    assert played.steps.tolist() == [len(o.emitted[0]) for o in out]
    assert played.tokens.tolist() == [len(o.tokens[0]) for o in out]


def test_what_plans_go_by_stays_within_the_context_too(gpt2, monkeypatch):
    monkeypatch.setattr(probing, "PROBE", 40)
    monkeypatch.setattr(probing, "TEXT", 10)
    prompts, new = prompts_of(24, 11, 20, 24), CONTEXT - 24 - gpt2.num_heads
    rule = Typical(0.15, 0.5)
    check_replay(
        gpt2, prompts, profile_typical(gpt2, prompts, [False, True, True, False], rule, new, candidates=8), new
    )
    profile(gpt2, prompts, [False] * 4, new)
    with pytest.raises(InputError, match="exceed the 64 positions"):
        profile(gpt2, prompts, [False] * 4, new + 1)
    measure(gpt2, 12, batches=(1, 2), contexts=(CONTEXT - 2,), rounds=1)


@pytest.fixture(scope="module")
def longrope() -> MedusaModel:
    """Frequencies that are others behind 40 tokens."""
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": SWITCH, "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 5.0, 9.0, 14.0],
    }  # fmt: skip
    config = transformers.Phi3Config(
        **{**SMALL, "max_position_embeddings": 160},
        num_key_value_heads=2,
        rope_parameters=rope,
        original_max_position_embeddings=SWITCH,
    )
    base = randomised(transformers.Phi3ForCausalLM(config))
    return MedusaModel(base, tiny_heads(base), name="phi3")


@pytest.mark.parametrize(("lengths", "new"), [((5, 22), SWITCH - 22), ((41, 60), 20)])
def test_either_side_of_a_switch_is_plain_text(longrope, lengths, new):
    prompts = prompts_of(*lengths)
    want = [own_text(longrope.base, p, new) for p in prompts]
    for rows, right in ((prompts, want), (prompts[:1], want[:1]), (prompts[1:], want[1:])):
        assert longrope.generate(rows, max_new_tokens=new).tokens == right
        assert longrope.generate(rows, tree=BUSHY, max_new_tokens=new).tokens == right


@pytest.mark.parametrize(("lengths", "new"), [((22,), 19), ((5, 41), 10), ((40,), 1)])
def test_a_request_across_the_switch_is_refused(longrope, lengths, new):
    with pytest.raises(
        InputError, match=r"lie on both sides of 40 tokens, behind which phi3 takes other RoPE frequencies"
    ):
        longrope.generate(prompts_of(*lengths), tree=BUSHY, max_new_tokens=new)
    with pytest.raises(InputError, match="lie on both sides of 40 tokens"):
        profile(longrope, prompts_of(*lengths), [False] * len(lengths), new)


@pytest.mark.parametrize(("lengths", "new"), [((5, 12), SWITCH - 12 - 4), ((45, 60), 24)])
def test_probes_stay_on_their_side(longrope, lengths, new, monkeypatch):
    monkeypatch.setattr(probing, "PROBE", 40)
    monkeypatch.setattr(probing, "TEXT", 10)
    prompts = prompts_of(*lengths, *lengths)
    far = []
    handle = longrope.base.register_forward_pre_hook(
        lambda module, args, kwargs: far.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    trace = profile_typical(longrope, prompts, [False, False, True, True], Typical(0.02, 0.5), new, candidates=8)
    check_replay(longrope, prompts, trace, new)
    handle.remove()
    assert (max(far) == SWITCH - 1) if max(lengths) < SWITCH else (min(far) >= SWITCH)


def test_dynamic_rope_begins_where_the_context_ends():
    base = tiny_base("llama")
    config = base.config
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config.max_position_embeddings = CONTEXT
    torch.manual_seed(0)
    base = randomised(transformers.LlamaForCausalLM(config))
    model, prompts = MedusaModel(base, tiny_heads(base)), random_prompts(3, seed=2)
    new = CONTEXT - max(map(len, prompts))
    want = [own_text(base, p, new) for p in prompts]
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=new).tokens == want
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=new).tokens == want
