"""Margins: by how much a token is, or is not, what a rule would take behind a text, in scaled logits.

All are made so that a token which a pass takes has a margin of at least -d in the reference, if no scaled logit is more than d/2
off in that pass. So one figure, the rounding noise between two logits, says of every rule whether two passes can differ over a token.

- Greedy: the token's logit less the largest other one.
- Sampling: the same of scaled logits with the draw's Gumbel noise. But a token can also be cut off, by top-k, top-p or min-p, in one
  pass and not in another, so how far inside of the cuts each is counts likewise. Token x is the choice if it is inside, and every
  other token c is behind it or cut off: margin(x) = min(inside(x), min over c of max(score(x) - score(c), -inside(c))).
- Typical acceptance: a drafted token's log-probability less the threshold's. (Its entropy moves by about as much as its logits.)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from medusa_runtime.acceptance.noise import gumbel
from medusa_runtime.acceptance.rules import Rule, Sampling, Typical

SMALLEST = 1e-12  # of a probability beside 0 or 1: odds stay finite
LEAST = -1e9  # of a logit: tokens that a model rules out by -inf stay comparable


def temperature(rule: Rule) -> float:
    """What logits are divided by before margins are taken of them."""
    return getattr(rule, "temperature", 0.0) or 1.0


@dataclass(frozen=True)
class Weighed:
    """Tokens as a rule weighs them behind a text: the choice is the one of the largest score that is inside of the cuts.

    scores: (V,) float64. inside: (V,) float64, how far inside of the cuts, below 0 where cut off; infinite where none is made.
    """

    scores: Tensor
    inside: Tensor

    @classmethod
    def by(cls, rule: Rule, logits: Tensor, place: int = 0, stream: int = 0) -> Weighed:
        """Logits (V,) behind a text whose last token stands at ``place``, from 0; with the ``stream`` that fixes a sampling
        rule's draw."""
        z = logits.double().clamp(min=LEAST)
        if not isinstance(rule, Sampling) or rule.temperature == 0:
            return cls(z, torch.full_like(z, torch.inf))
        z = z / rule.temperature
        noise = gumbel(rule.seed or 0, torch.tensor([stream]), torch.tensor([[place]]), len(z))[0, 0]
        return cls(z + noise, cut_margins(rule, z))

    @property
    def choice(self) -> int:
        return int(torch.where(self.inside >= 0, self.scores, -torch.inf).argmax())

    def margin(self, token: int) -> tuple[float, bool]:
        """The token's margin as the choice, 0 or more where it is, and whether a cut decides it."""
        ahead = self.scores[token] - self.scores
        lead = torch.maximum(ahead, -self.inside)
        lead[token] = torch.inf
        nearest = int(lead.argmin())
        margin = min(float(self.inside[token]), float(lead[nearest]))
        return margin, margin != float(ahead[nearest])


def choice_margins(rule: Rule, logits: Tensor, first: int = 0, stream: int = 0) -> Tensor:
    """(T,) float64 margin of the rule's choice behind each token of a text, logits (T, V), the first of which stands at ``first``."""
    if not isinstance(rule, Sampling) or rule.temperature == 0:
        return -logits.topk(2, dim=-1).values.double().diff(dim=-1)[:, 0]
    rows = [Weighed.by(rule, row, first + i, stream) for i, row in enumerate(logits)]
    return torch.tensor([w.margin(w.choice)[0] for w in rows], dtype=torch.float64)


def cut_margins(rule: Sampling, z: Tensor) -> Tensor:
    """(V,) how far each token is inside of the rule's cuts; below 0 where it is cut off.

    Top-k and top-p keep the first ranks: rank r has b(r) to spare, which is infinite within the first K and minus infinity behind
    them, and for top-p the log-odds of P less those of the probability of the ranks before r, which move by d where logits move
    by d/2 up to there and by -d/2 from there on. A token also changes its rank: it takes that of token y if the two move by
    z(y) - z(x) against one another. So one that is cut off at rank r gets inside at the price of the dearer of the two, for the
    cheapest y: inside(x) = max over y up to r of min(z(x) - z(y), b(y)); and one that is kept falls out likewise:
    min over y from r on of max(z(x) - z(y), b(y)). Along the ranks z + b falls, and both lie where it passes z(x).

    Args:
        z: (V,) float64, logits over the temperature.
    """
    sorted_z, order = z.sort(descending=True)
    ranks = torch.arange(len(z))
    spare = torch.where(ranks < (rule.top_k or len(z)), torch.inf, -torch.inf).to(z.dtype)
    if rule.top_p < 1:
        mass = torch.where(spare > 0, sorted_z, -torch.inf).softmax(dim=0)
        before = torch.cat([mass.new_zeros(1), mass.cumsum(dim=0)[:-1]])
        spare = torch.minimum(spare, _log_odds(torch.tensor(rule.top_p, dtype=z.dtype)) - _log_odds(before))
        spare[0] = torch.inf  # the likeliest is always kept
    passed = torch.searchsorted(-(sorted_z + spare), -sorted_z).clamp(1, len(z))
    last, next_ = passed - 1, passed.clamp(max=len(z) - 1)
    falls = torch.where(passed < len(z), sorted_z - sorted_z[next_], torch.inf)
    falls = torch.minimum(falls, torch.where(last >= ranks, spare[last], torch.inf))
    rises = torch.maximum(spare[next_], sorted_z - sorted_z[last])
    inside = torch.empty_like(z).scatter_(0, order, torch.where(spare >= 0, falls, rises))
    if rule.min_p > 0:
        inside = torch.minimum(inside, z - sorted_z[0] - log(rule.min_p))
    return inside


def _log_odds(p: Tensor) -> Tensor:
    p = p.clamp(SMALLEST, 1 - SMALLEST)
    return p.log() - (1 - p).log()


def drafted_margins(rule: Typical, logits: Tensor, tokens: Tensor) -> Tensor:
    """(T,) log-probability of each token less typical acceptance's threshold behind the text before it.

    Args:
        logits: (T, V). tokens: (T,) int64.
    """
    log_p = (logits.double().clamp(min=LEAST) / rule.temperature).log_softmax(dim=-1)
    entropy = torch.special.entr(log_p.exp()).sum(dim=-1)
    bar = (log(rule.delta) - entropy).clamp(max=log(rule.epsilon))
    return log_p.gather(1, tokens[:, None])[:, 0] - bar
