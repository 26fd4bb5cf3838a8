"""Milliseconds a step over nodes, context and batch, for a model of a given shape with random weights.

    python benchmarks/step_latency.py --device cuda [-o benchmarks/results/step_latency-h100.json]
    python benchmarks/step_latency.py --shape small --contexts 128,512 --batches 1,4 --nodes 0,8,64   # a CPU, two minutes

Sizes take turns within a round; medians and quartiles over rounds. Beside each step's time: its ratio to a step without a
tree; the share of the device's copy bandwidth, measured here, that its bytes (weights and heads read once, the KV cache read
once) come to; and attention alone against the time that reading the KV cache takes at that bandwidth. Where there is a GPU,
also the share of the time in which no kernel runs. transformers' generate with a static cache (compiled on a GPU) has its
own line. Random weights accept almost nothing, so compaction moves nothing; the step is otherwise that of decoding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, logging

from medusa_runtime import InputError, MedusaHeads, MedusaModel
from medusa_runtime.acceptance.rules import GREEDY
from medusa_runtime.attention import AttentionContext
from medusa_runtime.attention.function import tree_attention
from medusa_runtime.buffers import BookBuffers
from medusa_runtime.decode import prefill
from medusa_runtime.graph import Step, stepper
from medusa_runtime.model import DTYPES, pick_device
from medusa_runtime.step import State
from medusa_tree.devices.measure import synchronize
from medusa_tree.devices.shape import shape_of
from medusa_tree.devices.sizes import bushy_tree

SHAPES = {
    "llama-2-7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "small": {
        "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 4096,
    },
}  # fmt: skip
CANDIDATES = 10  # a head's; as deep a tree as there are heads


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Of one call, when so many are launched behind each other."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (time.perf_counter() - begin) / repeats


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of the best of twenty copies of 1 GiB (on a CPU a quarter of that)."""
    source = torch.zeros((1 << 30) if device.type == "cuda" else (1 << 28), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(seconds(lambda: target.copy_(source), device) for _ in range(20))


def random_model(shape: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=1 << 15)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def filled(model: MedusaModel, batch: int, context: int, room: int) -> State:
    """A batch whose cache holds ``context`` random tokens a sequence, without the pass that would have made them."""
    state = prefill(model, [[1]] * batch, context + room)
    with torch.inference_mode():
        for layer in state.cache.layers:
            for rows in (layer.keys, layer.values):
                rows[:, :, :context].normal_()
        state.cache.slots.set_lengths([context] * batch)
    return state


def time_steps(runs: dict[int, Step], state: State, context: int, rounds: int, burst: int) -> dict[int, np.ndarray]:
    """Seconds a step, by nodes: one figure a round, of a burst of steps launched behind each other as decoding does."""
    taken: dict[int, list[float]] = {n: [] for n in runs}
    rng = np.random.default_rng(0)
    for _ in range(rounds + 1):
        for n in rng.permutation(list(runs)):
            state.cache.slots.set_lengths([context] * len(state.root))
            taken[n].append(seconds(runs[n], state.root.device, burst))
    return {n: np.array(t[1:]) for n, t in taken.items()}  # the first round is not counted


@torch.inference_mode()
def time_attention(model: MedusaModel, state: State, tree: BookBuffers) -> float:
    """Seconds of tree attention over all layers, each over its own keys and values, without the rest of the step."""
    config, batch, device = model.base.config, len(state.root), model.device
    width = config.hidden_size // config.num_attention_heads
    query = torch.randn(
        batch, tree.nodes + 1, config.num_attention_heads, width, dtype=model.dtype, device=device
    ).transpose(1, 2)
    end = state.cache.slots.in_use(tree.nodes + 1)

    def all_layers() -> None:
        context = AttentionContext(state.cache.slots, tree.trees[0].mask)
        for layer in state.cache.layers:
            tree_attention(model, query, layer.keys[:, :, :end], layer.values[:, :, :end], None, tree_context=context)

    run: Callable[[], object] = all_layers
    all_layers()
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_layers()
        run = graph.replay
    return min(seconds(run, device, 5) for _ in range(5))


@torch.inference_mode()
def idle_share(run: Step, device: torch.device, steps: int) -> float | None:
    """Of a GPU's time over some steps, the share in which no kernel and no copy runs."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            run()
        synchronize(device)
    spans = sorted((e.time_range.start, e.time_range.end) for e in profile.events() if e.device_type.name == "CUDA")
    busy, reached = 0.0, spans[0][0]
    for begin, end in spans:
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - spans[0][0])


@torch.inference_mode()
def time_transformers(base: PreTrainedModel, batch: int, context: int, new: int) -> float:
    """Seconds a token of transformers' greedy generate with a static cache: what ``new`` tokens more take, over them."""
    ids = torch.randint(0, base.config.vocab_size, (batch, context), device=base.device)

    def run(tokens: int) -> float:
        return seconds(
            lambda: base.generate(
                ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False,
                cache_implementation="static", pad_token_id=0,
            ),
            base.device,
        )  # fmt: skip

    for tokens in (8, 8 + new):  # compiled, captured
        run(tokens)
    return float(np.median([run(8 + new) for _ in range(3)]) - np.median([run(8) for _ in range(3)])) / new


def show(points: list[dict[str, Any]]) -> None:
    table = Table("batch", "context", "nodes", "ms", "quartiles", "x plain", "bandwidth", "attention / KV read", "idle")
    for p in points:
        if "ms" not in p:
            table.add_row(str(p["batch"]), str(p["context"]), "", p["skipped"])
            continue
        idle = "" if p["idle_share"] is None else f"{p['idle_share']:.1%}"
        table.add_row(
            str(p["batch"]), str(p["context"]), str(p["nodes"]), f"{p['ms']:.3f}", f"{p['low']:.3f} to {p['high']:.3f}",
            f"{p['ratio']:.3f}", f"{p['bandwidth_share']:.0%}", f"{p['attention_over_kv_read']:.2f}", idle,
        )  # fmt: skip
    Console(stderr=True, width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--nodes", type=numbers, default=[0, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--contexts", type=numbers, default=[128, 2048, 8192])
    parser.add_argument("--batches", type=numbers, default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--burst", type=int, default=8, help="steps a figure")
    parser.add_argument("--compile", action="store_true", help="compile the pass over a tree")
    parser.add_argument("--no-transformers", action="store_true", help="leave transformers' generate out")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    device, dtype = pick_device(args.device), DTYPES[args.dtype]
    torch.manual_seed(0)
    bandwidth = copy_bandwidth(device)
    base = random_model(args.shape, dtype, device)
    plain_way: dict[tuple[int, int], float | None] = {}
    for batch in args.batches if not args.no_transformers else []:
        for context in args.contexts:
            try:
                plain_way[batch, context] = 1e3 * time_transformers(base, batch, context, 32)
            except torch.OutOfMemoryError:
                plain_way[batch, context] = None
            if device.type == "cuda":
                torch.cuda.empty_cache()
    heads = MedusaHeads(base.config.hidden_size, base.config.vocab_size, args.heads, dtype=dtype, device=device)
    model = MedusaModel(base, heads, name=args.shape)
    if args.compile:
        model.compile()
    shape, size = shape_of(model), dtype.itemsize
    nodes = sorted({0, *args.nodes})
    trees = {n: BookBuffers.of(bushy_tree(n, min(n, args.heads), CANDIDATES), device) for n in nodes}
    points: list[dict[str, Any]] = []
    for batch in args.batches:
        for context in args.contexts:
            here = {"batch": batch, "context": context}
            state, runs = None, {}
            if device.type == "cuda":
                torch.cuda.empty_cache()
            room = max(nodes) + 1 + (args.burst + 3) * (args.heads + 1)
            try:
                state = filled(model, batch, context, room)
                for n, tree in trees.items():
                    runs[n] = stepper(model, state, tree, GREEDY, runs.values())
                times = time_steps(runs, state, context, args.rounds, args.burst)
            except InputError as error:
                points.append({**here, "skipped": str(error)})
                continue
            for n in nodes:
                low, median, high = np.percentile(times[n], [25, 50, 75])
                kv = size * shape.kv_values * batch * (context + n + 1)
                weights = size * (shape.layer_params + shape.output_params + min(n, args.heads) * shape.head_params)
                state.cache.slots.set_lengths([context] * batch)
                points.append(
                    {
                        **here, "nodes": n, "ms": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high,
                        "ratio": median / float(np.median(times[0])), "bytes": int(weights + kv),
                        "bandwidth_share": (weights + kv) / median / bandwidth,
                        "attention_over_kv_read": time_attention(model, state, trees[n]) * bandwidth / kv,
                        "idle_share": idle_share(runs[n], device, args.burst),
                        "transformers_static_ms": plain_way.get((batch, context)) if n == 0 else None,
                    }
                )  # fmt: skip
    show(points)
    record(
        "step_latency", model, args.out, shape=args.shape, heads=args.heads, compiled=args.compile,
        copy_bandwidth_gb_s=bandwidth / 1e9, triton=model.triton, graphs=model.graphs, points=points,
    )  # fmt: skip


if __name__ == "__main__":
    main()
