"""The one attention function that transformers calls: Triton where the cache is Triton's to fill, else SDPA."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ..errors import InputError
from . import sdpa
from .context import TREE_ATTENTION, AttentionContext

MAX_NODES = 1024  # of a tree that the Triton kernel is tested for


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree_context: AttentionContext | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the accepted prefix and the tree, in the form transformers calls attention functions.

    Prompts go through SDPA on every device. So does what the kernel does not take: head sizes above 256, keys and values of
    different sizes, other dtypes than bfloat16, float16 and float32.

    Args:
        query: (B, Hq, Q, D) the tree's tokens, root first.
        key, value: (B, Hkv, S, D) the cache's slots that may be in use, the new tokens' included.
        attention_mask: ignored; ``tree_context`` says what is visible.

    Returns:
        ((B, Q, Hq, D), None).

    Raises:
        InputError: no context, attention sinks, or a tree larger than the kernel takes.
    """
    if tree_context is None:
        raise InputError(f"attention {TREE_ATTENTION!r} was called without tree_context; decode through medusa_runtime")
    if kwargs.get("s_aux") is not None:
        raise InputError("attention sinks (gpt-oss) are not supported by medusa_runtime's tree attention yet")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    slots, tree = tree_context.slots, tree_context.tree
    if tree is not None and slots.triton:
        from . import triton_tree

        if query.shape[2] > MAX_NODES + 1:
            raise InputError(
                f"the tree has {query.shape[2] - 1} nodes and the CUDA kernel takes {MAX_NODES}; cut it with --max-nodes {MAX_NODES}"
            )
        if triton_tree.takes(query, key, value):
            mask, lengths = tree.on(query.device), slots.lengths_on(query.device)
            out = triton_tree.attend(query, key, value, lengths, mask.depths, mask.bits, scale, sliding_window, softcap)
            return out, None
    return sdpa.attend(query, key, value, tree_context, scale, sliding_window, softcap), None


def triton_serves(device: torch.device) -> bool:
    """Whether a device is one for the Triton kernels, and Triton is installed."""
    return device.type == "cuda" and find_spec("triton") is not None


def register() -> None:
    """Make ``attn_implementation="medusa_tree"`` known to transformers. No mask function goes with it, so that
    transformers builds no mask of its own."""
    AttentionInterface.register(TREE_ATTENTION, tree_attention)
