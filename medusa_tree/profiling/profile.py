"""Profile: the model's own output on the prompts, greedy or sampled, and every head's rank for every token of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from medusa_runtime.acceptance.rules import GREEDY, Rule
from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel
from medusa_runtime.request import check_context
from medusa_runtime.step import propose

from ..progress import Progress
from ..traces.table import MISS
from ..traces.text import Ragged, TraceText
from ..traces.trace import RankTrace
from .memory import batches
from .texts import ROUND, Text, decode_texts

CHUNK = 1024  # states whose proposals are made at once


def profile(
    model: MedusaModel,
    prompts: Sequence[Sequence[int]],
    held_out: Sequence[bool] | npt.NDArray[np.bool_],
    max_new_tokens: int = 128,
    candidates: int = 10,
    batch_size: int = 128,
    progress: Progress = lambda done: None,
    rule: Rule = GREEDY,
    streams: Sequence[int] | None = None,
) -> RankTrace:
    """Rank trace of the model's own text: greedy, or when sampling, prompt i drawn from stream i.

    Prompts are decoded by the runtime's plain step, ``batch_size`` at once, keeping each step's last hidden state; all
    heads rank all tokens of a text from those states in a few large products.

    Args:
        prompts: S lists of token ids.
        held_out: (S,) sequences to keep from fitting.
        max_new_tokens: positions a sequence, fewer where the model ends it.
        candidates: K, ranks kept a head.
        rule: how the text is made; under typical acceptance ranks are not enough, see :mod:`medusa_tree.profiling.probe`.
        streams: a number for each prompt, instead of 0, 1, ...

    Raises:
        InputError: prompt and new tokens exceed the model's context, or logits that are NaN or infinite.
        OutOfMemory: ``batch_size`` is too large.
    """
    numbers = list(range(len(prompts)) if streams is None else streams)
    check_room(model, prompts, max_new_tokens)
    texts: list[list[int]] = [[] for _ in prompts]
    ranks = [np.zeros((0, model.num_heads), dtype=np.int16)] * len(prompts)
    new = max_new_tokens + model.num_heads
    for part in batches(list(map(len, prompts)), new, 1 << 62, batch_size):
        rows, own_streams = [prompts[i] for i in part], [numbers[i] for i in part]
        for ended in decode_texts(model, rows, new, batch_size, rule, own_streams):
            for text, own in zip(ended, ranks_of_texts(model, ended, candidates), strict=True):
                i = part[text.number]
                texts[i], ranks[i] = text.tokens, own[:max_new_tokens]
            progress(len(ended))
    said = TraceText(Ragged.of(prompts), Ragged.of(texts), np.array(numbers, dtype=np.int64))
    return RankTrace.from_sequences(ranks, list(held_out), candidates if model.num_heads else 1, rule, said)


def check_room(model: MedusaModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """InputError where prompts, new tokens and those looked ahead at, so that the last position's heads can be judged, exceed
    the model's context."""
    longest, ahead = max(map(len, prompts)), model.num_heads
    if model.max_context is not None and longest + max_new_tokens + ahead > model.max_context:
        raise InputError(
            f"a prompt of {longest} tokens, {max_new_tokens} new ones and {ahead} looked ahead exceed the {model.max_context} positions of {model.name}"
        )
    check_context(model, prompts, max_new_tokens + ahead)


def ranks_of_texts(model: MedusaModel, texts: Sequence[Text], candidates: int) -> list[npt.NDArray[np.int16]]:
    """(T, H) ranks of each text's tokens, see :func:`ranks_of`."""
    if not texts:
        return []
    targets = np.concatenate([targets_of(text.tokens, model.num_heads) for text in texts])
    ranks = ranks_of(model, torch.cat([text.hidden for text in texts]), targets, candidates)
    return np.split(ranks, np.cumsum([len(text.tokens) for text in texts])[:-1])


def targets_of(tokens: Sequence[int], heads: int) -> npt.NDArray[np.int64]:
    """(T, H): the token that head k is asked for at each position, ``tokens[p + k]``; MISS behind the end."""
    behind = np.concatenate([np.asarray(tokens, dtype=np.int64), np.full(heads, MISS)])
    return np.lib.stride_tricks.sliding_window_view(behind, heads + 1)[:, 1:].copy()


@torch.inference_mode()
def ranks_of(
    model: MedusaModel, hidden: Tensor, targets: npt.NDArray[np.int64], candidates: int
) -> npt.NDArray[np.int16]:
    """(P, H) rank of ``targets[p, k - 1]`` in head k's proposal from ``hidden[p]`` (P, d); MISS where it is not in it.

    The proposal is the runtime's own (top-k, ties and all), so a rank here is a rank there.
    """
    heads = model.heads
    if heads is None:
        return np.zeros((len(hidden), 0), dtype=np.int16)
    kept, count = min(candidates, heads.rows), len(hidden)
    ranks = []
    hidden = F.pad(hidden, (0, 0, 0, -len(hidden) % ROUND))
    targets = np.pad(targets, ((0, len(hidden) - len(targets)), (0, 0)), constant_values=MISS)
    for at in range(0, len(hidden), CHUNK):
        proposals = propose(heads, hidden[at : at + CHUNK], heads.num_heads, kept).transpose(0, 1)  # (chunk, H, K)
        hits = proposals == torch.as_tensor(targets[at : at + CHUNK], device=proposals.device)[..., None]
        ranks.append(torch.where(hits.any(dim=-1), hits.int().argmax(dim=-1), MISS))
    return torch.cat(ranks)[:count].to(torch.int16).cpu().numpy()
