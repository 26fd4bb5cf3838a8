"""The step on the device, whatever runs it: captured, compiled, interpreted, read late. The text stays the same."""

import gc
import weakref

import pytest
import torch
from conftest import BUSHY, FAMILIES, HEADS, random_prompts, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tape import NoHostReads, stand_in

from medusa_runtime import CandidateTree, InputError, decode, stream
from medusa_runtime.acceptance.rules import GREEDY, Sampling, Typical
from medusa_runtime.buffers import BookBuffers, TreeBuffers
from medusa_runtime.cache.slots import Slots
from medusa_runtime.decode import Readback, prefill
from medusa_runtime.step import cut, device_step, step

CPU = torch.device("cpu")
NEW = 24


class Copied(Readback):
    """As on a GPU: the host gets a copy, made before the next replay overwrites the result."""

    def __init__(self, *parts):
        super().__init__(*(part.clone() for part in parts))


def captured(model, monkeypatch, ahead=1):
    """The model as on a GPU, tapes in the place of graphs: steps are replayed and read late."""
    tapes = stand_in(monkeypatch)
    model.graphs = True
    monkeypatch.setattr(decode, "Readback", Copied)
    monkeypatch.setattr(decode, "steps_ahead", lambda device: ahead)
    return tapes


@pytest.mark.parametrize(("family", "batch"), [("llama", 1), ("llama", 16), *((family, 4) for family in FAMILIES)])
def test_replayed_steps_give_the_same_text(family, batch, monkeypatch):
    prompts = random_prompts(batch, seed=11)
    plain = tiny_model(family).generate(prompts, max_new_tokens=NEW)
    eager = tiny_model(family).generate(prompts, tree=BUSHY, max_new_tokens=NEW)
    model = tiny_model(family)
    tapes = captured(model, monkeypatch)
    out = model.generate(prompts, tree=BUSHY, max_new_tokens=NEW)
    assert out == eager
    assert out.tokens == plain.tokens
    assert len(tapes) == 1


@pytest.mark.parametrize("rule", [Sampling(0.8, top_k=20, seed=3), Typical(0.05, 0.2)])
def test_every_rule_can_be_replayed(rule, monkeypatch):
    prompts = random_prompts(4, seed=12)
    eager = tiny_model().generate(prompts, tree=BUSHY, max_new_tokens=NEW, rule=rule)
    model = tiny_model()
    captured(model, monkeypatch)
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW, rule=rule) == eager


def test_a_workspace_serves_the_next_request(monkeypatch):
    """The same memory and the same graph, as long as batch, tree and end tokens are the same and the prompts fit."""
    model = tiny_model()
    tapes = captured(model, monkeypatch)
    first, second, other = (random_prompts(3, seed=s) for s in (13, 14, 15))
    want = [tiny_model().generate(p, tree=BUSHY, max_new_tokens=NEW).tokens for p in (first, second, other)]
    stop = want[1][0][5]
    assert model.generate(first, tree=BUSHY, max_new_tokens=NEW).tokens == want[0]
    place = model.workspace.state.cache.layers[0].keys.data_ptr()
    assert model.generate(second, tree=BUSHY, max_new_tokens=NEW).tokens == want[1]
    assert len(tapes) == 1
    assert model.workspace.state.cache.layers[0].keys.data_ptr() == place
    short = model.generate(second, tree=BUSHY, max_new_tokens=NEW, eos_token_id=stop).tokens
    assert short == [row[: row.index(stop) + 1] if stop in row else row for row in want[1]]
    assert len(tapes) == 2
    # Two requests at once do not share one.
    halfway = stream(model, first, BUSHY, NEW)
    rows = [list(new) for new in next(halfway)]
    assert model.generate(other, tree=BUSHY, max_new_tokens=NEW).tokens == want[2]
    for added in halfway:
        for row, new in zip(rows, added, strict=True):
            row += new
    assert rows == want[0]
    assert model.generate(first[:2], tree=BUSHY, max_new_tokens=NEW).tokens == want[0][:2]


def test_a_pass_that_reads_on_the_host_is_run_as_it_stands(monkeypatch):
    """As those of some rotary embeddings and expert layers: found out before the capture, which would end in an error of CUDA's."""
    prompts = random_prompts(3, seed=17)
    want = tiny_model().generate(prompts, tree=BUSHY, max_new_tokens=NEW)
    model = tiny_model()
    tapes = captured(model, monkeypatch)

    model.base.get_input_embeddings().register_forward_hook(lambda module, args, output: (output.nonzero(), None)[1])
    with pytest.warns(UserWarning, match="tiny llama: a pass reads a value on the host"):
        assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW) == want
    assert not tapes
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW) == want


