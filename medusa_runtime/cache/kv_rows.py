"""Triton kernels that move rows of the KV cache: new tokens in, accepted tokens together.

A row is one token's keys or values of one head. Rows are moved as integers of their width: the dtype does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def append_kernel(
    key, value, key_cache, value_cache, lengths, k_batch, k_head, k_row, v_batch, v_head, v_row,
    c_batch, c_head, d_batch, d_head, KEY: tl.constexpr, VALUE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """New token ``q`` of sequence ``b``, one head, keys and values, to slot lengths[b] + q. Grid (M, heads, B)."""
    q, head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    slot = tl.load(lengths + batch) + q
    column = tl.arange(0, BLOCK)
    k = tl.load(key + batch * k_batch + head * k_head + q * k_row + column, mask=column < KEY)
    v = tl.load(value + batch * v_batch + head * v_head + q * v_row + column, mask=column < VALUE)
    tl.store(key_cache + batch * c_batch + head * c_head + slot * KEY + column, k, mask=column < KEY)
    tl.store(value_cache + batch * d_batch + head * d_head + slot * VALUE + column, v, mask=column < VALUE)


@triton.jit
def keep_kernel(
    table, path, lengths, accepted, heads, capacity, path_row, WORD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The accepted path's rows of one head of one tensor to behind the prefix. Grid (tensors, heads, B), one warp each.

    A path's node numbers grow, and node i stands at or behind place i: moved in the path's order, no row is overwritten
    that is still to be read, and each lane moves its own columns, so source and target may overlap.
    """
    tensor, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.load(table + tensor).to(tl.pointer_type(WORD))
    rows += ((batch * heads + head) * capacity + tl.load(lengths + batch)) * WIDTH
    column = tl.arange(0, BLOCK)
    for place in range(1, tl.load(accepted + batch).to(tl.int32) + 1):
        node = tl.load(path + batch * path_row + place)
        row = tl.load(rows + node * WIDTH + column, mask=column < WIDTH)
        tl.store(rows + place * WIDTH + column, row, mask=column < WIDTH)


def launching_on(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, and a model's layers may lie on several. A compiled pass has one."""
    return nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(tensor)


def append(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, lengths: Tensor) -> None:
    """Write M new tokens of every sequence behind its accepted ones, in one launch.

    Args:
        key, value: (B, H, M, D) of any strides, the last 1.
        key_cache, value_cache: (B, H, capacity, D) contiguous, of the same dtype.
        lengths: (B,) int64, accepted tokens a sequence, on the device. The caller has seen to it that they fit.
    """
    batch, heads, new, width = key.shape
    with launching_on(key_cache):
        append_kernel[(new, heads, batch)](
            key, value, key_cache, value_cache, lengths, *key.stride()[:3], *value.stride()[:3],
            *key_cache.stride()[:2], *value_cache.stride()[:2], KEY=width, VALUE=value.shape[-1],
            BLOCK=triton.next_power_of_2(max(width, value.shape[-1])), num_warps=1,
        )  # fmt: skip


def tables(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The tensors by device, shape and dtype: the addresses of each kind (tensors,) int64 on its device, and one of them;
    what :func:`keep` moves rows in."""
    kinds: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.shape, tensor.dtype), []).append(tensor)
    return [
        (torch.tensor([t.data_ptr() for t in kind], dtype=torch.int64, device=kind[0].device), kind[0])
        for kind in kinds.values()
    ]


def keep(table: Tensor, like: Tensor, path: Tensor, lengths: Tensor, accepted: Tensor) -> None:
    """Move the accepted tokens' rows together, behind the accepted prefix, in all tensors of ``table`` in one launch.

    Args:
        table: (tensors,) int64 addresses of contiguous tensors (B, H, capacity, D), all of the shape and dtype of ``like``.
        path: (B, D + 1) int64 node numbers from the root to the deepest accepted node, then anything.
        lengths: (B,) int64 accepted tokens before the tree.
        accepted: (B,) int64, how many of the path's nodes behind the root stand.
    """
    batch, heads, capacity, width = like.shape
    with launching_on(like):
        keep_kernel[(len(table), heads, batch)](
            table, path, lengths, accepted, heads, capacity, path.stride(0),
            WORD=getattr(tl, f"int{8 * like.element_size()}"), WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=1,
        )  # fmt: skip
