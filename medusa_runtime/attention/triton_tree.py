"""Tree attention in Triton: split-KV flash decoding over the cached prefix and the candidate tree.

All M tree tokens of all query heads that share a key head are the rows of one tile, so that keys and values are read
once for all of them (flash decoding: Dao et al., 2023, https://pytorch.org/blog/flash-decoding). A sequence's slots are
cut into ``splits`` runs of blocks, worked out on the device from its length; each run leaves a partial softmax, and a
second kernel joins them. Whole blocks of the prefix carry no mask; among the new tokens one bit a pair says who sees whom.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cache.kv_rows import launching_on

MAX_WIDTH = 256  # of a head; widths that are no power of two are padded in registers, not in memory
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def _scores(q, k, scale, softcap, SOFTCAP: tl.constexpr):
    """Logits in base 2, so that the softmax takes exp2. Float32 stays float32: TF32 would change the text."""
    scores = tl.dot(q, k, input_precision="ieee") * scale
    if SOFTCAP:
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)  # softcap * tanh(scores / softcap)
    return scores * 1.4426950408889634  # log2(e)


@triton.jit
def _accumulate(acc, top, total, scores, v):
    """One block more of the running softmax (Milakov and Gimelshein, arXiv 1805.02867)."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return acc, new_top, total


