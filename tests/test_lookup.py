"""Looking up while decoding: the same as a search by hand, and as replay says; no text is changed by it."""

import numpy as np
import pytest
import torch
from conftest import BUSHY, FAMILIES, HEADS, VOCAB, random_prompts, tiny_base, tiny_model, trees
from hypothesis import given, settings
from hypothesis import strategies as st
from tape import NoHostReads
from test_step import captured

from medusa_runtime import CandidateTree, InputError, Lookup, MedusaModel, Sampling, TreeBook, Typical, stream
from medusa_runtime.acceptance.accept import accept
from medusa_runtime.acceptance.rules import GREEDY, Greedy
from medusa_runtime.attention import AttentionContext, TreeMask
from medusa_runtime.buffers import BookBuffers, TreeBuffers, at_node, take
from medusa_runtime.cache.slots import Slots
from medusa_runtime.decode import prefill
from medusa_runtime.lookup import draft
from medusa_runtime.step import device_step, step
from medusa_tree.bundled import resolve_corpus
from medusa_tree.profiling.corpus import read_corpus
from medusa_tree.profiling.profile import profile
from medusa_tree.profiling.tokens import tokenize
from medusa_tree.traces.bookreplay import replay_book
from medusa_tree.traces.lookup import look_up
from medusa_tree.traces.text import Ragged, TraceText
from medusa_tree.traces.trace import RankTrace
from medusa_tree.validation.reference import Reference
from medusa_tree.validation.texts import unruly
from medusa_tree.validation.timing import timed_run

CPU = torch.device("cpu")
NEW = 40
BOTH = TreeBook((BUSHY, CandidateTree(BUSHY.paths[:5], 6), CandidateTree((), 10)), (0, 1, 3), Lookup("both", 8))
ONE = TreeBook((BUSHY,), (0,), Lookup())  # looks up, and nothing depends on it
ALONE = TreeBook((CandidateTree(), CandidateTree((), 3), CandidateTree((), 9)), (0, 1, 2), Lookup("both", 4))


def by_hand(text, prompt, lookup, beside, count):
    """Match length and drafts, place by place."""
    longest, at, source = 0, None, text
    for words, places in ((text, range(len(text) - 1)), (beside, range(len(beside)))):
        own = words is text
        for j in places:
            if own and ((lookup.where == "prompt" and j >= prompt) or (lookup.where == "output" and j < prompt)):
                continue
            m = 0
            while m < min(lookup.longest, j + 1, len(text)) and words[j - m] == text[-1 - m]:
                m += 1
            if m and (m > longest or (m == longest and words is source)):
                longest, at, source = m, j, words
    if at is None:
        return 0, None
    if source is beside:
        return longest, [beside[min(at + 1 + t, len(beside) - 1)] for t in range(count)]
    period = len(text) - 1 - at
    return longest, [text[at + 1 + t % period] for t in range(count)]


few = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@settings(max_examples=150)
@given(
    prompts=st.lists(few, min_size=1, max_size=3), outputs=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=24), min_size=3, max_size=3),
    where=st.sampled_from(["both", "prompt", "output"]), longest=st.integers(1, 5), beside=st.one_of(st.just([]), few), cut=st.integers(0, 1),
)  # fmt: skip
def test_host_device_trace_and_a_search_by_hand_agree(prompts, outputs, where, longest, beside, cut):
    """At every place of every text, with drafts far beyond its end."""
    lookup, outputs = Lookup(where, longest), outputs[: len(prompts)]
    lengths = [len(o) - cut for o in outputs]
    ranks = [np.zeros((n, 1), dtype=np.int16) for n in lengths]
    said = TraceText(Ragged.of(prompts), Ragged.of(outputs), np.arange(len(prompts)))
    found = look_up(RankTrace.from_sequences(ranks, [False] * len(prompts), 1, text=said), lookup, beside)
    user = torch.tensor(beside, dtype=torch.int64)
    for p in range(max(lengths)):
        rows = [s for s in range(len(prompts)) if p < lengths[s]]
        texts = [prompts[s] + outputs[s][: p + 1] for s in rows]
        table = torch.full((len(rows), 48), 9)
        for row, text in zip(table, texts, strict=True):
            row[: len(text)] = torch.tensor(text)
        ends, begun = torch.tensor(list(map(len, texts))), torch.tensor([len(prompts[s]) for s in rows])
        got = [draft(table, ends, begun, user, lookup, 8, host) for host in (True, False)]
        for i, (s, text) in enumerate(zip(rows, texts, strict=True)):
            match, drafts = by_hand(text, len(prompts[s]), lookup, beside, 8)
            at = sum(lengths[:s]) + p
            assert [int(m[i]) for m, _ in got] == [match, match]
            assert found.match[at] == match
            hits = 0
            if match:
                assert [d[i].tolist() for _, d in got] == [drafts, drafts]
                _, far = by_hand(text, len(prompts[s]), lookup, beside, 64)
                rest = outputs[s][p + 1 :]
                hits = next((n for n, (a, b) in enumerate(zip(rest, far, strict=False)) if a != b), len(rest))
            assert found.hits[at] == hits