def test_a_cache_with_numbers_that_overflowed_is_not_used_again():
    prompts = random_prompts(2, seed=18)
    want = tiny_model().generate(prompts, tree=BUSHY, max_new_tokens=NEW)
    model, sound = tiny_model(), [True]
    model.compile(backend="eager")  # so that workspaces are kept
    values = model.base.model.layers[0].self_attn.v_proj
    values.register_forward_hook(lambda m, a, out: out if sound[0] else torch.full_like(out, float("nan")))
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW) == want
    sound[0] = False
    with pytest.raises(InputError, match="NaN or infinite"):
        model.generate([[*p, 7, 8, 9] for p in prompts], tree=BUSHY, max_new_tokens=NEW)
    sound[0] = True
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW) == want


@pytest.mark.parametrize("ahead", [1, 3])
def test_reading_late_changes_nothing(ahead, monkeypatch):
    prompts = random_prompts(4, seed=16)
    model = tiny_model()
    want = model.generate(prompts, tree=BUSHY, max_new_tokens=NEW)
    stop = want.tokens[0][8]
    ended = model.generate(prompts, tree=BUSHY, max_new_tokens=NEW, eos_token_id=stop)
    monkeypatch.setattr(decode, "steps_ahead", lambda device: ahead)
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW) == want
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW, eos_token_id=stop) == ended
    assert model.generate(prompts, max_new_tokens=1).tokens == [row[:1] for row in want.tokens]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_traced_pass_decodes_the_same(family):
    """torch.compile's tracer, without its code generator: one graph a shape, no break, no guard on a length."""
    torch._dynamo.reset()
    model, prompts = tiny_model(family), random_prompts(4, seed=17)
    want = model.generate(prompts, tree=BUSHY, max_new_tokens=NEW)
    model.compile(backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW) == want
        longer = model.generate([[7, *p] for p in prompts], tree=BUSHY, max_new_tokens=NEW)
    assert longer == tiny_model(family).generate([[7, *p] for p in prompts], tree=BUSHY, max_new_tokens=NEW)


@pytest.mark.parametrize(("family", "batch"), [("llama", 1), ("gemma2", 4), ("mistral", 16)])
def test_interpreted_kernels_decode_the_same(family, batch):
    """Prefix and tree attention, new rows and compaction by the Triton kernels: soft caps and windows among them."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled where a GPU is; tests/test_gpu.py decodes with them")
    prompts = [p[:28] if batch == 1 else p[: 3 + i % 3] for i, p in enumerate(random_prompts(batch, seed=18))]
    tree, new = (BUSHY, 12) if batch == 1 else (BUSHY.cut(6), 3)
    want = tiny_model(family).generate(prompts, tree=tree, max_new_tokens=new)
    model = tiny_model(family)
    model.triton = True
    assert model.generate(prompts, tree=tree, max_new_tokens=new) == want


@pytest.mark.parametrize("rule", [GREEDY, Sampling(seed=1), Typical()])
def test_the_step_reads_nothing_and_moves_nothing(rule):
    """No value reaches the host between a batch's state and its next; every tensor of the state stays where it is."""
    model, prompts = tiny_model(), random_prompts(3, seed=19)
    tree = BookBuffers.of(BUSHY, CPU)
    state = prefill(model, prompts, 160, max_new_tokens=90, stops=[7])
    kept = [*state.tensors(), *(s for layer in state.cache.layers for s in (layer.keys, layer.values))]
    places = [t.data_ptr() for t in kept]
    state.cache.slots.fixed = state.cache.slots.static = True
    with torch.inference_mode(), NoHostReads():
        for _ in range(12):
            device_step(model, state, tree, rule)
    now = [*state.tensors(), *(s for layer in state.cache.layers for s in (layer.keys, layer.values))]
    assert [t.data_ptr() for t in now] == places
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"), NoHostReads():
        bool(state.root.sum())