@triton.jit
def tree_kernel(
    query, key, value, out, partial, lse, lengths, depths, bits, scale, softcap,
    q_batch, q_head, q_row, k_batch, k_head, k_slot, v_batch, v_head, v_slot,
    queries, key_heads, window, words, next_depths, next_bits,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of rows against one run of slots of one key head of one sequence.

    Row r is tree token r % queries of the group's query head r // queries.
    """
    tile, split, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (pair // key_heads).to(tl.int64), (pair % key_heads).to(tl.int64)
    length = tl.load(lengths + batch).to(tl.int32)
    depths, bits = depths + batch * next_depths, bits + batch * next_bits  # of this sequence's tree

    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real = row < GROUP * queries
    token, query_head = row % queries, head * GROUP + row // queries
    column = tl.arange(0, BLOCK_D)
    inside = column < WIDTH
    q = tl.load(
        query + batch * q_batch + query_head[:, None] * q_head + token[:, None] * q_row + column[None, :],
        mask=real[:, None] & inside[None, :], other=0.0,
    )  # fmt: skip
    depth = tl.load(depths + token).to(tl.int32)

    # This split's run of blocks: an even share of those that hold anything visible, of this sequence's own length.
    first = 0
    if WINDOW:
        first = tl.maximum(length - window + 1, 0) // BLOCK_N  # the root reaches back furthest
    last = tl.cdiv(length + queries, BLOCK_N)
    share = tl.cdiv(last - first, SPLITS)
    begin = first + split * share
    end = tl.minimum(begin + share, last)
    whole = length // BLOCK_N  # blocks before this one hold accepted tokens only

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], -1e30, tl.float32)  # finite: a row may see nothing of a block
    total = tl.zeros([BLOCK_M], tl.float32)
    keys = key + batch * k_batch + head * k_head + column[:, None]
    values = value + batch * v_batch + head * v_head + column[None, :]

    for block in range(begin, tl.minimum(end, whole)):
        slot = block * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.load(keys + slot[None, :].to(tl.int64) * k_slot, mask=inside[:, None], other=0.0)
        scores = _scores(q, k, scale, softcap, SOFTCAP)
        if WINDOW:
            scores = tl.where(length + depth[:, None] - slot[None, :] < window, scores, float("-inf"))
        v = tl.load(values + slot[:, None].to(tl.int64) * v_slot, mask=inside[None, :], other=0.0)
        acc, top, total = _accumulate(acc, top, total, scores, v)

    for block in range(tl.maximum(begin, whole), end):
        slot = block * BLOCK_N + tl.arange(0, BLOCK_N)
        new = slot - length  # which new token a slot holds; negative: an accepted one
        used = new < queries
        k = tl.load(keys + slot[None, :].to(tl.int64) * k_slot, mask=inside[:, None] & used[None, :], other=0.0)
        scores = _scores(q, k, scale, softcap, SOFTCAP)
        among = (new >= 0) & used
        place = tl.where(among, new, 0)
        word = tl.load(bits + token[:, None] * words + (place // 32)[None, :], mask=among[None, :], other=0)
        visible = (new < 0)[None, :] | (((word >> (place % 32)[None, :]) & 1) != 0) & among[None, :]
        if WINDOW:
            position = tl.where(among, tl.load(depths + place, mask=among, other=0).to(tl.int32), new)  # from the root
            visible = visible & (depth[:, None] - position[None, :] < window)
        scores = tl.where(visible, scores, float("-inf"))
        v = tl.load(values + slot[:, None].to(tl.int64) * v_slot, mask=used[:, None] & inside[None, :], other=0.0)
        acc, top, total = _accumulate(acc, top, total, scores, v)

    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    line = (batch * queries + token) * (key_heads * GROUP) + query_head  # of (B, Q, Hq)
    if SPLITS == 1:
        tl.store(out + line[:, None] * WIDTH + column[None, :], acc.to(out.dtype.element_ty),
                 mask=real[:, None] & inside[None, :])  # fmt: skip
    else:
        line = line * SPLITS + split
        tl.store(partial + line[:, None] * WIDTH + column[None, :], acc, mask=real[:, None] & inside[None, :])
        tl.store(
            lse + line, tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf")), mask=real
        )


@triton.jit
def combine_kernel(
    partial, lse, out, WIDTH: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Join the splits' partial softmaxes of one row, each weighted by its share of the sum."""
    line = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    inside = column < WIDTH
    sums = tl.load(lse + line * SPLITS + split, mask=split < SPLITS, other=float("-inf"))
    weights = tl.exp2(sums - tl.max(sums, 0))  # every row sees itself: the largest is finite
    rows = tl.load(
        partial + (line * SPLITS + split[:, None]) * WIDTH + column[None, :],
        mask=(split < SPLITS)[:, None] & inside[None, :], other=0.0,
    )  # fmt: skip
    joined = tl.sum(rows * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + line * WIDTH + column, joined.to(out.dtype.element_ty), mask=inside)


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel can run these; where not, SDPA does."""
    width = query.shape[-1]
    return (
        query.dtype in DTYPES
        and query.dtype == key.dtype == value.dtype
        and width <= MAX_WIDTH
        and key.shape[-1] == value.shape[-1] == width
        and query.shape[1] % key.shape[1] == 0
        and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    )


def tiles(rows: int, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes for so many rows of a key head: BLOCK_M rows, BLOCK_N slots, BLOCK_D columns; warps, pipeline stages.

    As large as fits two stages of keys and values into the 99 KiB of shared memory that a block has on sm_86, sm_89 and
    sm_120; float32, which no tensor core multiplies exactly, gets small tiles.
    """
    block_d = max(16, triton.next_power_of_2(width))
    exact = dtype == torch.float32
    most = 4096 // block_d if exact else 64 if block_d > 128 else 128
    block_m = min(max(16, triton.next_power_of_2(rows)), most)
    return {
        "BLOCK_M": block_m, "BLOCK_N": 32 if exact or block_d > 128 else 64, "BLOCK_D": block_d,
        "num_warps": 8 if block_m * block_d > 64 * 64 else 4, "num_stages": 2,
    }  # fmt: skip


@torch.compiler.assume_constant_result
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 elsewhere, where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def count_splits(programs: int, slots: int, block_n: int, available: int) -> int:
    """Runs to cut a sequence's slots into, so that two programs stand ready for each of the device's ``available`` processors; no run
    shorter than four blocks, at most 64 runs."""
    return max(1, min(-(-2 * available // programs), slots // (4 * block_n), 64))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    depths: Tensor,
    bits: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    splits: int | None = None,
) -> Tensor:
    """Attention of the M tree tokens of each sequence over its accepted prefix and its tree.

    Args:
        query: (B, Hq, M, D).
        key, value: (B, Hkv, capacity, D), the whole cache; slots 0 .. length + M - 1 of each sequence are read.
        lengths: (B,) int64 on the device: accepted tokens, the tree's stand right behind them.
        depths: (R, M) integer, each token's distance from the root; R is 1 where all sequences have the same tree, else B.
        bits: (R, M, ceil(M / 32)) int32, bit j of row i set where token i may look at token j.
        window: a token sees only those less than so many positions before it.
        softcap: logits become softcap * tanh(logits / softcap).
        splits: runs a sequence's slots are cut into; by default so many as fill the device.

    Returns:
        (B, M, Hq, D), of the query's dtype.
    """
    batch, heads, queries, width = query.shape
    key_heads, capacity = key.shape[1], key.shape[2]
    group = heads // key_heads
    tile = tiles(group * queries, width, query.dtype)
    row_tiles = triton.cdiv(group * queries, tile["BLOCK_M"])
    if splits is None:
        slots = capacity if window is None else min(capacity, window + queries)
        splits = count_splits(row_tiles * batch * key_heads, slots, tile["BLOCK_N"], processors(query.device))
    out = query.new_empty(batch, queries, heads, width)
    lines = batch * queries * heads
    partial = query.new_empty(lines * splits * width if splits > 1 else 1, dtype=torch.float32)
    lse = query.new_empty(lines * splits if splits > 1 else 1, dtype=torch.float32)
    with launching_on(query):
        tree_kernel[(row_tiles, splits, batch * key_heads)](
            query, key, value, out, partial, lse, lengths, depths, bits, scale, softcap or 0.0,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
            queries, key_heads, window or 0, bits.shape[2], *(x.stride(0) if len(x) > 1 else 0 for x in (depths, bits)),
            GROUP=group, WIDTH=width, SPLITS=splits, WINDOW=window is not None, SOFTCAP=softcap is not None, **tile,
        )  # fmt: skip
        if splits > 1:
            combine_kernel[(lines,)](
                partial, lse, out, WIDTH=width, SPLITS=splits,
                BLOCK_S=triton.next_power_of_2(splits), BLOCK_D=tile["BLOCK_D"],
            )  # fmt: skip
    return out
