"""Acceptance rules against their definitions: exact distributions, one seed one text, and logits that are no numbers."""

import itertools

import numpy as np
import pytest
import torch
import transformers
from conftest import BUSHY, random_prompts, tiny_base, tiny_heads, tiny_model, trees
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medusa_runtime import CandidateTree, Greedy, InputError, MedusaModel, Sampling, Typical, generate, stream
from medusa_runtime.acceptance.accept import accept, warpers
from medusa_runtime.acceptance.noise import gumbel, uniform
from medusa_runtime.acceptance.rules import make_rule, read_rule, rule_json
from medusa_runtime.buffers import TreeBuffers
from medusa_tree.profiling.profile import profile

LETTERS, LENGTH = 4, 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def letters():
    """A random model of four tokens, with heads, and what it says behind every text of up to LENGTH of them: 64 texts in
    all, so that every text's probability can be written down."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=LETTERS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for p in base.parameters():
            if p.ndim == 2:
                p.normal_(std=0.4)
    texts = list(itertools.product(range(LETTERS), repeat=LENGTH))
    prompt = [1, 3, 2]
    with torch.no_grad():
        logits = base(torch.tensor([[*prompt, *t] for t in texts])).logits[:, len(prompt) - 1 : -1].double().numpy()
    return MedusaModel(base, tiny_heads(base, heads=2), name="letters"), prompt, texts, logits


def probabilities(logits, rule):
    """(..., V), by the definitions: temperature, then top-k, the smallest set that holds top-p, min-p."""
    p = np.exp(logits / rule.temperature)
    p /= p.sum(axis=-1, keepdims=True)
    for row in p.reshape(-1, p.shape[-1]):
        order = np.argsort(-row)
        if rule.top_k:
            row[order[rule.top_k :]] = 0
            row /= row.sum()
        below = np.cumsum(row[order]) - row[order]
        row[order[below >= rule.top_p]] = 0
        row /= row.sum()
        row[row < rule.min_p * row.max()] = 0
        row /= row.sum()
    return p


def exact(letters, rule):
    """(64,) the probability of each text."""
    _, _, texts, logits = letters
    p = probabilities(logits, rule)
    return np.prod([p[:, i][np.arange(len(texts)), [t[i] for t in texts]] for i in range(LENGTH)], axis=0)


def counted(letters, rule, count, batch, tree):
    """(64,) how often each text came, and the acceptance length."""
    model, prompt, texts, _ = letters
    seen, steps = dict.fromkeys(texts, 0), 0
    for first in range(0, count, batch):
        out = generate(model, [prompt] * batch, tree, LENGTH, rule=rule, streams=range(first, first + batch))
        for text in out.tokens:
            seen[tuple(text)] += 1
        steps += sum(map(len, out.emitted))
    return np.array(list(seen.values())), count * LENGTH / steps


def p_value(counts, p):
    """Chi-square of the counts against p, texts that are rarer than five in all pooled."""
    assert counts[p == 0].sum() == 0, "a text came that cannot come"
    expected = p * counts.sum()
    order = np.argsort(expected)
    rare = np.cumsum(expected[order]) < 5
    rare[: int(rare.sum()) + 1] = True
    merged = order[rare]
    keep = np.setdiff1d(np.arange(len(p)), merged)
    observed = np.append(counts[keep], counts[merged].sum())
    return stats.chisquare(observed, np.append(expected[keep], expected[merged].sum())).pvalue


TREE = CandidateTree(((0,), (1,), (0, 0), (2,), (1, 0), (0, 1)))


@pytest.mark.parametrize(
    ("rule", "count", "batch"),
    [
        (Sampling(1.0, seed=1), 400, 1), (Sampling(0.6, seed=2), 400, 1), (Sampling(1.8, seed=3), 400, 1),
        (Sampling(1.0, seed=4), 1600, 4), (Sampling(0.6, seed=5), 1200, 4), (Sampling(1.8, seed=6), 1200, 4),
        (Sampling(1.0, top_p=0.8, seed=7), 2400, 16), (Sampling(1.3, top_k=3, seed=8), 2400, 16), (Sampling(1.0, min_p=0.3, seed=9), 2400, 16),
    ],
    ids=str,
)  # fmt: skip
def test_sampling_with_a_tree_is_the_models_own_distribution(letters, rule, count, batch):
    counts, length = counted(letters, rule, count, batch, TREE)
    assert length > 1.15, "the tree was hardly ever accepted: the test would show little"
    assert p_value(counts, exact(letters, rule)) > 1e-3
    other = Sampling(rule.temperature * 0.5)
    assert p_value(counts, exact(letters, other)) < 1e-3, "the test could not tell another distribution"


def test_warpers_are_those_of_transformers_generate():
    base = tiny_base("llama")
    rule = Sampling(0.7, top_k=12, top_p=0.9, min_p=0.03)
    ids = torch.tensor(random_prompts(1))
    out = base.generate(
        ids, do_sample=True, temperature=0.7, top_k=12, top_p=0.9, min_p=0.03, max_new_tokens=8,
        output_scores=True, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    for raw, processed in zip(out.logits, out.scores, strict=True):
        torch.testing.assert_close(warpers(rule)(None, raw.float()), processed)


@settings(max_examples=10)
@given(trees(width=6), st.integers(0, 2**40), st.sampled_from([0.5, 1.0, 2.0]))
def test_one_seed_is_one_text_whatever_the_tree_and_the_batch(tree, seed, temperature):
    model, prompts = tiny_model(), random_prompts(3, seed=seed % 7)
    rule = Sampling(temperature, top_p=0.95, seed=seed)
    plain = model.generate(prompts, max_new_tokens=20, rule=rule).tokens
    assert model.generate(prompts, tree=tree, max_new_tokens=20, rule=rule).tokens == plain
    alone = [generate(model, [p], tree, 20, rule=rule, streams=[i]).tokens[0] for i, p in enumerate(prompts)]
    assert alone == plain
    if temperature >= 1:
        assert model.generate(prompts, max_new_tokens=20, rule=Sampling(temperature, seed=seed + 1)).tokens != plain


@pytest.mark.parametrize("rule", [Sampling(0.0), Sampling(1e-12, seed=5), Typical(temperature=0.0)])
def test_temperature_zero_is_greedy(rule):
    model, prompts = tiny_model(), random_prompts(4)
    greedy = model.generate(prompts, tree=BUSHY, max_new_tokens=40)
    out = model.generate(prompts, tree=BUSHY, max_new_tokens=40, rule=rule)
    assert (out.tokens, out.emitted) == (greedy.tokens, greedy.emitted)


def test_noise_is_splitmix_by_its_definition():
    mask = (1 << 64) - 1

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden, seed = 0x9E3779B97F4A7C15, 77
    drawn = uniform(seed, torch.tensor([5, 6]), torch.tensor([[0, 9], [3, 4]]), 3)
    for b, stream_ in enumerate([5, 6]):
        for at, place in enumerate([[0, 9], [3, 4]][b]):
            key = mix((stream_ * golden + seed * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & mask)
            key = mix((key + place * golden) & mask)
            expected = [(mix((key + (i + 1) * golden) & mask) >> 1) * 2.0**-63 for i in range(3)]
            assert drawn[b, at].tolist() == pytest.approx(expected, rel=1e-6)


def test_noise_is_uniform_and_independent_from_place_to_place():
    drawn = uniform(3, torch.arange(4), torch.arange(8)[None].expand(4, 8), 5000).double()
    assert 0 < drawn.min() < drawn.max() < 1
    assert stats.kstest(drawn.flatten().numpy(), "uniform").pvalue > 1e-3
    rows = np.corrcoef(drawn.reshape(32, -1).numpy())
    assert np.abs(rows - np.eye(32)).max() < 4.5 / np.sqrt(5000)
    noise = gumbel(3, torch.arange(4), torch.arange(8)[None].expand(4, 8), 5000)
    assert stats.kstest(noise.flatten().double().numpy(), "gumbel_r").pvalue > 1e-3


@settings(max_examples=60)
@given(
    trees(max_nodes=14),
    st.integers(0, 2**31),
    st.sampled_from([0.05, 0.09, 0.3]),
    st.sampled_from([0.2, 0.9]),
    st.sampled_from([0.7, 1.0]),
)
def test_typical_acceptance_is_its_definition(tree, seed, epsilon, delta, temperature):
    """Node by node, as the paper has it: the longest path whose tokens all pass, the likeliest of several."""
    rng = np.random.default_rng(seed)
    m, vocabulary = tree.nodes + 1, 8
    logits = rng.normal(scale=2.5, size=(2, m, vocabulary))
    logits[:, :, 6] = -np.inf  # tokens that the model rules out
    tokens = np.zeros((2, m), dtype=np.int64)
    tokens[:, 1:] = tree.ranks[1:]
    buffers, none = TreeBuffers.of(tree, CPU), torch.zeros(2, dtype=torch.int64)
    rule = Typical(epsilon, delta, temperature)
    best, root, sound, _ = accept(rule, torch.tensor(logits).float(), torch.tensor(tokens), buffers, none, none)
    assert sound.all()
    for b in range(2):
        p = np.exp(logits[b] / temperature)
        p /= p.sum(axis=1, keepdims=True)
        entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=1)
        found = {0: 0.0}
        for i in range(1, m):
            up = int(tree.parents[i])
            if up in found and p[up, tokens[b, i]] > min(epsilon, delta * np.exp(-entropy[up])):
                found[i] = found[up] + np.log(p[up, tokens[b, i]])
        deepest = max(tree.depths[i] for i in found)
        assert tree.depths[best[b]] == deepest
        assert found[int(best[b])] == pytest.approx(
            max(v for i, v in found.items() if tree.depths[i] == deepest), abs=1e-5
        )
        assert root[b] == logits[b, best[b]].argmax()


def test_typical_acceptance_keeps_what_greedy_would_and_more():
    model, prompts = tiny_model(), random_prompts(6)
    greedy = model.generate(prompts, tree=BUSHY, max_new_tokens=60)
    out = model.generate(prompts, tree=BUSHY, max_new_tokens=60, rule=Typical())
    assert out.acceptance_length > greedy.acceptance_length
    assert model.generate(prompts, max_new_tokens=60, rule=Typical()).tokens == greedy.tokens, "plainly it is greedy"
    strict = model.generate(prompts, tree=BUSHY, max_new_tokens=60, rule=Typical(0.999, 0.999))
    assert strict.acceptance_length < out.acceptance_length


@pytest.mark.parametrize("rule", [Greedy(), Sampling(0.8), Typical()], ids=lambda r: r.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_no_path_goes_through_logits_that_are_no_numbers(rule, bad):
    tree = CandidateTree(((0,), (1,), (0, 0), (0, 0, 0)))
    logits = torch.full((2, 5, 6), -20.0)
    logits[:, :, 0] = 20.0
    tokens, none = torch.tensor([[0, 0, 1, 0, 0]] * 2), torch.zeros(2, dtype=torch.int64)
    logits[1, 3] = bad
    best, _, sound, _ = accept(rule, logits, tokens, TreeBuffers.of(tree, CPU), none, none)
    assert best.tolist() == [4, 3], "the path ends where there is no next token"
    assert sound.tolist() == [True, False]
    logits[1, 3], logits[1, 2] = logits[0, 3], bad
    assert accept(rule, logits, tokens, TreeBuffers.of(tree, CPU), none, none)[2].all(), "off the path it does no harm"


@pytest.mark.parametrize("rule", [Greedy(), Sampling(), Typical()], ids=lambda r: r.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("passes", [0, 3])
def test_numbers_that_overflow_stop_with_an_error(rule, bad, passes):
    """In the prompt, and after some steps."""
    model, calls = tiny_model(), []

    def poison(module, args, output):
        calls.append(1)
        return torch.full_like(output, bad) if len(calls) > passes else output

    model.base.get_output_embeddings().register_forward_hook(poison)
    with pytest.raises(InputError, match="tiny llama: the model's logits are NaN or infinite"):
        list(stream(model, random_prompts(2), BUSHY, 40, rule=rule))
    assert len(calls) <= passes + 2
    if not isinstance(rule, Typical):
        calls.clear()
        with pytest.raises(InputError, match="NaN or infinite"):
            profile(model, random_prompts(2), [False, True], 10, rule=rule)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("sample", {"temperature": -0.1}, "temperature -0.1 is out of range"),
        ("sample", {"temperature": float("inf")}, "temperature inf"), ("sample", {"temperature": float("nan")}, "temperature nan"),
        ("sample", {"temperature": "hot"}, "temperature 'hot'"), ("sample", {"top_p": 0.0}, "top-p 0.0"), ("sample", {"top_p": 1.1}, "top-p 1.1"),
        ("sample", {"top_k": 0}, "top-k 0"), ("sample", {"top_k": 2.5}, "top-k 2.5"), ("sample", {"min_p": -1.0}, "min-p -1.0"),
        ("sample", {"min_p": 1.5}, "min-p 1.5"), ("sample", {"seed": 1.5}, "seed 1.5"), ("typical", {"epsilon": 0.0}, "epsilon 0.0"),
        ("typical", {"epsilon": 1.0}, "epsilon 1.0"), ("typical", {"delta": 0.0}, "delta 0.0"), ("typical", {"delta": float("nan")}, "delta nan"),
        ("typical", {"temperature": -1}, "temperature -1"), ("typical", {"top_p": 0.5}, "top-p is not for typical"),
        ("greedy", {"temperature": 0.5}, "temperature is not for greedy"), ("nucleus", {}, "rules: greedy, sample, typical"),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused_by_name(name, parameters, words):
    with pytest.raises(InputError, match=words):
        make_rule(name, **parameters)


@pytest.mark.parametrize(
    "rule", [Greedy(), Sampling(0.7, 40, 0.9, 0.05, 11), Typical(0.2, 0.4, 0.9)], ids=lambda r: r.name
)
def test_a_rule_comes_back_from_json(rule):
    assert read_rule(rule_json(rule), "here") == rule
    with pytest.raises(InputError, match=r'tree.json: field "acceptance": delta 3 is out of range'):
        read_rule({"rule": "typical", "delta": 3}, 'tree.json: field "acceptance"')
    with pytest.raises(InputError, match='an object with "rule"'):
        read_rule("greedy", "here")


@pytest.mark.parametrize(
    "rule", [Greedy(), Sampling(0.8, top_k=5, top_p=0.9, min_p=0.1), Typical()], ids=lambda r: r.name
)
def test_nothing_is_read_on_the_host(rule):
    """On tensors without values, where any look at one raises: what a CUDA graph needs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.inference_mode():
        tree = TreeBuffers.of(BUSHY, CPU)
        m = BUSHY.nodes + 1
        none = torch.zeros(3, dtype=torch.int64)
        best, root, sound, _ = accept(
            rule, torch.randn(3, m, 40), torch.zeros(3, m, dtype=torch.int64), tree, none, none
        )
        assert [x.shape for x in (best, root, sound)] == [(3,)] * 3
