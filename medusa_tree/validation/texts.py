"""Texts of typical acceptance, which are not the model's own: whether they keep to the rule, and how likely the model finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from medusa_runtime.acceptance.rules import GREEDY, Typical
from medusa_runtime.attention import AttentionContext
from medusa_runtime.tree_model import TreeModel

from ..progress import Report, counted, unseen
from .margins import Weighed, drafted_margins
from .partings import Text
from .reference import Reference
from .ties import TIE, Noise, enough


@dataclass(frozen=True)
class Unruly:
    """A token that the rule would not have let stand under the reference: by how much it fell short, in nats (the first token of a
    step, which is greedy: in logits), beyond TIE times the noise."""

    prompt: int
    position: int
    token: int
    gap: float
    noise: float

    @property
    def bar(self) -> float:
        """What rounding explains."""
        return TIE * self.noise


def unruly(
    reference: Reference,
    prompts: Sequence[Text],
    texts: Sequence[Text],
    emitted: Sequence[Sequence[int]],
    rule: Typical,
    report: Report = unseen,
) -> tuple[int, list[Unruly]]:
    """Hold texts to the rule: the first token of each step must be the model's likeliest, the others above the threshold, both up to
    TIE times the noise. Texts are taken in order until there are ROWS tokens.

    Args:
        reference: of the model that made the texts. emitted: tokens of each step of each text.

    Returns:
        How many tokens were looked at, and those that the rule would not have let stand.

    Raises:
        InputError: memory runs out.
    """
    chosen, noise = enough(texts), Noise()
    judged = counted(report, f"Judging in {reference.name}", len(chosen))
    short: list[tuple[int, int, float, float]] = []
    for i in chosen:
        own, wide = reference.logits([*prompts[i], *texts[i][:-1]], len(texts[i]))
        noise.add(own, wide)
        margins = drafted_margins(rule, wide, torch.tensor(texts[i])).tolist()
        scales = [rule.temperature] * len(margins)
        for first in _starts(emitted[i]):
            margins[first], scales[first] = Weighed.by(GREEDY, wide[first]).margin(texts[i][first])[0], 1.0
        short += [(i, at, -m, scale) for at, (m, scale) in enumerate(zip(margins, scales, strict=True)) if m < 0]
        judged(1)
    found = [Unruly(i, at, texts[i][at], gap, float(noise) / scale) for i, at, gap, scale in short]
    return sum(len(texts[i]) for i in chosen), [u for u in found if u.gap > u.bar]


def _starts(steps: Sequence[int]) -> list[int]:
    """Where each step's first token stands."""
    return [0, *accumulate(steps[:-1])]


@torch.inference_mode()
def log_likelihood(model: TreeModel, prompt: Text, text: Text) -> float:
    """What the base model gives the text behind the prompt at temperature 1, in nats, summed over its tokens."""
    whole = [*prompt, *text[:-1]]
    keep = torch.arange(len(prompt) - 1, len(whole), device=model.device)
    cache = model.new_cache(1, len(whole))
    logits = model(torch.tensor([whole], device=model.device), cache, AttentionContext(cache.slots), keep=keep)[1][0]
    tokens = torch.tensor(text, device=logits.device)
    return float(logits.float().log_softmax(dim=-1).gather(1, tokens[:, None]).double().sum())
