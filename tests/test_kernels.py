"""The Triton kernels: numerics in Triton's interpreter (on a GPU: compiled), and ahead-of-time compilation without one."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import trees
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from medusa_runtime import CandidateTree
from medusa_runtime.attention import TreeMask, triton_tree
from medusa_runtime.cache import kv_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Rounding of inputs aside, which the reference shares: of the softmax weights and of the result; a GPU's exponentials and quotients
# are good to a few units in the last place.
TOLERANCE = {torch.float32: 2e-6 if DEVICE == "cpu" else 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """The interpreter multiplies the bit patterns of bfloat16 as they stand; a tensor core multiplies what they mean."""
    if DEVICE == "cuda":
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, interpreter_builder

    plain = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        a, b = (self.create_fp_ext(x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (a, b))
        return plain(self, a, b, *rest)

    monkeypatch.setattr(type(interpreter_builder), "create_dot", create_dot)


def reference(query, key, value, lengths, tree, scale, window, softcap):
    """Attention as it is defined, in float64: what a sequence's tokens see, written out."""
    batch, heads, queries, _ = query.shape
    group, depths = heads // key.shape[1], torch.as_tensor(tree.depths)
    rows = []
    for b in range(batch):
        length = int(lengths[b])
        k, v = (x[b, :, : length + queries].double().repeat_interleave(group, 0) for x in (key, value))
        scores = query[b].double() @ k.transpose(1, 2) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        visible = torch.cat([torch.ones(queries, length, dtype=torch.bool), torch.as_tensor(tree.ancestors)], dim=1)
        position = torch.cat([torch.arange(length), length + depths])
        if window:
            visible &= (length + depths)[:, None] - position < window
        rows.append((scores.masked_fill(~visible, -math.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.stack(rows)


@st.composite
def problems(draw):
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    width = draw(st.sampled_from([64, 80, 96, 128, 256]))
    return {
        "tree": draw(trees(max_nodes=40)), "dtype": dtype, "width": width, "key_heads": draw(st.integers(1, 2)),
        "group": draw(st.sampled_from([1, 2, 3])), "lengths": draw(st.lists(st.integers(0, 150), min_size=1, max_size=3)),
        "window": draw(st.sampled_from([None, None, 1, 3, 40])), "softcap": draw(st.sampled_from([None, None, 5.0])),
        "splits": draw(st.sampled_from([1, 2, 5])), "seed": draw(st.integers(0, 2**31)),
    }  # fmt: skip


@settings(max_examples=30)
@given(problems())
def test_the_kernel_is_attention(p):
    generator = torch.Generator().manual_seed(p["seed"])
    tree, width, batch = p["tree"], p["width"], len(p["lengths"])
    queries = tree.nodes + 1
    heads, capacity = p["key_heads"] * p["group"], max(p["lengths"]) + queries + 3

    def noise(*shape):
        return torch.randn(shape, generator=generator).to(p["dtype"])

    query = noise(batch, queries, heads, width).transpose(1, 2)  # as models hand it over
    key, value = (noise(batch, p["key_heads"], capacity, width) for _ in range(2))
    lengths = torch.tensor(p["lengths"])
    for x in (key, value):  # what lies behind the tree must not matter, whatever it is
        for b, n in enumerate(p["lengths"]):
            x[b, :, n + queries :] = math.nan
    depths, bits = torch.as_tensor(tree.depths)[None], torch.as_tensor(tree.ancestor_bits)[None]
    assert triton_tree.takes(query, key, value)
    args = (x.to(DEVICE) for x in (query, key, value, lengths, depths, bits))
    got = triton_tree.attend(*args, width**-0.5, p["window"], p["softcap"], p["splits"])
    assert got.dtype == p["dtype"]
    expected = reference(query, key, value, lengths, tree, width**-0.5, p["window"], p["softcap"])
    error = (got.cpu().double() - expected).abs().max()
    assert error <= TOLERANCE[p["dtype"]] * max(1.0, float(expected.abs().max()))


@settings(max_examples=12)
@given(
    st.lists(trees(max_nodes=40), min_size=2, max_size=3), st.lists(st.integers(0, 5), min_size=3, max_size=3),
    st.sampled_from([None, 3]), st.sampled_from([1, 2]), st.data(),
)  # fmt: skip
def test_each_sequence_may_have_a_tree_of_its_own(kinds, chains, window, splits, data):
    """Padded to the largest: rows that are no tree's see the text and themselves."""
    own = [CandidateTree(t.paths, n) for t, n in zip(kinds, chains, strict=False)]
    which = data.draw(st.lists(st.integers(0, len(own) - 1), min_size=2, max_size=4))
    mask = TreeMask.stack([TreeMask.of(t, torch.device("cpu")) for t in own]).rows(torch.tensor(which))
    lengths = torch.tensor([data.draw(st.integers(1, 70)) for _ in which])
    queries, generator = mask.depths.shape[1], torch.Generator().manual_seed(len(which))
    query = torch.randn(len(which), queries, 4, 64, generator=generator).transpose(1, 2)
    key, value = torch.randn(2, len(which), 2, 70 + queries, 64, generator=generator)
    args = (x.to(DEVICE) for x in (query, key, value, lengths, mask.depths, mask.bits))
    got = triton_tree.attend(*args, 0.125, window, None, splits).cpu().double()
    for b in range(len(which)):
        rows = slice(b, b + 1)
        tree = SimpleNamespace(depths=mask.depths[b], ancestors=mask.ancestors[b])
        expected = reference(query[rows], key[rows], value[rows], lengths[rows], tree, 0.125, window, None)
        torch.testing.assert_close(got[rows], expected, rtol=0, atol=TOLERANCE[torch.float32])
        n = own[which[b]].nodes + 1
        assert torch.equal(mask.ancestors[b, :n, :n], torch.as_tensor(own[which[b]].ancestors))


@given(trees(max_nodes=70, depth=8, width=9))
def test_ancestor_bits_are_the_mask(tree):
    bits = tree.ancestor_bits
    rows = tree.nodes + 1
    unpacked = [[bits[i, j // 32] >> (j % 32) & 1 for j in range(rows)] for i in range(rows)]
    assert unpacked == tree.ancestors.astype(int).tolist()


def test_more_rows_than_a_tile_and_a_thousand_nodes():
    """1,024 nodes of 2 query heads a key head: 2,050 rows, 33 words of bits a row."""
    tree = CandidateTree(tuple((a, *rest) for a in range(32) for rest in [(), *((b,) for b in range(31))]))
    assert tree.nodes == 1024
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 1025, 16, generator=generator)
    key, value = torch.randn(2, 1, 1, 1100, 16, generator=generator)
    lengths = torch.tensor([70])
    args = (query, key, value, lengths, torch.as_tensor(tree.depths)[None], torch.as_tensor(tree.ancestor_bits)[None])
    got = triton_tree.attend(*(x.to(DEVICE) for x in args), 0.25)
    expected = reference(query, key, value, lengths, tree, 0.25, None, None)
    torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=TOLERANCE[torch.float32])


def test_splits_fill_the_device_and_are_never_shorter_than_four_blocks():
    assert triton_tree.count_splits(32, 8192, 64, 132) == 9  # 288 programs on 132 processors
    assert triton_tree.count_splits(2048, 8192, 64, 132) == 1
    assert triton_tree.count_splits(8, 300, 64, 132) == 1
    assert triton_tree.count_splits(1, 1 << 20, 64, 132) == 64


@given(trees(max_nodes=20), st.lists(st.integers(0, 9), min_size=1, max_size=3), st.data())
@settings(max_examples=15)
def test_rows_are_appended_and_kept_in_place(tree, lengths, data):
    dtype = data.draw(st.sampled_from(list(TOLERANCE)))
    batch, heads, width, capacity, queries = len(lengths), 2, 20, 32, tree.nodes + 1
    tensors = [torch.randn(batch, heads, capacity, width).to(DEVICE, dtype) for _ in range(6)]
    before = [t.clone() for t in tensors]
    new = [torch.randn(batch, queries, heads, width).to(DEVICE, dtype).transpose(1, 2) for _ in range(2)]
    at = torch.tensor(lengths, device=DEVICE)
    kv_rows.append(*new, tensors[0], tensors[1], at)
    for got, old, rows in zip(tensors, before, new, strict=False):
        for b, n in enumerate(lengths):
            assert torch.equal(got[b, :, n : n + queries], rows[b])
            assert torch.equal(got[b, :, :n], old[b, :, :n])
            assert torch.equal(got[b, :, n + queries :], old[b, :, n + queries :])
    before = [t.clone() for t in tensors]
    best = [data.draw(st.integers(0, tree.nodes)) for _ in lengths]
    path, accepted = torch.as_tensor(tree.retrieval[best]).to(DEVICE), torch.as_tensor(tree.depths[best]).to(DEVICE)
    ((table, like),) = kv_rows.tables(tensors)
    kv_rows.keep(table, like, path, at, accepted)
    for got, old in zip(tensors, before, strict=True):
        for b, n in enumerate(lengths):
            a = int(accepted[b])
            assert torch.equal(got[b, :, : n + 1], old[b, :, : n + 1])
            assert torch.equal(got[b, :, n : n + a + 1], old[b, :, n + path[b, : a + 1]])
            assert torch.equal(got[b, :, n + a + 1 :], old[b, :, n + a + 1 :])


def test_kernels_compile_for_every_architecture_and_within_torch_compile():
    """Down to machine code, and traced whole, without a GPU: in a process of its own, as this one may interpret."""
    script = "import os; os.environ.pop('TRITON_INTERPRET', None)\nfrom aot import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=__file__.rsplit("/", 1)[0], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (
        told["calls"] == told["calls_of_a_book"] == 2 * 2
    )  # rows in and attention, of two layers; splits are joined by a third where there are any
    shared = told["shared"]
    assert {name.split()[0] for name in shared} == {"sm_80", "sm_90", "sm_100"}
    for name, size in shared.items():  # bytes of shared memory a block
        assert size <= (99 if name.startswith("sm_80") else 227) * 1024, (name, size)
