"""Decoding with a candidate tree: prefill, the step, and the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .accept import accept, choose
from .attention import AttentionContext
from .cache import TreeCache
from .errors import InputError
from .heads import MedusaHeads
from .rules import GREEDY, Rule
from .tree import CandidateTree
from .treefile import TreeFile

if TYPE_CHECKING:
    from .model import MedusaModel


@dataclass(frozen=True)
class TreeBuffers:
    """A tree's arrays on the device, made once: shapes as in :class:`CandidateTree`, M = N + 1."""

    nodes: int
    depth: int  # heads to evaluate
    width: int  # candidates of each head
    parents: Tensor  # (M,)
    depths: Tensor  # (M,)
    ancestors: Tensor  # (M, M) bool
    retrieval: Tensor  # (M, D + 1)
    picks: Tensor  # (N,) where each node's token stands among the D x width candidates

    @classmethod
    def of(cls, tree: CandidateTree, device: torch.device) -> TreeBuffers:
        def put(array: npt.NDArray[np.generic]) -> Tensor:
            return torch.as_tensor(array, device=device)

        picks = (tree.depths[1:] - 1) * tree.width + tree.ranks[1:]
        return cls(
            tree.nodes,
            tree.depth,
            tree.width,
            put(tree.parents),
            put(tree.depths),
            put(tree.ancestors),
            put(tree.retrieval),
            put(picks),
        )


@dataclass
class State:
    """Where a batch of sequences stands between steps.

    root (B,) int64: each sequence's next token, decided by the model but not yet in the cache.
    hidden (B, d): the last hidden state behind that decision; what the heads read.
    lengths: tokens in the cache for each sequence, known to the host.
    streams (B,) int64: each sequence's stream of random numbers, for sampling.
    """

    cache: TreeCache
    root: Tensor
    hidden: Tensor
    lengths: list[int]
    streams: Tensor


def propose(heads: MedusaHeads, hidden: Tensor, num_heads: int, width: int) -> Tensor:
    """The ``width`` likeliest tokens of each of the first ``num_heads`` heads: hidden (B, d) -> (heads, B, width) int64."""
    return heads.tokens(heads(hidden, num_heads).topk(width, dim=-1).indices)


@torch.inference_mode()
def prefill(
    model: MedusaModel,
    prompts: Sequence[Sequence[int]],
    capacity: int,
    static: bool = False,
    rule: Rule = GREEDY,
    streams: Sequence[int] | None = None,
) -> State:
    """Run the prompts through the model in one right-padded pass; the first token follows the rule like all others.

    Args:
        prompts: B lists of token ids, none empty.
        capacity: cache slots a sequence; at least the longest prompt and what is to be decoded.
        static: see :class:`TreeCache`; pays where many sequences are decoded plainly on a CPU.
        streams: B numbers, see :func:`stream`.

    Raises:
        InputError: an empty prompt, or logits that are NaN or infinite.
    """
    lengths = [len(p) for p in prompts]
    if not lengths or min(lengths) == 0:
        raise InputError("a prompt is empty: decoding needs at least one token to start from")
    longest, batch, device = max(lengths), len(prompts), model.device
    tokens = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
    cache = model.new_cache(batch, capacity, static)
    context = AttentionContext(cache.lengths, torch.arange(longest, device=device), visible=None, uniform=0)
    last, column = (torch.tensor(lengths, device=device) - 1).unique(return_inverse=True)
    hidden, logits = model(tokens, cache, context, keep=last)  # a column for each place where some prompt ends
    own = torch.arange(batch, device=device)
    cache.set_lengths(lengths)
    logits = logits[own, column]
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise unsound(model)
    numbers = torch.tensor(list(range(batch)) if streams is None else list(streams), device=device)
    root = choose(rule, logits[:, None], TreeBuffers.of(CandidateTree(), device), cache.lengths - 1, numbers)[:, 0]
    return State(cache, root, hidden[own, column], lengths, numbers)


@torch.inference_mode()
def step(model: MedusaModel, state: State, tree: TreeBuffers, rule: Rule = GREEDY) -> tuple[Tensor, Tensor]:
    """One decoding step: propose, verify the tree in one pass, keep the accepted path, advance.

    The heads are evaluated once a sequence, on the hidden state of the last accepted node.

    Returns:
        tokens (B, D + 1) int64: the root and the accepted path behind it, the last repeated;
        accepted (B,) int64: a, how many of the path's nodes were accepted. The step emits 1 + a tokens. -1 where the logits
        behind them are NaN or infinite, so that there is no next root (see :func:`unsound`).
        The cache holds the path; ``state.lengths`` is the caller's to advance (see :func:`advance`).
    """
    cache, batch = state.cache, state.root.shape[0]
    tokens = state.root[:, None]
    if tree.nodes:
        candidates = propose(model.medusa_heads, state.hidden, tree.depth, tree.width)
        drafted = candidates.transpose(0, 1).reshape(batch, -1)[:, tree.picks]
        tokens = torch.cat([tokens, drafted], dim=1)
    context = AttentionContext(cache.lengths, tree.depths, tree.ancestors, cache.uniform)
    hidden, logits = model(tokens, cache, context)
    best, state.root, sound = accept(rule, logits, tokens, tree, cache.lengths, state.streams)
    path = tree.retrieval[best]
    if tree.nodes:
        cache.keep(path)
    state.hidden = hidden[torch.arange(batch, device=best.device), best]
    return tokens.gather(1, path), torch.where(sound, tree.depths[best], -1)


