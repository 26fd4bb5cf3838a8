"""Losses that never hold all heads' logits: H x tokens x vocabulary is what runs out of memory first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORE = -100  # a label that is not to be predicted
CHUNK = 1024  # (head, token) pairs whose logits are alive at once


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


def head_losses(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    rows: Tensor | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """(H,) summed cross-entropy of each head in nats, in float32.

    Tokens are taken some at a time, all heads at once in one batched product; a chunk's logits are made, used and
    dropped, and made again for its gradient (activation checkpointing), so that memory is that of one chunk.

    Args:
        logits_of: the heads; hidden (T, d) -> (H, T, R).
        hidden: (T, d).
        targets: (H, T) token ids or IGNORE.
        rows: (V,) the row of each token in a reduced vocabulary, IGNORE for those left out; None: rows are tokens.
        chunk: (head, token) pairs at once.
    """
    if rows is not None:
        targets = torch.where(targets == IGNORE, IGNORE, rows[targets.clamp(min=0)])
    heads, tokens = targets.shape
    step = max(1, chunk // heads)

    def of_chunk(x: Tensor, y: Tensor) -> Tensor:
        logits = logits_of(x).float()
        each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORE, reduction="none")
        return each.view(heads, -1).sum(dim=1)

    total = hidden.new_zeros(heads, dtype=torch.float32)
    for i in range(0, max(1, tokens), step):  # of no tokens one empty chunk: a loss always has a graph
        x, y = hidden[i : i + step], targets[:, i : i + step]
        needs = torch.is_grad_enabled()
        total = total + (checkpoint(of_chunk, x, y, use_reentrant=False) if needs else of_chunk(x, y))
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
