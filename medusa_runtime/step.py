"""The decoding step, on tensors: from a batch's state to its next, on the device alone.

Nothing here reads a value on the host, and no shape or address depends on one where the slots are ``fixed``: the step can
be captured in a CUDA graph. All state is updated in place. One thing is otherwise, on a CPU alone: the host picks a book's trees.
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
from .buffers import BookBuffers, TreeBuffers, at_node, take
from .cache.cache import TreeCache
from .errors import out_of_memory
from .heads.heads import MedusaHeads
from .lookup import draft
from .tree_model import TreeModel


@dataclass
class State:
    """Where a batch of sequences stands between steps; how many tokens each has, the cache knows.

    root (B,) int64: each sequence's next token, decided by the model but not yet in the cache.
    hidden (B, d): the last hidden state behind that decision; what the heads read.
    streams (B,) int64: each sequence's stream of random numbers, for sampling.
    left (B,) int64: tokens that each sequence may still emit, 0 once it has ended; None where sequences never end.
    stops (E,) int64: the tokens that end a sequence.
    text (B, capacity) int64: token ids by cache slot, which is a token's position; only those before ``lengths`` mean anything. With
        it ``prompts`` (B,) int64, how many of them are the prompt. What is looked up in; None where nothing ever is.
    """

    cache: TreeCache
    root: Tensor
    hidden: Tensor
    streams: Tensor
    left: Tensor | None
    stops: Tensor
    text: Tensor | None = None
    prompts: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """What steps change, the cache's rows and the text apart."""
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
        if self.text is not None and self.prompts is not None and other.text is not None and other.prompts is not None:
            self.text[rows, : other.text.shape[1]], self.prompts[rows] = other.text, other.prompts

    def narrow(self, rows: Tensor) -> State:
        """The state of these sequences alone, ``rows`` (R,) int64; the others' memory is let go, and this state is spent."""
        self.cache.narrow(rows)
        left = None if self.left is None else self.left[rows]
        hidden = self.hidden[rows.to(self.hidden.device)]
        text, prompts = (None if kept is None else kept[rows] for kept in (self.text, self.prompts))
        return State(self.cache, self.root[rows], hidden, self.streams[rows], left, self.stops, text, prompts)


def propose(heads: MedusaHeads, hidden: Tensor, num_heads: int, width: int) -> Tensor:
    """The ``width`` likeliest tokens of each of the first ``num_heads`` heads: hidden (B, d) -> (heads, B, width) int64."""
    return heads.tokens(heads(hidden, num_heads).topk(width, dim=-1).indices)


@contextmanager
def expected(state: State, book: BookBuffers) -> Iterator[None]:
    """The host's part in a step that runs inside: room for the largest tree, and bounds on the lengths that come of it."""
    state.cache.slots.check_room(book.nodes + 1)
    with out_of_memory(f"a step of {len(state.root)} sequence(s) x {book.nodes + 1} tokens", state.root.device):
        yield
    state.cache.slots.expect(1 if state.left is None else 0, book.depth + 1)


@torch.inference_mode()
def step(model: TreeModel, state: State, book: BookBuffers, rule: Rule = GREEDY) -> tuple[Tensor, Tensor, Tensor]:
    """One decoding step: propose, verify the tree in one pass, keep the accepted path, advance.

    The heads are evaluated once a sequence, on the hidden state of the last accepted node, and only as many as the trees in use
    read. A sequence that has ended goes through the pass with the others, and stays as it is.

    Returns:
        tokens (B, D + 1) int64: the root and the accepted path behind it, the last repeated; D is the deepest tree's in use;
        emitted (B,) int64: how many of them the step adds to the text, 1 to D + 1, fewer where it ends, 0 once it has; -1 where
        the logits behind them are NaN or infinite, so that there is no next root;
        drafted (B, 2) int64: how many tokens behind the root the heads had right, and how many the lookup.

    Raises:
        InputError: the tree may not fit into the cache, or memory runs out.
    """
    with expected(state, book):
        return device_step(model, state, book, rule)


def device_step(model: TreeModel, state: State, book: BookBuffers, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`step` does on the device; a CUDA graph is made of this."""
    slots = state.cache.slots
    tree, drafts = (book.trees[0], None) if book.lookup is None else look_up(model, state, book)
    tokens = state.root[:, None]
    if tree.nodes:
        pool = [] if drafts is None else [drafts[:, : tree.lookup]]
        if tree.heads:
            candidates = propose(model.medusa_heads, state.hidden, tree.heads, tree.width).to(tokens.device)
            pool.insert(0, candidates.transpose(0, 1).reshape(len(tokens), -1))
        tokens = torch.cat([tokens, take(torch.cat(pool, dim=1) if len(pool) > 1 else pool[0], tree.picks)], dim=1)
    hidden, logits = model(tokens, state.cache, AttentionContext(slots, tree.mask))
    best, root, sound, drafted = accept(rule, logits, tokens, tree, slots.lengths, state.streams)
    path, accepted = at_node(tree.retrieval, best), at_node(tree.depths, best)
    text = tokens.gather(1, path)
    if tree.nodes:
        state.cache.keep(path, accepted)
        if book.lookup is not None:
            write(state, text)
    emitted = 1 + accepted
    if state.left is not None:
        emitted = cut(text, emitted, state.left, state.stops)
    slots.advance(emitted)
    state.root.copy_(root)
    state.hidden.copy_(hidden[slots.rows_on(hidden.device)[:, 0], best.to(hidden.device)])
    return text, torch.where(sound | (emitted == 0), emitted, -1), drafted


def write(state: State, tokens: Tensor) -> None:
    """Put a step's tokens (B, L), root first, into the text; what is behind those that count the next step overwrites."""
    if state.text is None:
        raise ValueError("this state holds no text to look up in")
    state.text.scatter_(1, state.cache.slots.next(tokens.shape[1], tokens.device)[1], tokens)


def look_up(model: TreeModel, state: State, book: BookBuffers) -> tuple[TreeBuffers, Tensor]:
    """Each sequence's tree, by how long a match the text has for its own end, the root included; and (B, L) the drafts behind it.

    On a CPU the host chooses, so that a step is no larger than it needs to be. Elsewhere, and where steps are captured, nothing is read
    on the host: the trees are padded to one size.
    """
    write(state, state.root[:, None])
    if book.lookup is None or state.text is None or state.prompts is None:
        raise ValueError("a lookup needs a text")
    host = model.device.type == "cpu" and not model.graphs
    ends = state.cache.slots.lengths + 1
    match, drafts = draft(state.text, ends, state.prompts, book.beside, book.lookup, book.chain, host)
    return book.on_host(match, state.left) if host else book.on_device(match), drafts


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