def found_in(text, prompt=0, count=6, lookup=None, beside=()):
    """On both ways, which are held to agree."""
    user = torch.tensor(beside, dtype=torch.int64)
    args = torch.tensor([text]), torch.tensor([len(text)]), torch.tensor([prompt]), user, lookup or Lookup(), count
    (match, drafts), (m, d) = (draft(*args, host) for host in (True, False))
    assert match.tolist() == m.tolist()
    assert not int(match) or torch.equal(drafts, d)
    return int(match), drafts[0].tolist()


def test_what_is_proposed():
    assert found_in([5])[0] == 0, "a lone token stood nowhere before"
    assert found_in([5, 6, 7])[0] == 0
    assert found_in([4, 1, 2, 8, 3, 1, 2]) == (2, [8, 3, 1, 2, 8, 3]), "the end runs on into itself"
    assert found_in([7, 7, 7, 7]) == (3, [7] * 6), "a match that overlaps itself"
    assert found_in([1, 2, 1, 2, 1, 2], lookup=Lookup(longest=3)) == (3, [1, 2, 1, 2, 1, 2])
    assert found_in([1, 9, 5, 1, 8, 5, 1])[1][:2] == [8, 5], "the more recent of two as long"
    assert found_in([1, 9, 5, 1, 8, 5, 1], 2, lookup=Lookup("prompt")) == (1, [9, 5, 1, 8, 5, 1])
    assert found_in([1, 9, 5, 2, 8, 5, 1], 2, lookup=Lookup("output"))[0] == 0
    assert found_in([3, 1, 2], beside=[9, 1, 2, 6]) == (2, [6] * 6), "the user's text ends, and its last token stays"
    assert found_in([4, 2, 3, 2], beside=[2, 6])[1][0] == 3, "of two as long one's own"


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", [GREEDY, Sampling(0.5, top_k=12, seed=3)], ids=lambda r: r.name)
def test_a_book_changes_no_text(family, batch, rule):
    model, prompts = tiny_model(family), random_prompts(batch, seed=11)
    plain = model.generate(prompts, max_new_tokens=NEW, rule=rule)
    for book in (BOTH, ALONE, ONE):
        out = model.generate(prompts, tree=book, max_new_tokens=NEW, rule=rule)
        assert out.tokens == plain.tokens
        for tokens, emitted, drafted in zip(out.tokens, out.emitted, out.drafted, strict=True):
            assert sum(emitted) == len(tokens) == len(emitted) + sum(drafted)
        if book is ALONE:
            assert {(both, heads) for both, heads, _ in out.drafted} == {(0, 0)}
    assert plain.drafted == [[0, 0, 0]] * batch


def test_the_lookup_and_the_heads_both_bring_something():
    out = tiny_model("qwen3").generate(random_prompts(4, seed=11), tree=BOTH, max_new_tokens=60)
    both, heads, lookup = np.sum(out.drafted, axis=0)
    assert both > 0
    assert heads > 10
    assert lookup > 10
    alone = tiny_model("qwen3").generate(random_prompts(4, seed=11), tree=BUSHY, max_new_tokens=60)
    assert [row[0] + row[2] for row in alone.drafted] == [0] * 4
    assert [row[1] for row in alone.drafted] == [sum(e) - len(e) for e in alone.emitted]


