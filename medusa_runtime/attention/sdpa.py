"""Tree attention by PyTorch's scaled dot product attention, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .context import AttentionContext


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context: AttentionContext,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of the Q new tokens of each sequence over its accepted prefix and its tree, or of prompts over themselves.

    Args:
        query: (B, Hq, Q, D).
        key, value: (B, Hkv, S, D), the cache's slots that may be in use, the new tokens' included.
        window: a token sees only those less than so many positions before it.
        softcap: logit soft-capping (Gemma-2), which SDPA has no argument for: computed by hand.

    Returns:
        (B, Q, Hq, D).
    """
    batch, heads, queries, width = query.shape
    group = heads // key.shape[1]
    if context.tree is None:
        key, value = key[:, :, :queries], value[:, :, :queries]
        if softcap is None and (window is None or window >= queries):
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=group > 1)
            return out.transpose(1, 2).contiguous()
    # The query heads that share a key head are so many more rows for it: keys and values are never repeated.
    rows = query.reshape(batch, key.shape[1], group * queries, width)
    mask = context.mask(queries, key.shape[2], window, group, query.dtype, query.device)
    # PyTorch's CPU kernel for half precision is slow on single rows; two matrix products, keys first, are not.
    single_rows = query.device.type == "cpu" and query.dtype != torch.float32 and rows.shape[2] == 1
    if softcap is not None or single_rows:
        scores = torch.matmul(key, rows.transpose(2, 3)).transpose(2, 3) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores if mask is None else scores + mask
        out = torch.matmul(F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype), value)
    else:
        out = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scale)
    return out.reshape(batch, -1, queries, value.shape[-1]).transpose(1, 2).contiguous()
