"""Decoding with a candidate tree: prefill, the step, and the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .accept import accept_greedy
from .attention import AttentionContext
from .cache import TreeCache
from .errors import InputError
from .heads import MedusaHeads
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
    """

    cache: TreeCache
    root: Tensor
    hidden: Tensor
    lengths: list[int]


def propose(heads: MedusaHeads, hidden: Tensor, num_heads: int, width: int) -> Tensor:
    """The ``width`` likeliest tokens of each of the first ``num_heads`` heads: hidden (B, d) -> (heads, B, width) int64."""
    return heads.tokens(heads(hidden, num_heads).topk(width, dim=-1).indices)


@torch.inference_mode()
def prefill(model: MedusaModel, prompts: Sequence[Sequence[int]], capacity: int, static: bool = False) -> State:
    """Run the prompts through the model in one right-padded pass.

    Args:
        prompts: B lists of token ids, none empty.
        capacity: cache slots a sequence; at least the longest prompt and what is to be decoded.
        static: see :class:`TreeCache`; pays where many sequences are decoded plainly on a CPU.

    Raises:
        InputError: an empty prompt.
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
    return State(cache, logits[own, column].argmax(dim=-1), hidden[own, column], lengths)


@torch.inference_mode()
def step(model: MedusaModel, state: State, tree: TreeBuffers) -> tuple[Tensor, Tensor]:
    """One decoding step: propose, verify the tree in one pass, keep the accepted path, advance.

    The heads are evaluated once a sequence, on the hidden state of the last accepted node.

    Returns:
        tokens (B, D + 1) int64: the root and the accepted path behind it, the last repeated;
        accepted (B,) int64: a, how many of the path's nodes were accepted. The step emits 1 + a tokens.
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
    predicted = logits.argmax(dim=-1)
    if not tree.nodes:
        state.root, state.hidden = predicted[:, 0], hidden[:, 0]
        return tokens, torch.zeros_like(state.root)
    best = accept_greedy(tokens, predicted, tree.parents, tree.ancestors, tree.depths)
    path = tree.retrieval[best]
    cache.keep(path)
    rows = torch.arange(batch, device=best.device)
    state.root, state.hidden = predicted[rows, best], hidden[rows, best]
    return tokens.gather(1, path), tree.depths[best]


@torch.inference_mode()
def advance(state: State, emitted: Sequence[int]) -> None:
    """Count the tokens that a step left in the cache: ``emitted[b]`` more for sequence b."""
    state.lengths = [n + e for n, e in zip(state.lengths, emitted, strict=True)]
    state.cache.set_lengths(state.lengths)


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
) -> Iterator[list[list[int]]]:
    """Decode, yielding after each step the tokens it added to each sequence (an empty list once it has ended); of a
    whole tree.json with the operating point for these prompts.

    Raises:
        InputError: an empty prompt, more context than the model has, or a tree deeper than its heads.
    """
    tree = tree_for(tree, prompts, max_new_tokens)
    capacity = check_request(model, prompts, tree, max_new_tokens)
    stops = stop_tokens(model, eos_token_id)
    buffers = TreeBuffers.of(tree, model.device)
    state = prefill(model, prompts, capacity)
    left = [max_new_tokens] * len(prompts)
    while any(left):
        tokens, accepted = step(model, state, buffers)
        added: list[list[int]] = []
        for b, (row, a) in enumerate(zip(tokens.tolist(), accepted.tolist(), strict=True)):
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
) -> Generation:
    """Decode to the end; see :func:`stream`."""
    result = Generation([[] for _ in prompts], [[] for _ in prompts])
    for added in stream(model, prompts, tree, max_new_tokens, eos_token_id):
        result.add(added)
    return result
