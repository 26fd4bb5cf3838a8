"""The decoding step, on tensors: from a batch's state to its next, on the device alone.

Nothing here reads a value on the host, and no shape or address depends on one where the slots are ``fixed``: the step can
be captured in a CUDA graph. All state is updated in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .acceptance.accept import accept
from .acceptance.rules import GREEDY, Rule
from .attention import AttentionContext
from .buffers import TreeBuffers
from .cache.cache import TreeCache
from .errors import out_of_memory
from .heads.heads import MedusaHeads
from .tree_model import TreeModel


@dataclass
class State:
    """Where a batch of sequences stands between steps; how many tokens each has, the cache knows.

    root (B,) int64: each sequence's next token, decided by the model but not yet in the cache.
    hidden (B, d): the last hidden state behind that decision; what the heads read.
    streams (B,) int64: each sequence's stream of random numbers, for sampling.
    left (B,) int64: tokens that each sequence may still emit, 0 once it has ended; None where sequences never end.
    stops (E,) int64: the tokens that end a sequence.
    """

    cache: TreeCache
    root: Tensor
    hidden: Tensor
    streams: Tensor
    left: Tensor | None
    stops: Tensor

    def tensors(self) -> list[Tensor]:
        """What steps change, the cache's rows apart."""
        return [
            self.cache.slots.lengths,
            self.root,
            self.hidden,
            self.streams,
            *([] if self.left is None else [self.left]),
        ]

    def put(self, rows: Tensor, other: State) -> None:
        """New sequences in the place of ended ones: ``rows`` (R,) int64 become those of another state of R, whose cache has no
        more slots than this one's."""
        self.cache.put(rows, other.cache)
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine[rows.to(mine.device)] = theirs

    def narrow(self, rows: Tensor) -> State:
        """The state of these sequences alone, ``rows`` (R,) int64; the others' memory is let go, and this state is spent."""
        self.cache.narrow(rows)
        left = None if self.left is None else self.left[rows]
        hidden = self.hidden[rows.to(self.hidden.device)]
        return State(self.cache, self.root[rows], hidden, self.streams[rows], left, self.stops)


def propose(heads: MedusaHeads, hidden: Tensor, num_heads: int, width: int) -> Tensor:
    """The ``width`` likeliest tokens of each of the first ``num_heads`` heads: hidden (B, d) -> (heads, B, width) int64."""
    return heads.tokens(heads(hidden, num_heads).topk(width, dim=-1).indices)


@contextmanager
def expected(state: State, tree: TreeBuffers) -> Iterator[None]:
    """The host's part in a step that runs inside: room for the tree, and bounds on the lengths that come of it."""
    state.cache.slots.check_room(tree.nodes + 1)
    with out_of_memory(f"a step of {len(state.root)} sequence(s) x {tree.nodes + 1} tokens", state.root.device):
        yield
    state.cache.slots.expect(1 if state.left is None else 0, tree.depth + 1)


@torch.inference_mode()
def step(model: TreeModel, state: State, tree: TreeBuffers, rule: Rule = GREEDY) -> tuple[Tensor, Tensor]:
    """One decoding step: propose, verify the tree in one pass, keep the accepted path, advance.

    The heads are evaluated once a sequence, on the hidden state of the last accepted node. A sequence that has ended goes
    through the pass with the others, and stays as it is.

    Returns:
        tokens (B, D + 1) int64: the root and the accepted path behind it, the last repeated;
        emitted (B,) int64: how many of them the step adds to the text, 1 to D + 1, fewer where it ends, 0 once it has; -1 where
        the logits behind them are NaN or infinite, so that there is no next root.

    Raises:
        InputError: the tree may not fit into the cache, or memory runs out.
    """
    with expected(state, tree):
        return device_step(model, state, tree, rule)


def device_step(model: TreeModel, state: State, tree: TreeBuffers, rule: Rule) -> tuple[Tensor, Tensor]:
    """What :func:`step` does on the device; a CUDA graph is made of this."""
    slots, batch = state.cache.slots, state.root.shape[0]
    tokens = state.root[:, None]
    if tree.nodes:
        candidates = propose(model.medusa_heads, state.hidden, tree.depth, tree.width).to(tokens.device)
        drafted = candidates.transpose(0, 1).reshape(batch, -1)[:, tree.picks]
        tokens = torch.cat([tokens, drafted], dim=1)
    hidden, logits = model(tokens, state.cache, AttentionContext(slots, tree.mask))
    best, root, sound = accept(rule, logits, tokens, tree, slots.lengths, state.streams)
    path, accepted = tree.retrieval[best], tree.depths[best]
    text = tokens.gather(1, path)
    if tree.nodes:
        state.cache.keep(path, accepted)
    emitted = 1 + accepted
    if state.left is not None:
        emitted = cut(text, emitted, state.left, state.stops)
    slots.advance(emitted)
    state.root.copy_(root)
    state.hidden.copy_(hidden[slots.rows_on(hidden.device)[:, 0], best.to(hidden.device)])
    return text, torch.where(sound | (emitted == 0), emitted, -1)


def cut(text: Tensor, emitted: Tensor, left: Tensor, stops: Tensor) -> Tensor:
    """How much of a step's text counts: no more than is left, and nothing behind an end token; ``left`` (B,) is brought up to
    date. text (B, L), emitted (B,), stops (E,) -> (B,)."""
    emitted = torch.minimum(emitted, left)
    left -= emitted
    if len(stops):
        place = torch.arange(text.shape[1], device=text.device)
        ends = (text[..., None] == stops).any(dim=-1) & (place < emitted[:, None])
        first, ended = ends.int().argmax(dim=1), ends.any(dim=1)
        emitted = torch.where(ended, first + 1, emitted)
        left.masked_fill_(ended, 0)
    return emitted
