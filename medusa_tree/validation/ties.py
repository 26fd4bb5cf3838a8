"""Ties: where a tree's text leaves the plain text, and whether rounding explains it.

Plain and tree decoding add the same products in another order, and round to the model's dtype in between. So each
pass has logits = exact + noise, and where the two best tokens are no further apart than the noise, either pass may take either
token: a tie. A fault (a wrong position, mask or cache row) moves logits by what other text would, far more. To tell the two apart:

1. The exact logits are those of a :class:`Reference`: the same weights in a wider type, through transformers' own forward.
2. The noise is measured, not assumed: at every position of the texts that part (and of others, until there are ROWS), how far
   the gap between the reference's two best tokens is another one in transformers' own forward in the model's dtype. Its root
   mean square is one figure for the run. None of our code is in it, so that a fault of ours cannot excuse itself.
3. By how much does each of the two tokens fall short of being the reference's choice (:mod:`medusa_tree.validation.margins`)?
   The better of the two, if the reference takes it, by nothing; where it prefers a third, both fall short. A pass that is right
   took each of them, so its noise was larger than that. The larger of the two is the ``gap``, and it is a tie up to TIE times
   the noise. The bar is far in the tail, as the reason for looking here is that the noise was large.

What that means on the demo in bfloat16, 10,004 positions of 83 texts: noise 0.035, so a tie is up to 0.175. 3% of positions
could part as ties; plain decoding in four other batch sizes and two trees parted at 1 to 2 in 1,000, and the widest of those 89 gaps
was 0.100, 2.9 times the noise. A fault that hits a position at random is excused in 3% of cases, and one that only turns close calls more
often: so the number of partings is judged, too (:mod:`medusa_tree.validation.partings`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from medusa_runtime.acceptance.rules import GREEDY, Rule

from ..progress import Report, counted, unseen
from .margins import Weighed, choice_margins, temperature
from .partings import Text, parting, rounding_rate
from .reference import Reference

TIE = 5.0  # times the noise
ROWS = 1000  # positions that the noise is measured at: its relative error is then some 2%


@dataclass(frozen=True)
class Difference:
    """Where a tree's text first leaves the plain text.

    plain_token, tree_token: there; None where a text has ended. preferred: the token that the reference takes.
    gap: how far the reference is from taking each of the two, the larger distance, in logits (when sampling over the temperature).
    noise: root mean square of what rounding does to the gap between two logits, in the same unit. cut: whether the distance is
    to a cut, as top-k, top-p or min-p left a token in in one pass and not in the other.
    """

    prompt: int
    position: int
    plain_token: int | None
    tree_token: int | None
    preferred: int
    gap: float
    noise: float
    cut: bool

    @property
    def bar(self) -> float:
        """The widest gap that is a tie."""
        return TIE * self.noise

    @property
    def near_tie(self) -> bool:
        return self.gap <= self.bar

    def to_json(self) -> dict[str, Any]:
        names = {self.plain_token: "plain", self.tree_token: "tree"}
        return {
            "prompt": self.prompt, "position": self.position, "plain_token": self.plain_token, "tree_token": self.tree_token,
            "reference_token": self.preferred, "reference_prefers": names.get(self.preferred, "another"),
            "gap": self.gap if isfinite(self.gap) else None, "noise": self.noise, "cut": self.cut, "near_tie": self.near_tie,
        }  # fmt: skip


class Noise:
    """Gathers by how much rounding moves the gap between the reference's two best tokens."""

    def __init__(self) -> None:
        self.squares: list[Tensor] = []

    def add(self, own: Tensor, wide: Tensor) -> None:
        """Both (T, V)."""
        best = wide.topk(2, dim=-1).indices
        gaps = [x.gather(1, best).double().diff(dim=-1) for x in (own, wide)]
        self.squares.append((gaps[0] - gaps[1]).square()[:, 0])

    def __float__(self) -> float:
        return float(torch.cat(self.squares).mean().sqrt())


@dataclass(frozen=True)
class Judged:
    """Every prompt whose texts part, and how often rounding alone could make them part, a token (:func:`rounding_rate`)."""

    differences: list[Difference]
    rounding: float


def enough(texts: Sequence[Text], first: Collection[int] = ()) -> list[int]:
    """The texts numbered in ``first``, and others in order, until there are ROWS tokens."""
    order = [*first, *(i for i in range(len(texts)) if i not in first)]
    before = [0, *accumulate(len(texts[i]) for i in order)]
    return [i for n, i in enumerate(order) if n < len(first) or before[n] < ROWS]


def judge(
    reference: Reference,
    prompts: Sequence[Text],
    plain: Sequence[Text],
    tree: Sequence[Text],
    rule: Rule = GREEDY,
    streams: Sequence[int] | None = None,
    report: Report = unseen,
) -> Judged:
    """Hold the places where two texts of a prompt part against the reference.

    Args:
        reference: of the model that made the texts. plain, tree: a text a prompt.
        streams: the number that each prompt's draws are from; by default 0, 1, ...

    Raises:
        InputError: memory runs out.
    """
    at = {i: p for i, (a, b) in enumerate(zip(plain, tree, strict=True)) if (p := parting(a, b)) is not None}
    texts = [max(a, b, key=len) for a, b in zip(plain, tree, strict=True)]  # one may end where they part
    chosen, noise, margins = enough(texts, at), Noise(), list[Tensor]()
    judged = counted(report, f"Judging in {reference.name}", len(chosen))
    found = []
    for i in chosen:
        own, wide = reference.logits([*prompts[i], *texts[i][:-1]], len(texts[i]))
        noise.add(own, wide)
        first, stream = len(prompts[i]) - 1, i if streams is None else streams[i]
        if sum(map(len, margins)) < ROWS:
            margins.append(choice_margins(rule, wide, first, stream))
        if i in at:
            tokens = _token(plain[i], at[i]), _token(tree[i], at[i])
            found.append((i, tokens, _judged(Weighed.by(rule, wide[at[i]], first + at[i], stream), tokens)))
        judged(1)
    level = float(noise) / temperature(rule)
    return Judged(
        [Difference(i, at[i], *tokens, preferred, gap, level, cut) for i, tokens, (preferred, gap, cut) in found],
        rounding_rate(torch.cat(margins), level),
    )


def _token(text: Text, at: int) -> int | None:
    return text[at] if at < len(text) else None


def _judged(weighed: Weighed, tokens: Sequence[int | None]) -> tuple[int, float, bool]:
    """The reference's own token, how far it is from taking each of the tokens, the larger distance, and whether to a cut."""
    margins = [(-inf, False) if token is None else weighed.margin(token) for token in tokens]
    least, cut = min(margins)
    return weighed.choice, -least, cut
