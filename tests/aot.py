"""Compile the Triton kernels ahead of time for GPUs that are not here, and trace a pass that calls them as torch.compile does;
prints the shared memory that each kernel takes, and how many the pass calls, as JSON."""

import json

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from medusa_runtime.attention import triton_tree
from medusa_runtime.cache import kv_rows

POINTERS = {
    "partial": "*fp32", "lse": "*fp32", "lengths": "*i64", "depths": "*i64", "bits": "*i32", "path": "*i64",
    "accepted": "*i64", "table": "*i64",
}  # fmt: skip
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
TENSORS = ("query", "key", "value", "out", "key_cache", "value_cache")


def compile_for(kernel, architecture: int, dtype: torch.dtype, constants: dict, options: dict) -> int:
    """Bytes of shared memory that the kernel takes a block, once compiled to machine code."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in TENSORS:
            signature[name] = TYPES[dtype]
        else:
            signature[name] = POINTERS.get(name) or ("fp32" if name in ("scale", "softcap") else "i32")
    aligned = [
        i for i, n in enumerate(kernel.arg_names) if n in TENSORS or n.endswith(("_batch", "_head", "_row", "_slot"))
    ]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    if not compiled.asm["cubin"]:
        raise RuntimeError("no machine code came out")
    return compiled.metadata.shared


def tree_attention(dtype: torch.dtype, width: int, rows: int, **constants) -> tuple[dict, dict]:
    tile = triton_tree.tiles(rows, width, dtype)
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    return {"WIDTH": width, **constants, **tile}, options


class Traced(Exception):
    """The pass was traced whole; where there is no GPU it goes no further."""


def kernels_in_a_compiled_pass(of_a_book: bool) -> int:
    """Triton kernels in the one graph that torch.compile's tracer makes of a tiny model's pass over a tree, or over a tree a sequence."""
    import torch.utils._triton
    from conftest import BUSHY, tiny_model

    from medusa_runtime import CandidateTree, Lookup, TreeBook
    from medusa_runtime.acceptance.rules import GREEDY
    from medusa_runtime.buffers import BookBuffers
    from medusa_runtime.decode import prefill
    from medusa_runtime.step import device_step

    torch.utils._triton.has_triton = lambda: True  # the tracer asks whether a device runs Triton: none here does
    graphs = []

    def take(graph, example_inputs):
        graphs.append(graph)
        raise Traced

    model = tiny_model("gemma2")
    book = TreeBook((BUSHY, CandidateTree((), 40)), (0, 1), Lookup()) if of_a_book else BUSHY
    state = prefill(model, [[5, 6, 7, 5], [8, 9]], 64)
    state.cache.slots.triton = state.cache.slots.fixed = state.cache.slots.static = True
    model.triton = True
    model.graphs = of_a_book  # the device picks
    model.compile(backend=take, fullgraph=True)
    try:
        with torch.inference_mode():
            device_step(model, state, BookBuffers.of(book, model.device), GREEDY)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if not isinstance(error.inner_exception, Traced):
            raise
    return sum("triton_kernel" in str(node.target) for graph in graphs for node in graph.graph.nodes)


def main() -> None:
    import triton.language as tl

    shared = {}
    plain = {"GROUP": 1, "SPLITS": 8, "WINDOW": False, "SOFTCAP": False}
    grouped = {"GROUP": 4, "SPLITS": 1, "WINDOW": True, "SOFTCAP": True}
    llama = (torch.bfloat16, 128, 65, plain)
    one = {"queries": 1, "words": 1, "key_heads": 1}  # Triton makes constants of arguments that are 1
    cases = {
        80: [
            llama,
            (torch.bfloat16, 128, 1, {**plain, **one}),
            (torch.bfloat16, 256, 260, grouped),
            (torch.float32, 64, 8, grouped),
            (torch.float32, 128, 65, plain),
            (torch.float32, 256, 65, grouped),
        ],
        90: [llama, (torch.float16, 80, 1, plain), (torch.bfloat16, 256, 8, grouped)],
        100: [llama],
    }
    for architecture, own in cases.items():
        for dtype, width, rows, constants in own:
            made = tree_attention(dtype, width, rows, **constants)
            shared[f"sm_{architecture} tree {dtype} {width} x {rows}"] = compile_for(
                triton_tree.tree_kernel, architecture, dtype, *made
            )
        combine = {"WIDTH": 80, "SPLITS": 9, "BLOCK_S": 16, "BLOCK_D": 128}
        shared[f"sm_{architecture} combine"] = compile_for(
            triton_tree.combine_kernel, architecture, torch.bfloat16, combine, {}
        )
        append = {"KEY": 128, "VALUE": 128, "BLOCK": 128}
        shared[f"sm_{architecture} append"] = compile_for(
            kv_rows.append_kernel, architecture, torch.bfloat16, append, {"num_warps": 1}
        )
        keep = {"WORD": tl.int16, "WIDTH": 128, "BLOCK": 128}
        shared[f"sm_{architecture} keep"] = compile_for(
            kv_rows.keep_kernel, architecture, torch.bfloat16, keep, {"num_warps": 1}
        )
    calls, of_a_book = (kernels_in_a_compiled_pass(of_a_book) for of_a_book in (False, True))
    print(json.dumps({"shared": shared, "calls": calls, "calls_of_a_book": of_a_book}))


if __name__ == "__main__":
    main()
