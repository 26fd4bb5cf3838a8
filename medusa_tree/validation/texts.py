"""Two texts of one prompt under the base model: where they part and how near a tie it was there, and how likely each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from medusa_runtime.acceptance.accept import scores
from medusa_runtime.acceptance.rules import GREEDY, Rule, Sampling
from medusa_runtime.attention import AttentionContext
from medusa_runtime.buffers import TreeBuffers
from medusa_runtime.model import MedusaModel
from medusa_runtime.tree import CandidateTree

NEAR_TIE_ULPS = 8.0


@dataclass(frozen=True)
class Difference:
    """Where a tree's text first leaves the plain text: the prompt, the place, and how near a tie it was there.

    gap: between the two tokens' scores in a plain pass: logits, or when sampling those scaled and disturbed as for the draw;
    ulp: the spacing of numbers of the model's dtype at that size. Within ``NEAR_TIE_ULPS`` of them the order of additions
    decides. (Where top-k, top-p or min-p cut a token off in one pass and not in the other, texts part without a tie.)
    """

    prompt: int
    position: int
    gap: float
    ulp: float

    @property
    def near_tie(self) -> bool:
        return self.gap <= NEAR_TIE_ULPS * self.ulp


@torch.inference_mode()
def first_difference(
    model: MedusaModel,
    index: int,
    prompt: Sequence[int],
    plain: Sequence[int],
    other: Sequence[int],
    rule: Rule = GREEDY,
    stream: int = 0,
) -> Difference:
    """The first place two continuations part, and the gap between the two tokens' scores there, from one plain
    pass over the text they share."""
    at = next(i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b)  # an end is a token, too
    text = [*prompt, *plain[:at]]
    logits = _logits(model, text, len(text) - 1)[None]
    scale = 1.0
    if isinstance(rule, Sampling) and rule.temperature > 0:
        rule, scale = replace(rule, top_k=None, top_p=1.0, min_p=0.0), rule.temperature
    root, own = TreeBuffers.of(CandidateTree(), model.device), torch.tensor([stream], device=model.device)
    row = scores(rule, logits, root, torch.tensor([len(text) - 1], device=model.device), own)[0, 0].float()
    gap = abs(float(row[plain[at]] - row[other[at]]))
    ulp = torch.finfo(model.dtype).eps * 2.0 ** np.floor(np.log2(float(logits.float().abs().max()))) / scale
    return Difference(index, at, gap, float(ulp))


@torch.inference_mode()
def log_likelihood(model: MedusaModel, prompt: Sequence[int], text: Sequence[int]) -> float:
    """What the base model gives the text behind the prompt at temperature 1, in nats, summed over its tokens."""
    logits = _logits(model, [*prompt, *text[:-1]], len(prompt) - 1)
    tokens = torch.tensor(text, device=logits.device)
    return float(logits.float().log_softmax(dim=-1).gather(1, tokens[:, None]).double().sum())


def _logits(model: MedusaModel, text: Sequence[int], first: int) -> Tensor:
    """(len(text) - first, V) from one plain pass, behind the tokens from ``first`` on."""
    keep = torch.arange(first, len(text), device=model.device)
    cache = model.new_cache(1, len(text))
    return model(torch.tensor([text], device=model.device), cache, AttentionContext(cache.slots), keep=keep)[1][0]
