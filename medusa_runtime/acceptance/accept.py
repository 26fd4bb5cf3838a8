"""Acceptance: what the model says behind each node of a verified tree, and which path of the tree is kept.

Everything here stays on the device: no synchronisation and no shape that depends on values, so that a step can be captured
in a CUDA graph.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..buffers import TreeBuffers, take
from .noise import gumbel
from .rules import Rule, Sampling, Typical


def accept(
    rule: Rule, logits: Tensor, tokens: Tensor, tree: TreeBuffers, lengths: Tensor, streams: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The node that the kept path ends at, and the next root.

    Args:
        logits: (B, M, V), the model's behind each node, root first.
        tokens: (B, M) int64, the tree's tokens.
        lengths: (B,) int64, tokens before the root.
        streams: (B,) int64, each sequence's stream of random numbers.

    Returns:
        best (B,) int64: the deepest node whose path stands, of several the likeliest; 0 where only the root does.
        root (B,) int64: the token that the model says behind it.
        sound (B,) bool: whether the logits there are finite; where not, ``root`` means nothing. No node behind logits
        that are NaN or infinite is ever kept, so this is where they show.
        drafted (B, 2) int64: how deep the heads' paths stand, and how deep the chain of looked-up tokens; the deeper one is kept, of
        two as deep the likelier, the heads' where that is the same.
    """
    chosen = choose(rule, logits, tree, lengths, streams)
    sound = logits.amax(dim=-1).isfinite()  # tokens that a model rules out by -inf are no fault
    if not tree.nodes:
        none = torch.zeros_like(lengths)
        return none, chosen[:, 0], sound[:, 0], none[:, None].expand(-1, 2)
    worth = torch.where(take(sound, tree.parents), value(rule, logits, tokens, chosen, tree), -torch.inf)
    if tree.real is not None:
        worth = torch.where(tree.real, worth, -torch.inf)
    worth[:, 0] = 0.0
    best, reached = deepest(worth, tree.ancestors, tree.depths)
    rows = torch.arange(len(best), device=best.device)
    return best, chosen[rows, best], sound[rows, best], _by_family(reached, tree)


def _by_family(reached: Tensor, tree: TreeBuffers) -> Tensor:
    """(B, 2) int64: the deepest of the heads' nodes, and of the chain's, where ``reached`` (B, M) are the depths of those that stand."""
    if not tree.lookup:
        heads = reached.amax(dim=-1)
        return torch.stack([heads, torch.zeros_like(heads)], dim=1)
    families = (reached.masked_fill(tree.chain, 0), reached.masked_fill(~tree.chain, 0))
    return torch.stack(families, dim=1).amax(dim=-1)


def choose(rule: Rule, logits: Tensor, tree: TreeBuffers, lengths: Tensor, streams: Tensor) -> Tensor:
    """(B, M) int64: the token that the model says behind each node; arguments as for :func:`accept`."""
    return scores(rule, logits, tree, lengths, streams).argmax(dim=-1)


def scores(rule: Rule, logits: Tensor, tree: TreeBuffers, lengths: Tensor, streams: Tensor) -> Tensor:
    """(B, M, V) what the model's choice is the argmax of: its logits, or when sampling those that it may draw from,
    scaled and disturbed by Gumbel noise, which makes the argmax a draw from their softmax.

    The noise belongs to a sequence's stream and a token's place, not to a node. So whatever the tree, the same seed gives
    the same text, and decoding a sample is decoding greedily on other logits.
    """
    if not isinstance(rule, Sampling) or rule.temperature == 0:
        return logits
    warped = warpers(rule)(None, _from_top(logits).flatten(0, 1)).view_as(logits)
    places = lengths[:, None] + torch.arange(tree.depth + 1, device=logits.device)
    return warped + take(gumbel(rule.seed or 0, streams, places, logits.shape[-1]), tree.depths)


def warpers(rule: Sampling) -> LogitsProcessorList:
    """transformers' logits processors for the rule's parameters, in the order of its ``generate``."""
    steps = LogitsProcessorList()
    if rule.temperature != 1:
        steps.append(TemperatureLogitsWarper(float(rule.temperature)))
    if rule.top_k is not None:
        steps.append(TopKLogitsWarper(rule.top_k))
    if rule.top_p < 1:
        steps.append(TopPLogitsWarper(float(rule.top_p)))
    if rule.min_p > 0:
        steps.append(MinPLogitsWarper(float(rule.min_p)))
    return steps


def _from_top(logits: Tensor) -> Tensor:
    """Logits in float32 with the likeliest at 0: the same distribution, and no temperature makes it overflow."""
    logits = logits.float()
    return logits - logits.amax(dim=-1, keepdim=True)


def value(rule: Rule, logits: Tensor, tokens: Tensor, chosen: Tensor, tree: TreeBuffers) -> Tensor:
    """(B, M) float32: each node's token weighed behind its parent, -inf if it does not stand there. Where several
    siblings may stand (typical acceptance) a log-likelihood in nats, else 0. Meaningless at the root."""
    if not isinstance(rule, Typical) or rule.temperature == 0:
        return torch.where(tokens == take(chosen, tree.parents), 0.0, -torch.inf)
    log_p = log_probabilities(rule, logits)
    bar = threshold(rule, log_p)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    mine = log_p[rows, tree.parents, tokens]
    return torch.where(mine > take(bar, tree.parents), mine, -torch.inf)


def log_probabilities(rule: Typical, logits: Tensor) -> Tensor:
    """(..., V) float32: what typical acceptance compares, in nats."""
    return (_from_top(logits) / rule.temperature).log_softmax(dim=-1)


def threshold(rule: Typical, log_p: Tensor) -> Tensor:
    """(...,) log of min(epsilon, delta exp(-H)) for log-probabilities (..., V) in float32; H in nats, 0 log 0 = 0."""
    entropy = torch.special.entr(log_p.exp()).sum(dim=-1)
    return (log(rule.delta) - entropy).clamp(max=log(rule.epsilon))


def deepest(worth: Tensor, ancestors: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """The deepest node on whose path all worth is finite, of equally deep ones that with the largest sum.

    Args:
        worth: (B, M) float32, 0 at the root. ancestors: (R, M, M) bool. depths: (R, M) int64.

    Returns:
        (B,) int64 node numbers; (B, M) int64 the depths of the nodes whose path stands, -1 at others.
    """
    path = torch.where(ancestors, worth[:, None, :], 0.0).sum(dim=-1)
    reached = torch.where(path.isfinite(), depths, -1)
    last = reached == reached.amax(dim=-1, keepdim=True)
    return torch.where(last, path, -torch.inf).argmax(dim=-1), reached
