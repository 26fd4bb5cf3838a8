"""Profile: the model's own output on the prompts, greedy or sampled, and every head's rank for every token of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medusa_runtime.acceptance.rules import GREEDY, Rule
from medusa_runtime.buffers import TreeBuffers
from medusa_runtime.decode import check_context, prefill, stop_tokens, unsound
from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel
from medusa_runtime.step import State, propose, step
from medusa_runtime.tree import CandidateTree

from ..progress import Progress
from ..traces.table import MISS
from ..traces.trace import RankTrace


@torch.inference_mode()
def profile(
    model: MedusaModel,
    prompts: Sequence[Sequence[int]],
    held_out: Sequence[bool] | npt.NDArray[np.bool_],
    max_new_tokens: int = 128,
    candidates: int = 10,
    batch_size: int = 128,
    progress: Progress = lambda done: None,
    rule: Rule = GREEDY,
) -> RankTrace:
    """Rank trace of the model's own text: greedy, or when sampling, prompt i drawn from stream i.

    Prompts are decoded in batches with the runtime's plain step, keeping each step's last hidden state; then all
    heads rank all tokens from those states in a few large products.

    Args:
        prompts: S lists of token ids.
        held_out: (S,) sequences to keep from fitting.
        max_new_tokens: positions a sequence, fewer where the model ends it.
        candidates: K, ranks kept a head.
        rule: how the text is made; under typical acceptance ranks are not enough, see :mod:`medusa_tree.profiling.probe`.

    Raises:
        InputError: prompt and new tokens exceed the model's context, or logits that are NaN or infinite.
    """
    heads = model.medusa_heads
    longest, ahead = max(map(len, prompts)), heads.num_heads
    if model.max_context is not None and longest + max_new_tokens + ahead > model.max_context:
        raise InputError(
            f"a prompt of {longest} tokens, {max_new_tokens} new ones and {ahead} looked ahead exceed the {model.max_context} positions of {model.name}"
        )
    check_context(model, prompts, max_new_tokens + ahead)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths share a batch: less padding
    ranks: list[npt.NDArray[np.int16] | None] = [None] * len(prompts)
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        hidden, tokens, lengths = _decode(model, [prompts[i] for i in batch], max_new_tokens, rule, batch)
        own = ranks_of(model, hidden, tokens, lengths, candidates)
        for row, i in enumerate(batch):
            ranks[i] = own[row, : min(lengths[row], max_new_tokens)]
        progress(len(batch))
    return RankTrace.from_sequences([r for r in ranks if r is not None], list(held_out), candidates, rule)


def _decode(
    model: MedusaModel, prompts: list[Sequence[int]], max_new_tokens: int, rule: Rule, streams: Sequence[int]
) -> tuple[Tensor, Tensor, list[int]]:
    """Plain decoding, H tokens beyond the end so that the last position's heads can be judged too.

    Returns:
        hidden (T, B, d), the state each token was decided from; tokens (T, B); and each sequence's length, at
        most T, its end token included.
    """
    total = max_new_tokens + model.num_heads
    plain = TreeBuffers.of(CandidateTree(), model.device)
    stops = torch.tensor(sorted(stop_tokens(model, None)), dtype=torch.int64, device=model.device)
    state: State = prefill(model, prompts, max(map(len, prompts)) + total, static=True, rule=rule, streams=streams)
    hidden, tokens = [], []
    ended, broken = (torch.zeros_like(state.root, dtype=torch.bool) for _ in range(2))
    for _ in range(total):
        hidden.append(state.hidden.clone())
        tokens.append(state.root.clone())
        ended |= torch.isin(state.root, stops)
        if len(stops) and bool(ended.all()):
            break
        broken |= step(model, state, plain, rule)[1] < 0
    if bool(broken.any()):
        raise unsound(model)
    stacked = torch.stack(tokens)
    is_end = torch.isin(stacked, stops)
    first_end = torch.where(is_end.any(dim=0), is_end.int().argmax(dim=0), len(stacked) - 1)
    return torch.stack(hidden), stacked, (first_end + 1).tolist()


def ranks_of(
    model: MedusaModel, hidden: Tensor, tokens: Tensor, lengths: list[int], candidates: int, chunk: int = 1024
) -> npt.NDArray[np.int16]:
    """(B, T, H) rank of tokens[t + k] in head k's proposal from hidden[t]; MISS behind a sequence's end.

    The proposal is the runtime's own (top-k, ties and all), so a rank here is a rank there.
    """
    heads = model.medusa_heads
    steps, batch, width = hidden.shape
    kept = min(candidates, heads.rows)
    flat = hidden.reshape(-1, width)
    proposals = torch.cat(
        [propose(heads, flat[i : i + chunk], heads.num_heads, kept) for i in range(0, len(flat), chunk)], dim=1
    )
    proposals = proposals.view(heads.num_heads, steps, batch, kept)
    ranks = np.full((batch, steps, heads.num_heads), MISS, dtype=np.int16)
    inside = torch.arange(steps, device=tokens.device)[:, None] < torch.tensor(lengths, device=tokens.device)
    for k in range(1, heads.num_heads + 1):
        if k >= steps:
            break
        hits = proposals[k - 1, :-k] == tokens[k:, :, None]
        hits &= inside[k:, :, None]
        rank = torch.where(hits.any(dim=-1), hits.int().argmax(dim=-1), MISS)
        ranks[:, : steps - k, k - 1] = rank.T.cpu().numpy()
    return ranks