def test_a_model_without_heads_looks_up():
    base = tiny_base("gpt_neox")
    model, prompts = MedusaModel(base, None, name="bare"), random_prompts(3, seed=12)
    plain = model.generate(prompts, max_new_tokens=NEW).tokens
    out = model.generate(prompts, tree=ALONE, max_new_tokens=NEW)
    assert out.tokens == plain
    assert out.acceptance_length > 1.5
    with pytest.raises(InputError, match="the tree is 4 deep but bare has 0"):
        model.generate(prompts, tree=BOTH, max_new_tokens=NEW)


@torch.inference_mode()
def begun(model, texts, capacity):
    """A state whose roots are the last tokens of these texts."""
    state = prefill(model, [text[:-1] for text in texts], capacity)
    state.root.copy_(torch.tensor([text[-1] for text in texts]))
    return state


def test_only_the_heads_that_trees_in_use_read_are_evaluated():
    """Where nothing is found the whole tree's; where only a chain is used none; in a batch the most that one of them needs."""
    model, seen = tiny_model(), []
    model.heads.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    book = TreeBook((BUSHY, CandidateTree(((0,), (0, 0)), 2), CandidateTree((), 4)), (0, 1, 2), Lookup())
    buffers = BookBuffers.of(book, CPU)
    for prompts, heads, nodes in (
        ([[5, 6, 7]], HEADS, 12), ([[5, 6, 7, 5]], 2, 4), ([[5, 6, 7, 5, 6]], None, 4), ([[5, 6, 7, 5, 6], [8, 5, 9, 5]], 2, 4),
        ([[4, 5, 6], [5, 6, 7, 5, 6]], HEADS, 12),
    ):  # fmt: skip
        state = begun(model, prompts, 80)
        seen.clear()
        passes = []
        handle = model.base.register_forward_pre_hook(
            lambda m, a, kw, passes=passes: passes.append(kw["input_ids"].shape[1]), with_kwargs=True
        )
        step(model, state, buffers)
        handle.remove()
        assert seen == ([] if heads is None else [heads])
        assert passes == [nodes + 1]


def test_a_sequence_that_has_ended_needs_no_tree_of_its_own():
    model, passes = tiny_model(), []
    state = prefill(model, [[5, 6, 7, 5, 6, 7, 5, 6], [8, 9, 10]], 80, max_new_tokens=30)
    with torch.inference_mode():
        state.root.copy_(torch.tensor([7, 11]))
        state.left[0] = 0
    model.base.register_forward_pre_hook(lambda m, a, kw: passes.append(kw["input_ids"].shape), with_kwargs=True)
    _, emitted, _ = step(model, state, BookBuffers.of(ALONE, CPU))
    assert emitted.tolist() == [0, 1]
    assert passes == [(2, 1)]


def test_a_step_without_a_tree_is_the_plain_step():
    model = tiny_model()
    plain, book = (begun(model, [[5, 6, 7, 8, 9]], 40) for _ in range(2))
    kinds = [step(model, s, BookBuffers.of(b, CPU)) for s, b in ((plain, CandidateTree()), (book, ALONE))]
    assert all(torch.equal(a, b) for a, b in zip(*kinds, strict=True))
    assert torch.equal(plain.hidden, book.hidden)


@pytest.mark.parametrize("rule", [GREEDY, Sampling(0.8, top_k=20, seed=3), Typical(0.05, 0.2)], ids=lambda r: r.name)
@pytest.mark.parametrize("batch", [1, 4])
def test_one_captured_step_decodes_as_the_host_picks(rule, batch, monkeypatch):
    """The device's way: trees padded to one size and gathered by number, replayed without Python, nothing read on the host."""
    prompts = random_prompts(batch, seed=12)
    beside = tuple(tiny_model("qwen3").generate([prompts[0]], max_new_tokens=9).tokens[0])
    for book in (BOTH, ALONE, ONE, TreeBook(BOTH.trees, BOTH.matches, BOTH.lookup, beside)):
        eager = tiny_model("qwen3").generate(prompts, tree=book, max_new_tokens=NEW, rule=rule)
        with pytest.MonkeyPatch.context() as patch:
            model = tiny_model("qwen3")
            tapes = captured(model, patch)
            assert model.generate(prompts, tree=book, max_new_tokens=NEW, rule=rule) == eager
            assert len(tapes) == 1
            model.generate(prompts[::-1], tree=book, max_new_tokens=NEW, rule=rule)  # another request's text
            assert model.generate(prompts, tree=book, max_new_tokens=NEW, rule=rule) == eager
            assert len(tapes) == 1


