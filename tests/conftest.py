"""Tiny random models of several families, and the bundled demo."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Of the processes that tests start, too: they must not wait for what else runs here.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():  # Triton kernels are then interpreted; read when Triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

import transformers
from hypothesis import settings
from hypothesis import strategies as st

from medusa_runtime import CandidateTree, MedusaHeads, MedusaModel
from medusa_runtime.heads.checkpoint import save_heads
from medusa_tree.bundled import resolve_model
from medusa_tree.devices.latency import LatencyGrid, LatencyPoint
from medusa_tree.devices.measure import device_name
from medusa_tree.devices.sizes import grid_trees

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("suite")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCAB, HIDDEN, HEADS = 48, 32, 4
SMALL = {
    "hidden_size": HIDDEN, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": VOCAB, "num_attention_heads": 4,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 24}),  # a window shorter than the text
    "qwen3": ("Qwen3", GROUPED),
    "gpt_neox": ("GPTNeoX", {}),
    "gemma2": (
        "Gemma2",
        {**GROUPED, "sliding_window": 16, "query_pre_attn_scalar": 8, "tie_word_embeddings": False},
    ),  # soft-capped, sliding
}


def tiny_base(family: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random float32 model whose greedy text does not collapse into one token."""
    name, extra = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**SMALL, **extra)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25)
    model.generation_config.eos_token_id = None
    model.set_attn_implementation("eager")  # as the model is written: transformers' SDPA leaves Gemma-2's soft cap out
    return model


def tiny_heads(base: transformers.PreTrainedModel, heads: int = HEADS, blocks: int = 1, seed: int = 1) -> MedusaHeads:
    """Heads that start from the model's own output layer and are disturbed: right now and then."""
    torch.manual_seed(seed)
    weight = base.get_output_embeddings().weight
    result = MedusaHeads(weight.shape[1], weight.shape[0], heads, blocks)
    result.init_from_output_layer(weight)
    with torch.no_grad():
        result.block_weight.normal_(std=0.05)
        result.block_bias.normal_(std=0.05)
        result.output_weight += 0.3 * weight.std() * torch.randn_like(result.output_weight)
    return result


def tiny_model(family: str = "llama", **kwargs) -> MedusaModel:
    base = tiny_base(family)
    return MedusaModel(base, tiny_heads(base, **kwargs), name=f"tiny {family}")


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 40, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


@st.composite
def trees(draw: st.DrawFn, max_nodes: int = 24, depth: int = HEADS, width: int = 5) -> CandidateTree:
    """Random trees: each new node hangs from a random earlier one."""
    paths: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(0, max_nodes))):
        parent = draw(st.sampled_from([(), *(p for p in paths if len(p) < depth)]))
        path = (*parent, draw(st.integers(0, width - 1)))
        if path not in paths:
            paths.append(path)
    return CandidateTree(tuple(paths))


BUSHY = CandidateTree(
    ((0,), (1,), (0, 0), (2,), (0, 1), (1, 0), (0, 0, 0), (3,), (0, 0, 1), (2, 0), (0, 0, 0, 0), (1, 1))
)


@pytest.fixture(scope="session")
def demo() -> MedusaModel:
    """The bundled demo in float32 on the CPU."""
    model, heads = resolve_model("demo", None)
    return MedusaModel.from_pretrained(model, heads, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A saved tiny Llama with its heads in the same folder, and a corpus of numbers."""
    from test_checkpoint import save_base

    folder = tmp_path_factory.mktemp("model")
    base = tiny_base("llama")
    save_base(base, folder)
    save_heads(tiny_heads(base), folder / "heads", base_model=str(folder))
    (folder / "corpus.txt").write_text("\n".join(f"{3 + i % 40} {5 + i % 9} {7 + i % 13}" for i in range(24)))
    return folder


def steady_measure(
    model,
    max_nodes,
    candidates=10,
    batches=(1,),
    contexts=(256,),
    *args,
    a_node=0.01,
    a_level=0.02,
    lookup=None,
    **kwargs,
):
    """In the place of devices.measure.measure: step latencies that no other work on the machine can change, and at which trees win;
    a node and a level cost their shares of plain decoding."""
    points = []
    for batch, context in [(b, c) for b in batches for c in contexts]:
        for tree in grid_trees(max_nodes, model.num_heads, min(candidates, VOCAB), lookup is not None):
            seconds = 1e-3 * batch * (1 + a_node * tree.nodes + a_level * tree.heads)
            bounds = (0.99 * seconds, 1.01 * seconds, tree.lookup > 0)
            points.append(LatencyPoint(tree.nodes, tree.heads, batch, context, seconds, *bounds))
    return LatencyGrid(tuple(points), device_name(model.device), str(model.dtype).removeprefix("torch."))


@pytest.fixture
def steady(monkeypatch):
    monkeypatch.setattr("medusa_tree.devices.measure.measure", steady_measure)


@pytest.fixture(scope="session")
def made(model, tmp_path_factory):
    """A tree.json calibrated by the command line, at batch 1 and 2."""
    from test_cli import calibrate, run

    path = tmp_path_factory.mktemp("made") / "tree.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medusa_tree.devices.measure.measure", steady_measure)
        result = run(*calibrate(model), "--batch", 1, "--batch", 2, "-o", path)
    assert "Head accuracy" in result.output
    assert "chosen tree" in result.output
    assert "64-node list" in result.output
    return path