@torch.inference_mode()
def advance(state: State, emitted: Sequence[int]) -> None:
    """Count the tokens that a step left in the cache: ``emitted[b]`` more for sequence b."""
    state.lengths = [n + e for n, e in zip(state.lengths, emitted, strict=True)]
    state.cache.set_lengths(state.lengths)


def unsound(model: MedusaModel) -> InputError:
    """The error for logits that are NaN or infinite, behind which there is no next token."""
    return InputError(
        f"{model.name}: the model's logits are NaN or infinite, so there is no next token; its numbers overflow in "
        f"{str(model.dtype).removeprefix('torch.')} or its weights are damaged: try another --dtype (bfloat16, float32)"
    )


def stop_tokens(model: MedusaModel, eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
    """The token ids that end a sequence; None asks the model's generation config."""
    if eos_token_id is None:
        eos_token_id = model.base.generation_config.eos_token_id
    if eos_token_id is None:
        return frozenset()
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)


def check_request(
    model: MedusaModel, prompts: Sequence[Sequence[int]], tree: CandidateTree, max_new_tokens: int
) -> int:
    """Cache slots this request needs, or an InputError that names what does not fit."""
    if tree.depth > model.num_heads:
        raise InputError(
            f"the tree is {tree.depth} deep but {model.name} has {model.num_heads} Medusa head(s); cut the tree with --max-depth {model.num_heads}"
        )
    if tree.nodes and tree.width > model.medusa_heads.rows:
        raise InputError(
            f"the tree uses rank {tree.width - 1}, but the heads propose only {model.medusa_heads.rows} tokens"
        )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; ask for at least 1")
    longest = max(map(len, prompts), default=0)
    if model.max_context is not None and longest + max_new_tokens > model.max_context:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the {model.max_context} positions of {model.name}; shorten either"
        )
    return longest + max_new_tokens + tree.nodes + 1


def tree_for(tree: CandidateTree | TreeFile, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> CandidateTree:
    """The tree to decode these prompts with: of a whole tree.json the point for their number, at the context that the
    longest has half-way through."""
    if isinstance(tree, CandidateTree):
        return tree
    longest = max(map(len, prompts), default=0)
    return tree.tree(max(1, len(prompts)), max(1, longest + max_new_tokens // 2))


def rule_for(tree: CandidateTree | TreeFile, rule: Rule | None) -> Rule:
    """The rule asked for, or the one that a whole tree.json was calibrated under, or greedy."""
    if rule is not None:
        return rule
    return tree.acceptance if isinstance(tree, TreeFile) else GREEDY


@dataclass
class Generation:
    """What was generated: for each sequence its new ``tokens`` (the end token included) and how many tokens
    each of its steps emitted (``emitted``, summing to ``len(tokens)``)."""

    tokens: list[list[int]] = field(default_factory=list)
    emitted: list[list[int]] = field(default_factory=list)

    def add(self, added: list[list[int]]) -> None:
        """Take in what one step of :func:`stream` added; a sequence that has ended adds nothing."""
        for b, new in enumerate(added):
            if new:
                self.tokens[b] += new
                self.emitted[b].append(len(new))

    @property
    def acceptance_length(self) -> float:
        """Tokens a step, over all sequences: the measured E[L]; 1.0 for plain decoding."""
        return sum(map(sum, self.emitted)) / max(1, sum(map(len, self.emitted)))


def stream(
    model: MedusaModel,
    prompts: Sequence[Sequence[int]],
    tree: CandidateTree | TreeFile,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    rule: Rule | None = None,
    streams: Sequence[int] | None = None,
) -> Iterator[list[list[int]]]:
    """Decode, yielding after each step the tokens it added to each sequence (an empty list once it has ended); of a
    whole tree.json with the operating point for these prompts.

    Args:
        rule: how tokens are accepted; by default as the tree.json was calibrated, or greedily.
        streams: a number a sequence, which with the rule's seed fixes what is drawn for it; by default 0, 1, ... A sequence
            keeps its text in any batch if it keeps its number.

    Raises:
        InputError: an empty prompt, more context than the model has, a tree deeper than its heads, or logits that are NaN or
            infinite.
    """
    rule = rule_for(tree, rule)
    tree = tree_for(tree, prompts, max_new_tokens)
    capacity = check_request(model, prompts, tree, max_new_tokens)
    stops = stop_tokens(model, eos_token_id)
    buffers = TreeBuffers.of(tree, model.device)
    state = prefill(model, prompts, capacity, rule=rule, streams=streams)
    left = [max_new_tokens] * len(prompts)
    while any(left):
        tokens, accepted = step(model, state, buffers, rule)
        added: list[list[int]] = []
        for b, (row, a) in enumerate(zip(tokens.tolist(), accepted.tolist(), strict=True)):
            if a < 0 and left[b]:
                raise unsound(model)
            new = row[: min(1 + a, left[b])]
            stop = next((i for i, t in enumerate(new) if t in stops), None)
            new = new if stop is None else new[: stop + 1]
            left[b] = 0 if stop is not None else left[b] - len(new)
            added.append(new)
        advance(state, [len(new) for new in added])
        yield added


def generate(
    model: MedusaModel,
    prompts: Sequence[Sequence[int]],
    tree: CandidateTree | TreeFile,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    rule: Rule | None = None,
    streams: Sequence[int] | None = None,
) -> Generation:
    """Decode to the end; see :func:`stream`."""
    result = Generation([[] for _ in prompts], [[] for _ in prompts])
    for added in stream(model, prompts, tree, max_new_tokens, eos_token_id, rule, streams):
        result.add(added)
    return result
