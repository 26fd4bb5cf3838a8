"""The runtime against transformers' own greedy generate, on tiny models of several families."""

import numpy as np
import pytest
import torch
import transformers
from conftest import BUSHY, FAMILIES, HEADS, VOCAB, random_prompts, tiny_base, tiny_heads, tiny_model, trees
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_runtime import CandidateTree, InputError, MedusaModel, Sampling, stream
from medusa_runtime.acceptance.accept import accept
from medusa_runtime.acceptance.rules import GREEDY
from medusa_runtime.attention import AttentionContext, TreeMask
from medusa_runtime.buffers import BookBuffers, TreeBuffers
from medusa_runtime.cache.cache import TreeCache
from medusa_runtime.decode import prefill
from medusa_runtime.request import rule_for
from medusa_runtime.step import step
from medusa_runtime.treefile import TreeFile

NEW = 128


def reference(base, prompts, new=NEW):
    """transformers' greedy text, in one left-padded batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=base.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=base.device)
    out = base.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    return out[:, width:].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_decoding_is_lossless(family):
    """64 prompts of 128 new tokens, batch 1 and 4, token for token."""
    prompts = random_prompts(64)
    expected = reference(tiny_base(family), prompts)
    assert np.mean([len(set(row)) for row in expected]) > 8, "the reference text collapsed: the test would show little"
    model = tiny_model(family)
    for batch in (1, 4):
        lengths = []
        for i in range(0, 64, batch):
            out = model.generate(prompts[i : i + batch], tree=BUSHY, max_new_tokens=NEW)
            assert out.tokens == expected[i : i + batch]
            lengths.append(out.acceptance_length)
        assert np.mean(lengths) > 1.1, "the tree was hardly ever accepted: the test would show little"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_tree_is_plain_decoding(family):
    prompts = random_prompts(5, seed=1)
    out = tiny_model(family).generate(prompts, max_new_tokens=40)
    assert out.tokens == reference(tiny_base(family), prompts, 40)
    assert out.acceptance_length == 1.0
    assert out.emitted == [[1] * 40] * 5


@settings(max_examples=12)
@given(trees(width=6), st.integers(1, 3))
def test_any_tree_gives_the_same_text(tree, batch):
    prompts = random_prompts(batch, seed=2)
    model = tiny_model()
    assert (
        model.generate(prompts, tree=tree, max_new_tokens=24).tokens
        == model.generate(prompts, max_new_tokens=24).tokens
    )


def test_the_end_token_ends_a_sequence_and_only_that():
    prompts = random_prompts(4, seed=3)
    model = tiny_model()
    full = model.generate(prompts, max_new_tokens=60).tokens
    stop = full[0][10]
    out = model.generate(prompts, tree=BUSHY, max_new_tokens=60, eos_token_id=stop)
    for got, whole in zip(out.tokens, full, strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert got == whole[:end]
    assert [sum(row) for row in out.emitted] == list(map(len, out.tokens))


def test_the_end_token_of_the_models_own_config_is_honoured():
    model = tiny_model()
    prompt = random_prompts(1, seed=4)
    full = model.generate(prompt, max_new_tokens=30).tokens[0]
    model.base.generation_config.eos_token_id = [full[7], VOCAB - 1]
    stop = min(full.index(t) for t in (full[7], VOCAB - 1) if t in full)
    assert model.generate(prompt, tree=BUSHY, max_new_tokens=30).tokens[0] == full[: stop + 1]
    assert model.generate(prompt, tree=BUSHY, max_new_tokens=30, eos_token_id=[]).tokens[0] == full


@pytest.mark.parametrize("wrong", ["5", [None, 3], 1.5, -1, [2, "x"], [[2]], 10**30, True])
def test_end_tokens_that_are_none_are_refused(wrong):
    model = tiny_model()
    with pytest.raises(InputError, match=r"^eos_token_id.*whole numbers, 0 or more"):
        model.generate(random_prompts(1), eos_token_id=wrong)
    model.base.generation_config.eos_token_id = wrong
    with pytest.raises(
        InputError, match=r"^tiny llama: generation_config\.json, eos_token_id.*whole numbers, 0 or more"
    ):
        model.generate(random_prompts(1))


@pytest.mark.parametrize("new", [1, 2, 3, 7])
def test_length_is_kept_to_the_token(new):
    out = tiny_model().generate(random_prompts(3), tree=BUSHY, max_new_tokens=new)
    assert [len(t) for t in out.tokens] == [new] * 3


def test_streaming_adds_up_to_the_text():
    model, prompts = tiny_model(), random_prompts(2, seed=5)
    rows = [[], []]
    for added in stream(model, prompts, BUSHY, 30):
        for row, new in zip(rows, added, strict=True):
            row += new
    assert rows == model.generate(prompts, tree=BUSHY, max_new_tokens=30).tokens


def test_padded_tensors_and_lists_are_the_same_prompts():
    model = tiny_model()
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    left = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert (
        model.generate(left, attention_mask=mask, tree=BUSHY, max_new_tokens=12).tokens
        == model.generate(prompts, tree=BUSHY, max_new_tokens=12).tokens
    )
    assert (
        model.generate(left.tolist(), attention_mask=mask.tolist(), tree=BUSHY, max_new_tokens=12).tokens
        == model.generate(prompts, tree=BUSHY, max_new_tokens=12).tokens
    )
    with pytest.raises(InputError, match=r"attention_mask has rows of \[5\] entries, input_ids of \[5, 5\]"):
        model.generate(left, attention_mask=mask[:1])


def test_sampled_texts_are_the_same_only_where_that_is_asked_for():
    model, prompt = tiny_model(), random_prompts(1)

    def texts(**how):
        return {tuple(model.generate(prompt, tree=BUSHY, max_new_tokens=24, **how).tokens[0]) for _ in range(4)}

    assert len(texts(rule=Sampling(1.5))) == 4
    assert len(texts(rule=Sampling(1.5, seed=0))) == 1
    assert len(texts(rule=Sampling(1.5), streams=[7])) == 1
    assert texts(rule=Sampling(1.5, seed=1), streams=[7]) != texts(rule=Sampling(1.5, seed=1), streams=[8])
    calibrated = TreeFile((), (), 1, 1, (), (), acceptance=Sampling(1.5, seed=3))
    assert rule_for(calibrated, None) == Sampling(1.5), "a calibration's seed is of its own text"


def test_heads_are_evaluated_once_a_sequence_a_step_and_only_those_the_tree_uses():
    model, seen = tiny_model(), []
    model.heads.register_forward_pre_hook(lambda module, args: seen.append((args[0].shape[0], args[1])))
    out = model.generate(random_prompts(3), tree=BUSHY.cut(5, 2), max_new_tokens=10)
    assert seen == [(3, 2)] * max(map(len, out.emitted))


def test_the_cache_is_allocated_once_and_compacted_in_place():
    model, prompts = tiny_model(), random_prompts(2, seed=6)
    buffers = BookBuffers.of(BUSHY, torch.device("cpu"))
    state = prefill(model, prompts, 120)
    places = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in state.cache.layers]
    for _ in range(12):
        step(model, state, buffers)
    lengths = state.cache.slots.lengths.tolist()
    assert [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in state.cache.layers] == places
    # The compacted cache is the one that plain decoding of the same text would have made.
    for b, prompt in enumerate(prompts):
        text = prompt + model.generate([prompt], max_new_tokens=60).tokens[0]
        n = lengths[b]
        fresh = prefill(model, [text[:n]], 80)
        for kept, made in zip(state.cache.layers, fresh.cache.layers, strict=True):
            torch.testing.assert_close(kept.keys[b, :, :n], made.keys[0, :, :n], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(kept.values[b, :, :n], made.values[0, :, :n], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_static_cache_decodes_the_same(family, count):
    model, prompts = tiny_model(family), random_prompts(count, seed=9)
    buffers = BookBuffers.of(BUSHY, torch.device("cpu"))
    exact, static = (prefill(model, prompts, 150, static=s) for s in (False, True))
    for _ in range(15):
        (a, _, _), (b, _, _) = step(model, exact, buffers), step(model, static, buffers)
        assert torch.equal(a, b)


@given(trees(max_nodes=16), st.lists(st.integers(0, 5), min_size=1, max_size=3), st.data())
def test_compaction_keeps_the_accepted_rows(tree, lengths, data):
    batch, capacity = len(lengths), 32
    cache = TreeCache(2, capacity, batch, torch.device("cpu"))
    for layer in cache.layers:
        rows = torch.randn(batch, 2, 1, 4)
        layer.update(rows, rows)
        layer.keys.normal_()
        layer.values.normal_()
    cache.slots.set_lengths(lengths)
    before = [layer.keys.clone() for layer in cache.layers]
    best = torch.tensor([data.draw(st.integers(0, tree.nodes)) for _ in lengths])
    cache.keep(torch.as_tensor(tree.retrieval)[best], torch.as_tensor(tree.depths)[best])
    for layer, old in zip(cache.layers, before, strict=True):
        for b, n in enumerate(lengths):
            path = tree.retrieval[best[b]][: tree.depths[best[b]] + 1]
            assert torch.equal(layer.keys[b, :, :n], old[b, :, :n])
            assert torch.equal(layer.keys[b, :, n : n + len(path)], old[b, :, n + torch.as_tensor(path)])


@given(trees(), st.integers(0, 2**31))
def test_greedy_acceptance_finds_the_deepest_agreeing_node(tree, seed):
    generator = torch.Generator().manual_seed(seed)
    m = tree.nodes + 1
    predicted = torch.randint(0, 3, (2, m), generator=generator)
    tokens = torch.zeros(2, m, dtype=torch.int64)
    tokens[:, 1:] = torch.as_tensor(tree.ranks[1:])  # siblings differ, as a head's candidates do
    logits = torch.nn.functional.one_hot(predicted, 4).float()
    buffers, none = TreeBuffers.of(tree, torch.device("cpu")), torch.zeros(2, dtype=torch.int64)
    best, root, sound, _ = accept(GREEDY, logits, tokens, buffers, none, none)
    assert sound.all()
    for b in range(2):
        at = 0
        while True:
            below = [i for i in range(1, m) if tree.parents[i] == at and tokens[b, i] == predicted[b, at]]
            if not below:
                break
            at = below[0]
        assert best[b] == at
        assert root[b] == predicted[b, at]


@given(
    trees(max_nodes=10),
    st.lists(st.integers(0, 6), min_size=1, max_size=3),
    st.sampled_from([None, 3, 5]),
    st.sampled_from([0, 4]),
)
def test_the_attention_mask_matches_its_definition(tree, lengths, window, spare):
    queries, slots = tree.nodes + 1, max(lengths) + tree.nodes + 1 + spare
    cache = TreeCache(1, slots, len(lengths), torch.device("cpu"))
    cache.slots.set_lengths(lengths)
    context = AttentionContext(cache.slots, TreeMask.of(tree, torch.device("cpu")))
    mask = context.mask(queries, slots, window, 1, torch.float32, torch.device("cpu"))
    seen = torch.zeros(len(lengths), queries, slots) if mask is None else mask[:, 0].expand(len(lengths), -1, -1)
    for b, n in enumerate(lengths):
        for i in range(queries):
            for j in range(slots):
                new = j - n
                visible = new < 0 or (new < queries and bool(tree.ancestors[i, new]))
                position = j if new < 0 else n + int(tree.depths[min(new, queries - 1)])
                visible &= window is None or n + int(tree.depths[i]) - position < window
                assert (seen[b, i, j] == 0) == visible


@pytest.mark.parametrize(
    ("prompts", "tree", "new", "words"),
    [
        ([[]], CandidateTree(), 5, "empty"),
        ([[1] * 400], CandidateTree(), 200, "400 tokens and 200 new ones exceed the 512"),
        ([[1]], CandidateTree.chain(HEADS + 1), 5, "5 deep but tiny llama has 4"),
        ([[1]], CandidateTree(tuple((r,) for r in range(VOCAB + 1))), 5, "heads propose only 48 tokens"),
        ([[1]], CandidateTree(), 0, "at least 1"),
    ],
)
def test_what_cannot_be_decoded_is_refused(prompts, tree, new, words):
    with pytest.raises(InputError, match=words):
        tiny_model().generate(prompts, tree=tree, max_new_tokens=new)


def test_heads_must_fit_the_model():
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, vocab_size=48, num_hidden_layers=1, intermediate_size=8
    )
    other, heads = transformers.LlamaForCausalLM(config), tiny_heads(tiny_base("llama"))
    with pytest.raises(InputError, match="hidden size 32 and vocabulary 48, but other has 64 and 48"):
        MedusaModel(other, heads, name="other")


def test_a_model_with_attention_of_its_own_is_refused():
    base = transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=48))
    with pytest.raises(InputError, match="attention interface"):
        MedusaModel(base)


def test_layers_that_are_not_attention_over_all_slots_are_refused():
    base = tiny_base("qwen3")
    base.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match="has linear_attention layers"):
        MedusaModel(base)


def test_without_heads_there_is_plain_decoding_only():
    model = MedusaModel(tiny_base("llama"), name="bare")
    assert len(model.generate([[3, 4]], max_new_tokens=4).tokens[0]) == 4
    with pytest.raises(InputError, match="bare has 0 Medusa head"):
        model.generate([[3, 4]], tree=CandidateTree.chain(1), max_new_tokens=4)


def test_of_a_whole_tree_file_the_point_for_the_batch_is_run():
    """Batch 1 gets a tree, batch 16 none; both texts are the plain one."""
    from test_plan import calibration

    from medusa_tree.planning.budget import Budget
    from medusa_tree.planning.plan import plan

    contents = plan(calibration(loads=((1, 20), (16, 20))), Budget()).contents
    sizes = [contents.tree(b).nodes for b in (1, 16)]
    assert sizes[0] != sizes[1]
    base = tiny_base("llama")
    model = MedusaModel(base, tiny_heads(base))
    for batch, nodes in zip((1, 16), sizes, strict=True):
        prompts = [[5 + i, 6, 7] for i in range(batch)]
        assert contents.tree(batch, 15).nodes == nodes
        with_file, with_tree = (
            model.generate(prompts, tree=t, max_new_tokens=24, eos_token_id=[])
            for t in (contents, contents.tree(batch))
        )
        assert with_file == with_tree
        assert with_file.tokens == model.generate(prompts, max_new_tokens=24, eos_token_id=[]).tokens