def test_steps_leave_nothing_behind():
    """As many tensors after 40 steps as after 10: what a step makes, it lets go."""
    model = tiny_model()
    tree, counts = BookBuffers.of(BUSHY, CPU), []
    state = prefill(model, random_prompts(2, seed=20), 400)
    for n in range(40):
        step(model, state, tree)
        if n in (9, 39):
            gc.collect()
            counts.append(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))
    assert counts[1] <= counts[0]  # fewer where other tests left garbage


def test_memory_is_free_as_soon_as_a_request_ends():
    """No cycle holds the cache until the garbage collector comes by."""
    model, made = tiny_model(), []
    new_cache = model.new_cache
    model.new_cache = lambda *args: made.append(weakref.ref(cache := new_cache(*args))) or cache
    gc.disable()
    try:
        model.generate(random_prompts(2), tree=BUSHY, max_new_tokens=8)
        assert [ref() for ref in made] == [None]
    finally:
        gc.enable()


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 5), max_size=2, unique=True),
    st.data(),
)
@settings(max_examples=60)
def test_what_counts_of_a_steps_text(text, stops, data):
    emitted = [data.draw(st.integers(1, 4)) for _ in text]
    left = [data.draw(st.integers(0, 6)) for _ in text]
    left_tensor = torch.tensor(left)
    got = cut(torch.tensor(text), torch.tensor(emitted), left_tensor, torch.tensor(stops, dtype=torch.int64)).tolist()
    for b, row in enumerate(text):
        want = row[: min(emitted[b], left[b])]
        end = next((i for i, t in enumerate(want) if t in stops), None)
        want = want if end is None else want[: end + 1]
        assert got[b] == len(want)
        assert left_tensor[b] == (0 if end is not None else left[b] - len(want))


def test_a_sequence_that_has_ended_stays_as_it_is():
    model, prompts = tiny_model(), random_prompts(2, seed=21)
    tree = BookBuffers.of(BUSHY, CPU)
    state = prefill(model, prompts, 120, max_new_tokens=60)
    with torch.inference_mode():
        state.left[0] = 3
    for _ in range(8):
        _, emitted, _ = step(model, state, tree)
    assert emitted[0] == 0
    assert emitted[1] > 0
    assert state.cache.slots.lengths[0] == len(prompts[0]) + 3


def test_a_batch_of_64_in_one_graph(monkeypatch):
    prompts = random_prompts(64, seed=22)
    model = tiny_model()
    want = model.generate(prompts, max_new_tokens=12).tokens
    captured(model, monkeypatch)
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=12).tokens == want


def test_lengths_are_copied_once_a_step_to_other_devices():
    """Layers elsewhere get their own copies of lengths, rows and the tree; ``meta`` stands for another device."""
    slots, meta = Slots(16, 2, CPU), torch.device("meta")
    slots.set_lengths([3, 5])
    there = slots.lengths_on(meta)
    assert there.device == meta
    assert slots.lengths_on(meta) is there
    slots.advance(torch.tensor([1, 1]))
    assert slots.lengths_on(meta) is not there
    assert slots.next(2, meta)[1].device == meta
    mask = TreeBuffers.of(BUSHY, CPU).mask
    assert mask.on(CPU) is mask
    assert mask.on(meta).bits.device == meta
    assert mask.on(meta) is mask.on(meta)


def test_what_does_not_fit_is_refused_with_its_numbers():
    model = tiny_model()
    with pytest.raises(InputError, match="prompt of 30 tokens is longer than the cache of 20 slots"):
        prefill(model, [[5] * 30], 20)
    state = prefill(model, [[5] * 30], 40)
    with pytest.raises(InputError, match=r"13 new tokens .a tree of 12 nodes.* behind the 30 .* cache of 40 slots"):
        step(model, state, BookBuffers.of(BUSHY, CPU))
    with pytest.raises(
        InputError, match=r"out of memory: a KV cache of 1 sequence.s. x \d+ tokens x 2 layers takes \d+"
    ):
        prefill(model, [[5, 6]], 1 << 46)


def test_a_tree_too_large_for_the_kernel_is_refused_with_its_numbers():
    pytest.importorskip("triton")
    model = tiny_model()
    model.triton = True
    wide = CandidateTree(tuple((r,) for r in range(33)) + tuple((r, s) for r in range(33) for s in range(31)))
    assert wide.nodes == 1056
    assert wide.depth < HEADS
    with pytest.raises(InputError, match="1056 nodes and the CUDA kernel takes 1024"):
        model.generate([[5, 6, 7]], tree=wide, max_new_tokens=4)