@pytest.mark.parametrize("rule", [GREEDY, Sampling(seed=1), Typical()], ids=lambda r: r.name)
def test_the_devices_step_reads_nothing_and_moves_nothing(rule):
    model, prompts = tiny_model(), random_prompts(3, seed=19)
    book = BookBuffers.of(TreeBook(BOTH.trees, BOTH.matches, BOTH.lookup, (5, 6, 7)), CPU)
    state = prefill(model, prompts, 200, max_new_tokens=90, stops=[7])
    kept = [*state.tensors(), state.text, state.prompts, *(s for x in state.cache.layers for s in (x.keys, x.values))]
    places = [t.data_ptr() for t in kept]
    state.cache.slots.fixed = state.cache.slots.static = model.graphs = True
    with torch.inference_mode(), NoHostReads():
        shapes = {tuple(x.shape for x in device_step(model, state, book, rule)) for _ in range(12)}
    assert shapes == {((3, 11), (3,), (3, 2))}
    now = [*state.tensors(), state.text, state.prompts, *(s for x in state.cache.layers for s in (x.keys, x.values))]
    assert [t.data_ptr() for t in now] == places


def test_interpreted_kernels_take_a_tree_a_sequence():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled where a GPU is")
    prompts = [[3, 9, 4], [5, 6, 5], [5, 6, 8, 5, 6]]
    small = TreeBook((BUSHY.cut(4), CandidateTree(((0,),), 3), CandidateTree((), 2)), (0, 1, 2), Lookup("both", 4))
    want = tiny_model("gemma2").generate(prompts, tree=small, max_new_tokens=4)
    model = tiny_model("gemma2")
    model.triton = True
    assert model.generate(prompts, tree=small, max_new_tokens=4) == want


def test_a_compiled_pass_takes_a_tree_a_sequence():
    torch._dynamo.reset()
    model, prompts = tiny_model(), random_prompts(3, seed=17)
    want = model.generate(prompts, tree=BOTH, max_new_tokens=12)
    model.compile(backend="eager", fullgraph=True)
    assert model.generate(prompts, tree=BOTH, max_new_tokens=12) == want


@st.composite
def with_chains(draw, max_nodes=10):
    tree = draw(trees(max_nodes=max_nodes, width=4))
    return CandidateTree(tree.paths, draw(st.integers(0, 6)))


three = st.lists(with_chains(), min_size=3, max_size=3)


@given(three, st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(0, 2**31))
def test_padded_trees_are_themselves(kinds, which, seed):
    """Tokens, acceptance under every rule, and whom each node sees: those of the tree by itself, and no others."""
    generator = torch.Generator().manual_seed(seed)
    own = [TreeBuffers.of(t, CPU) for t in kinds]
    stacked = TreeBuffers.stack(own)
    rows = stacked.rows(torch.tensor(which))
    batch, m, vocab = len(which), stacked.nodes + 1, 6
    heads = torch.stack([torch.randperm(vocab, generator=generator) for _ in range(HEADS)])  # as proposed
    drafts = torch.randint(0, vocab, (6,), generator=generator)
    logits = torch.randn(batch, m, vocab, generator=generator)

    def pool(tree):
        return torch.cat([heads[: tree.heads, : tree.width].flatten(), drafts[: tree.lookup]])[None]

    root = torch.zeros(batch, 1, dtype=torch.int64)
    tokens = root.expand(-1, m)
    if stacked.nodes:
        tokens = torch.cat([root, take(pool(stacked).expand(batch, -1), rows.picks)], dim=1)
    lengths, streams = torch.arange(batch) + 5, torch.arange(batch)
    for rule in (Greedy(), Sampling(1.0, seed=7), Typical(0.2, 0.6)):
        best, after, sound, drafted = accept(rule, logits, tokens, rows, lengths, streams)
        for b, t in enumerate(which):
            one, count = own[t], own[t].nodes + 1
            alone = torch.cat([root[:1], take(pool(one), one.picks)], dim=1) if one.nodes else root[:1]
            assert torch.equal(tokens[b, :count], alone[0])
            got = accept(rule, logits[b : b + 1, :count], alone, one, lengths[b : b + 1], streams[b : b + 1])
            assert (int(best[b]), int(after[b]), bool(sound[b])) == tuple(x.item() for x in got[:3])
            assert drafted[b].tolist() == got[3][0].tolist()
            assert max(drafted[b].tolist()) == int(one.depths[0, best[b]])
            path = at_node(rows.retrieval, best)[b].tolist()
            assert path[: one.depth + 1] == one.retrieval[0, best[b]].tolist()
    for window in (None, 2):
        together = AttentionContext(filled(lengths), rows.mask).mask(m, m + 12, window, 2, torch.float32, CPU)
        for b, t in enumerate(which):
            count = own[t].nodes + 1
            alone = AttentionContext(filled(lengths[b : b + 1]), own[t].mask).mask(
                count, m + 12, window, 2, torch.float32, CPU
            )
            if alone is not None:
                mask = together.expand(batch, -1, -1, -1)[b, 0].view(2, m, -1)
                assert torch.equal(mask[:, :count], alone[0, 0].view(2, count, -1))
                new = int(lengths[b]) + torch.arange(count, m)
                padding = mask[0, count:, new] == 0
                assert torch.equal(padding, torch.eye(m - count, dtype=torch.bool))
    assert torch.equal(packed(stacked.mask.ancestors), stacked.mask.bits)


