"""What only a GPU can show: captured, compiled and Triton paths give transformers' text, and a step neither waits nor allocates.

Skipped where there is none; where there is one, ``pytest tests/test_gpu.py tests/test_kernels.py`` is the whole check.
"""

import pytest
import torch
from conftest import BUSHY, random_prompts, tiny_base, tiny_heads
from test_runtime import reference

from medusa_runtime import CandidateTree, InputError, Lookup, MedusaModel, TreeBook
from medusa_runtime.acceptance.rules import GREEDY, Sampling, Typical
from medusa_runtime.buffers import BookBuffers
from medusa_runtime.decode import prefill
from medusa_runtime.graph import KEPT, StepGraph
from medusa_runtime.step import device_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
NEW = 64
BOOK = TreeBook(
    (BUSHY, CandidateTree(BUSHY.paths[:5], 6), CandidateTree((), 10)), (0, 1, 3), Lookup("both", 8), (5, 6, 7)
)


def gpu_model(family: str = "llama", dtype: torch.dtype = torch.float32) -> MedusaModel:
    base = tiny_base(family)
    heads = tiny_heads(base)
    return MedusaModel(base.to("cuda", dtype), heads, name=f"tiny {family}")


def gpu_reference(family: str, prompts: list[list[int]]) -> list[list[int]]:
    return reference(tiny_base(family).to("cuda"), prompts, NEW)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2"])
@pytest.mark.parametrize("batch", [1, 4, 16, 64])
@pytest.mark.parametrize(("graphs", "triton"), [(True, True), (False, True), (True, False), (False, False)])
def test_every_path_is_lossless(family, batch, graphs, triton):
    prompts = random_prompts(batch, seed=40)
    model = gpu_model(family)
    assert model.graphs
    model.graphs, model.triton = graphs, triton and model.triton
    out = model.generate(prompts, tree=BUSHY, max_new_tokens=NEW)
    assert out.tokens == gpu_reference(family, prompts)
    assert out.acceptance_length > 1.1


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_compiled_pass_is_lossless(family):
    torch._dynamo.reset()
    prompts = random_prompts(4, seed=41)
    model = gpu_model(family)
    model.compile()
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW).tokens == gpu_reference(family, prompts)


@pytest.mark.parametrize("rule", [Sampling(0.8, top_k=20, seed=3), Typical(0.05, 0.2)])
def test_rules_are_captured(rule):
    prompts = random_prompts(4, seed=42)
    model = gpu_model()
    captured = model.generate(prompts, tree=BUSHY, max_new_tokens=NEW, rule=rule)
    model.graphs, model.workspace = False, None
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW, rule=rule) == captured


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decodes(dtype):
    """Texts may part at near ties; the runtime must at least go on, and mostly agree."""
    prompts = random_prompts(8, seed=43)
    model = gpu_model(dtype=dtype)
    tree, plain = (model.generate(prompts, tree=t, max_new_tokens=24).tokens for t in (BUSHY, CandidateTree()))
    assert sum(a == b for a, b in zip(tree, plain, strict=True)) >= 6


@pytest.mark.parametrize(("graphs", "triton"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_book_is_lossless_and_one_graph(family, batch, graphs, triton):
    prompts = random_prompts(batch, seed=43)
    model = gpu_model(family)
    model.graphs, model.triton = graphs, triton and model.triton
    out = model.generate(prompts, tree=BOOK, max_new_tokens=NEW)
    assert out.tokens == gpu_reference(family, prompts)
    if graphs:
        assert len(model.workspace.graphs) == 1
    base = tiny_base(family)
    assert out == MedusaModel(base, tiny_heads(base)).generate(prompts, tree=BOOK, max_new_tokens=NEW), (
        "as a CPU's host picks"
    )


@pytest.mark.parametrize("rule", [GREEDY, Sampling(seed=1), Typical()])
@pytest.mark.parametrize("book", [BUSHY, BOOK], ids=["tree", "book"])
def test_the_step_never_waits_for_the_device(rule, book):
    model = gpu_model()
    state = prefill(model, random_prompts(3, seed=44), 400, max_new_tokens=300, stops=[7])
    tree = BookBuffers.of(book, model.device)
    with torch.inference_mode():
        device_step(model, state, tree, rule)  # kernels compiled, addresses uploaded
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                device_step(model, state, tree, rule)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_replays_allocate_nothing_and_copy_nothing_to_the_host():
    model = gpu_model()
    state = prefill(model, random_prompts(3, seed=45), 600)
    run = StepGraph(model, state, BookBuffers.of(BUSHY, model.device), GREEDY)
    run()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(20):
            run()
        torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    names = [event.name for event in profile.events()]
    assert names
    assert not [name for name in names if "DtoH" in name or "cudaMalloc" in name]


def test_graphs_come_and_go_without_harm():
    """Other batches, more trees than are kept, and another model in between: none frees what another one's graphs still use."""
    one, other = gpu_model(), gpu_model("qwen3")
    trees = [CandidateTree.chain(d) for d in (1, 2, 3, 4)] + [CandidateTree(BUSHY.paths[:n]) for n in range(3, 11)]
    assert len(trees) > KEPT
    prompts = random_prompts(4, seed=47)
    want = {m: gpu_reference(f, prompts) for m, f in ((one, "llama"), (other, "qwen3"))}
    for tree in (BUSHY, *trees, BUSHY):
        for model, batch in ((one, 1), (other, 4), (one, 4), (one, 1)):
            assert model.generate(prompts[:batch], tree=tree, max_new_tokens=NEW).tokens == want[model][:batch]
            torch.empty(1 << 28, dtype=torch.uint8, device="cuda").fill_(255)  # whatever was freed is written over


def test_a_pass_that_reads_on_the_host_is_run_as_it_stands():
    prompts = random_prompts(3, seed=48)
    model = gpu_model()
    model.base.get_input_embeddings().register_forward_hook(lambda module, args, output: (output.sum().item(), None)[1])
    with pytest.warns(UserWarning, match="reads a value on the host"):
        out = model.generate(prompts, tree=BUSHY, max_new_tokens=NEW)
    assert out.tokens == gpu_reference("llama", prompts)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_another_device_than_the_first():
    prompts = random_prompts(3, seed=49)
    base = tiny_base("llama")
    heads = tiny_heads(base)
    model = MedusaModel(base.to("cuda:1"), heads)
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=NEW).tokens == gpu_reference("llama", prompts)


def test_memory_is_flat_over_requests():
    model, prompts = gpu_model(), random_prompts(4, seed=46)
    held = []
    for i in range(12):
        model.generate([p[i % 3 :] for p in prompts], tree=BUSHY, max_new_tokens=NEW)
        held.append(torch.cuda.memory_allocated())
    assert held[-1] == held[3]


def test_out_of_memory_names_the_numbers():
    with pytest.raises(InputError, match=r"a KV cache of 64 .* takes [\d.]+ GiB\. cuda:0 has [\d.]+ GiB free of"):
        prefill(gpu_model(), [[5, 6]] * 64, 1 << 27)
