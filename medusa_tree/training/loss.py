"""Losses that never hold all heads' logits: H x tokens x vocabulary is what runs out of memory first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medusa_runtime.heads.heads import MedusaHeads

IGNORE = -100  # a label that is not to be predicted
CHUNK = 1024  # (head, token) pairs whose logits are alive at once
TOGETHER = 8  # chunks whose gradients are summed in autocast's dtype


def head_targets(labels: Tensor, heads: int) -> Tensor:
    """(H, B, S): what head k is to guess from position s: the label at s + 1 + k; IGNORE where there is none.

    Args:
        labels: (B, S) token ids, IGNORE where a token was not the model's to write.
    """
    targets = labels.new_full((heads, *labels.shape), IGNORE)
    for k in range(1, heads + 1):
        if labels.shape[1] > 1 + k:
            targets[k - 1, :, : -(1 + k)] = labels[:, 1 + k :]
    return targets


def autocast_weights(heads: MedusaHeads) -> dict[str, Tensor]:
    """Copies of the heads' weights in autocast's dtype, by name; none where autocast is off.

    Made once for all chunks: autocast itself casts all of them anew for each, and again when it is made for its gradient.
    """
    kind = heads.block_weight.device.type
    if not torch.is_autocast_enabled(kind):
        return {}
    dtype = torch.get_autocast_dtype(kind)
    return {name: p.detach().to(dtype) for name, p in heads.named_parameters()}


class _StandIn(torch.autograd.Function):
    """A weight's copy in another dtype, whose gradient goes to the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype), None


def head_losses(
    heads: MedusaHeads,
    hidden: Tensor,
    targets: Tensor,
    rows: Tensor | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """(H,) summed cross-entropy of each head in nats, in float32.

    Tokens are taken some at a time, all heads at once in one batched product; a chunk's logits are made, used and
    dropped, and made again for its gradient (activation checkpointing), so that memory is that of one chunk. Under autocast
    the weights' gradients are summed in its dtype over TOGETHER chunks, and over all in the weights' own.

    Args:
        hidden: (T, d).
        targets: (H, T) token ids or IGNORE.
        rows: (V,) the row of each token in a reduced vocabulary, IGNORE for those left out; None: rows are tokens.
        chunk: (head, token) pairs at once.
    """
    if rows is not None:
        targets = torch.where(targets == IGNORE, IGNORE, rows[targets.clamp(min=0)])
    tokens = targets.shape[1]
    step = max(1, chunk // heads.num_heads)
    copies = autocast_weights(heads)

    def of_chunk(x: Tensor, y: Tensor, weights: dict[str, Tensor]) -> Tensor:
        logits = functional_call(heads, weights, x).float()
        each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORE, reduction="none")
        return each.view(heads.num_heads, -1).sum(dim=1)

    total = hidden.new_zeros(heads.num_heads, dtype=torch.float32)
    for i in range(0, max(1, tokens), step):  # of no tokens one empty chunk: a loss always has a graph
        if i % (TOGETHER * step) == 0:
            weights = {name: _StandIn.apply(heads.get_parameter(name), copy) for name, copy in copies.items()}
        x, y = hidden[i : i + step], targets[:, i : i + step]
        needs = torch.is_grad_enabled()
        total = total + (checkpoint(of_chunk, x, y, weights, use_reentrant=False) if needs else of_chunk(x, y, weights))
    return total


def base_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed next-token cross-entropy: logits (B, S, V), labels (B, S)."""
    flat = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")


def distillation_loss(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Summed KL(teacher || model) over the positions whose next label counts (§2.3.2); all (B, S, V)."""
    counts = labels[:, 1:].flatten() != IGNORE
    ours = F.log_softmax(logits[:, :-1].flatten(0, 1)[counts].float(), dim=-1)
    theirs = F.log_softmax(teacher[:, :-1].flatten(0, 1)[counts].float(), dim=-1)
    return F.kl_div(ours, theirs, reduction="sum", log_target=True)