def filled(lengths):
    slots = Slots(100, len(lengths), CPU, fixed=True)
    slots.set_lengths(lengths.tolist())
    return slots


def packed(ancestors):
    rows, m, _ = ancestors.shape
    padded = torch.zeros(rows, m, -(-m // 32) * 32, dtype=torch.int64)
    padded[:, :, :m] = ancestors
    return (padded.view(rows, m, -1, 32) << torch.arange(32)).sum(dim=-1).to(torch.int32)


def test_a_mask_of_several_trees_goes_to_other_devices():
    mask = TreeMask.stack([TreeMask.of(t, CPU) for t in (BUSHY, CandidateTree((), 40))]).rows(torch.tensor([1, 0]))
    there = mask.on(torch.device("meta"))
    assert there.bits.device == there.tables.bits.device == there.which.device == torch.device("meta")
    assert there.bits.shape == (2, 41, 2)
    assert mask.tables.on(torch.device("meta")) is there.tables


def test_text_of_typical_acceptance_obeys_its_rule():
    model, prompts, rule = tiny_model("qwen3"), random_prompts(4, seed=5), Typical(0.15, 0.5)
    made = model.generate(prompts, BOTH, 32, rule=rule)
    assert sum(row[2] for row in made.drafted) > 5
    assert unruly(Reference(model), prompts, made.tokens, made.emitted, rule) == (4 * 32, [])
    again = [model.generate([p], BOTH, 32, rule=rule).tokens[0] for p in prompts]
    assert again == made.tokens


@pytest.mark.parametrize("batch", [1, 3])
def test_an_end_token_inside_a_draft_ends_the_text(batch):
    """The model's own words are known beforehand, so that whole drafts stand; an end token stands within one."""
    model, prompts = tiny_model(), random_prompts(batch, seed=11)
    plain = model.generate(prompts, max_new_tokens=60).tokens
    text, at = plain[0], next(i for i in range(12, 50) if plain[0][i] not in plain[0][:i])
    book = TreeBook((CandidateTree(), CandidateTree((), 9)), (0, 1), Lookup("prompt"), (*prompts[0], *text))
    ended = model.generate(prompts, tree=book, max_new_tokens=60, eos_token_id=text[at])
    assert ended.tokens == model.generate(prompts, max_new_tokens=60, eos_token_id=text[at]).tokens
    assert ended.tokens[0] == text[: at + 1]
    if batch == 1:
        whole = model.generate(prompts, tree=book, max_new_tokens=60)
        assert whole.emitted[0][:3] == [10, 10, 10]
        assert (at + 1) % 10 > 1
        assert ended.emitted[0] == [10] * ((at + 1) // 10) + [(at + 1) % 10]
    for tokens, emitted, drafted in zip(ended.tokens, ended.emitted, ended.drafted, strict=True):
        assert len(tokens) == len(emitted) + sum(drafted)


def test_the_text_buffer_holds_the_text():
    model, prompts = tiny_model("gemma2"), random_prompts(3, seed=4)
    plain = model.generate(prompts, max_new_tokens=80).tokens
    state = prefill(model, prompts, 200)
    for _ in range(9):
        step(model, state, BookBuffers.of(BOTH, CPU))
    for b, (prompt, text) in enumerate(zip(prompts, plain, strict=True)):
        n = int(state.cache.slots.lengths[b])
        assert n > len(prompt) + 8
        assert state.text[b, :n].tolist() == [*prompt, *text][:n]
        assert int(state.prompts[b]) == len(prompt)
    narrow = state.narrow(torch.tensor([2]))
    assert narrow.text.shape == (1, 200)
    assert int(narrow.prompts) == len(prompts[2])


@torch.inference_mode()
def test_sequences_put_into_a_batch_bring_their_text():
    model, prompts, book = tiny_model("gpt_neox"), random_prompts(3, seed=6), BookBuffers.of(ALONE, CPU)
    state, new = prefill(model, prompts[:2], 200), prefill(model, prompts[2:], 60)
    for _ in range(3):
        step(model, state, book)
    state.put(torch.tensor([0]), new)
    state.cache.slots.known = (0, 100)
    want = model.generate([prompts[2]], tree=ALONE, max_new_tokens=40)
    got = []
    for count in want.emitted[0][:6]:
        tokens, emitted, _ = step(model, state, book)
        assert int(emitted[0]) == count
        got += tokens[0, :count].tolist()
    assert got == want.tokens[0][: len(got)]
    assert want.drafted[0][2] > 5


def test_what_a_request_of_a_book_needs():
    model = tiny_model()
    wide = TreeBook((CandidateTree(), CandidateTree(tuple((r,) for r in range(VOCAB + 1)), 2)), (0, 2), Lookup())
    with pytest.raises(InputError, match="heads propose only 48 tokens"):
        model.generate([[5]], tree=wide, max_new_tokens=4)
    text = [token for (new,) in stream(model, [[5, 6, 5, 6]], BOTH, 12) for token in new]
    assert text == model.generate([[5, 6, 5, 6]], max_new_tokens=12).tokens[0]
    run = timed_run(model, [[5, 6, 5, 6]], BOTH, 12)
    assert run.generation == model.generate([[5, 6, 5, 6]], tree=BOTH, max_new_tokens=12)


DEMO = TreeBook(
    (
        CandidateTree(((0,), (1,), (0, 0), (0, 1), (0, 0, 0), (0, 0, 0, 0), (2,), (1, 0))),
        CandidateTree(((0,), (0, 0), (0, 0, 0), (1,)), 4), CandidateTree(((0,),), 8), CandidateTree((), 16),
    ),
    (0, 1, 2, 5), Lookup("both", 12),
)  # fmt: skip


@pytest.fixture(scope="module")
def demo_prompts(demo):
    return tokenize(read_corpus(resolve_corpus("demo"))[:8], demo.tokenizer, 256)


@pytest.mark.parametrize("rule", [GREEDY, Sampling(0.7, top_p=0.9, seed=5)], ids=lambda r: r.name)
def test_steps_and_drafted_tokens_are_those_of_replay(demo, demo_prompts, rule):
    """To the step, in float32, whatever the batch, with and without a text of the user's own."""
    new = 64
    trace = profile(demo, demo_prompts, [False] * len(demo_prompts), new, rule=rule)
    for beside, batches in (((), (1, 4)), (tuple(demo_prompts[0] + trace.text.outputs[0].tolist()), (4,))):
        book = TreeBook(DEMO.trees, DEMO.matches, DEMO.lookup, beside)
        played = replay_book(book, trace, look_up(trace, book.lookup, beside))
        assert (played.used.sum(axis=0) > 0).all(), "every tree is used"
        assert (played.drafted.sum(axis=0) > 0).all()
        for batch in batches:
            for at in range(0, 4 + batch, batch):
                own = list(range(at, at + batch))
                out = demo.generate(demo_prompts[at : at + batch], book, new, rule=rule, streams=own)
                assert [len(e) for e in out.emitted] == played.steps[own].tolist()
                assert [len(t) for t in out.tokens] == played.tokens[own].tolist()
                assert out.drafted == played.drafted[own].tolist()
