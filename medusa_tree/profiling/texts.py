"""Texts: many prompts decoded plainly, so many at once; a sequence that ends makes room for the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medusa_runtime.acceptance.rules import Rule
from medusa_runtime.buffers import BookBuffers
from medusa_runtime.decode import prefill, stop_tokens, unsound
from medusa_runtime.graph import Step, stepper, whole_slots
from medusa_runtime.step import State
from medusa_runtime.tree import CandidateTree
from medusa_runtime.tree_model import TreeModel

LOOK = 8  # steps between looks at which sequences have ended: each look waits for the device
ROOM = 8  # an eighth of the rows must be free before the next prompts are taken in: a pass over few is a waste
ROUND = 32  # sizes are rounded up to: for each one that they have not seen libraries make and keep a kernel
PASS_TOKENS = (
    1 << 12
)  # of prompts in one pass, the padding counted: more of them gain nothing, and what they need falls out of caches


@dataclass(frozen=True)
class Text:
    """What was decoded behind prompt ``number``: T tokens, an end token included, and the hidden states (T, d) that each
    was decided from."""

    number: int
    tokens: list[int]
    hidden: Tensor


@torch.inference_mode()
def decode_texts(
    model: TreeModel,
    prompts: Sequence[Sequence[int]],
    new: int,
    rows: int,
    rule: Rule,
    streams: Sequence[int],
) -> Iterator[list[Text]]:
    """Decode behind every prompt until it ends or has ``new`` tokens, ``rows`` at once; yields after every few steps the texts that
    have ended, if any.

    Prompts are taken in as they stand, into the place of texts that have ended; once none is left, the batch is narrowed
    whenever half of it has ended. So one long text does not hold many idle rows, and what is computed depends on the
    prompts alone, not on the time that it takes.

    Args:
        prompts: lists of token ids; the longest should come first, as the first ones show how much memory is needed.
        streams: each prompt's stream of random numbers.

    Raises:
        InputError: what :func:`medusa_runtime.decode.prefill` raises, or logits that are NaN or infinite.
        OutOfMemory: fewer rows are needed.
    """
    rows = min(rows, len(prompts))
    ceiling = max(map(len, prompts)) + new

    def prefilled(numbers: list[int]) -> State:
        asked = [prompts[i] for i in numbers]
        width = width_of(model, max(map(len, asked)))
        return prefill(model, asked, width, static=True, rule=rule, streams=[streams[i] for i in numbers], width=width)

    first = next(_passes([len(p) for p in prompts[:rows]]))
    fresh = prefilled(first)
    batch = _Batch.room(model, fresh, rows, ceiling, new, rule)
    batch.take_in(first, first, [len(prompts[i]) for i in first], fresh)
    waiting = deque(range(len(first), len(prompts)))
    while True:
        free = [r for r, number in enumerate(batch.numbers) if number is None]
        if waiting and (len(free) >= -(-len(batch.numbers) // ROOM) or len(free) == len(batch.numbers)):
            taken = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
            for part in _passes([len(prompts[i]) for i in taken]):
                numbers = [taken[j] for j in part]
                batch.take_in([free[j] for j in part], numbers, [len(prompts[i]) for i in numbers], prefilled(numbers))
        elif len(free) == len(batch.numbers):
            return
        elif not waiting and 2 * len(free) >= len(batch.numbers):
            batch = batch.narrowed([r for r, number in enumerate(batch.numbers) if number is not None])
        yield batch.run()


def width_of(model: TreeModel, longest: int) -> int:
    """Tokens of a pass over texts of up to ``longest``: rounded up, as far as there are positions."""
    width, room = -(-longest // ROUND) * ROUND, model.positions(longest)
    return width if room is None else max(longest, min(width, room))


def _passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places 0 .. n - 1 in runs of at most PASS_TOKENS tokens, padding counted, or of one prompt."""
    part: list[int] = []
    for i, length in enumerate(lengths):
        longest = max([length, *(lengths[j] for j in part)])
        if part and -(-longest // ROUND) * ROUND * (len(part) + 1) > PASS_TOKENS:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


@dataclass
class _Batch:
    """Rows that are decoded side by side.

    numbers: of each row's prompt; None where it is free. lengths: tokens in its cache. counts: tokens decoded.
    tokens (R, new + LOOK), hidden (R, new + LOOK, d): what was decoded. at (R,): where the next goes.
    ended (R,): whether an end token came.
    """

    model: TreeModel
    rule: Rule
    state: State
    new: int
    numbers: list[int | None]
    lengths: list[int]
    counts: list[int]
    tokens: Tensor
    hidden: Tensor
    at: Tensor
    ended: Tensor
    plain: BookBuffers
    stops: Tensor
    step: Step | None = None

    @classmethod
    def room(cls, model: TreeModel, like: State, rows: int, ceiling: int, new: int, rule: Rule) -> _Batch:
        """Memory for so many rows of at most ``ceiling`` tokens, of keys and values ``like`` those of a state. A row that has ended
        runs on until the next look."""
        device, width = model.device, new + LOOK
        slots = -(-(ceiling + LOOK) // ROUND) * ROUND
        cache = model.new_cache(rows, whole_slots(model, slots), static=True)
        for layer, other in zip(cache.layers, like.cache.layers, strict=True):
            layer.lazy_initialization(*(part[:1].expand(rows, -1, -1, -1) for part in (other.keys, other.values)))
        cache.slots.ceiling = ceiling  # beyond which no position is used, whatever runs on
        hidden = like.hidden.new_zeros(rows, width, like.hidden.shape[-1])
        tokens = torch.zeros(rows, width, dtype=torch.int64, device=device)
        zeros, none = (torch.zeros(rows, dtype=dtype, device=device) for dtype in (torch.int64, torch.bool))
        stops = torch.tensor(sorted(stop_tokens(model, None)), dtype=torch.int64, device=device)
        state = State(cache, zeros, hidden[:, 0].clone(), zeros.clone(), None, stops)
        free: list[int | None] = [None] * rows
        return cls(
            model, rule, state, new, free, [1] * rows, [0] * rows, tokens, hidden, zeros.clone(), none,
            BookBuffers.of(CandidateTree(), device), stops,
        )  # fmt: skip

    def take_in(self, rows: list[int], numbers: list[int], lengths: list[int], fresh: State) -> None:
        """Prompts that were passed through the model into free rows."""
        at = torch.tensor(rows, device=self.model.device)
        self.state.put(at, fresh)
        self.at[at], self.ended[at] = 0, False
        for row, number, length in zip(rows, numbers, lengths, strict=True):
            self.numbers[row], self.lengths[row], self.counts[row] = number, length, 0

    def narrowed(self, rows: list[int]) -> _Batch:
        """These rows alone."""
        at = torch.tensor(rows, device=self.model.device)
        return _Batch(
            self.model, self.rule, self.state.narrow(at), self.new, [self.numbers[r] for r in rows], [self.lengths[r] for r in rows],
            [self.counts[r] for r in rows], self.tokens[at], self.hidden[at.to(self.hidden.device)], self.at[at], self.ended[at],
            self.plain, self.stops,
        )  # fmt: skip

    def run(self) -> list[Text]:
        """LOOK steps, or as many as the longest text still needs, and the texts that ended in them, whose rows are then free."""
        self.state.cache.slots.set_lengths(self.lengths)
        if self.step is None:
            self.step = stepper(self.model, self.state, self.plain, self.rule)
        needed = max(self.new - c for c, n in zip(self.counts, self.numbers, strict=True) if n is not None)
        steps = min(LOOK, needed)
        states, roots, sound = [], [], []
        for i in range(1, steps + 1):
            states.append(self.state.hidden.clone())
            roots.append(self.state.root.clone())
            # Behind the last token of all that is decoded here nothing is asked.
            sound.append(self.step()[1] >= 0 if i < needed else torch.ones_like(self.ended))
        tokens = torch.stack(roots, dim=1)
        row = torch.arange(len(tokens), device=tokens.device)[:, None]
        at = self.at[:, None] + torch.arange(steps, device=tokens.device)
        self.tokens[row, at] = tokens
        there = self.hidden.device
        self.hidden[row.to(there), at.to(there)] = torch.stack(states, dim=1)
        self.at += steps
        over = torch.isin(tokens, self.stops).cumsum(dim=1).bool() | self.ended[:, None]
        self.ended, broken = over[:, -1], (~torch.stack(sound, dim=1) & ~over).any(dim=1)
        texts = []
        for r, (ended, unusable) in enumerate(torch.stack([self.ended, broken], dim=1).tolist()):
            number = self.numbers[r]
            if number is None:
                continue
            if unusable:
                raise unsound(self.model)
            self.counts[r] += steps
            self.lengths[r] += steps
            if ended or self.counts[r] >= self.new:
                texts.append(self._text(r, number))
                self.numbers[r], self.lengths[r] = None, 1
        idle = torch.tensor([n is None for n in self.numbers], device=self.at.device)
        self.at.masked_fill_(idle, 0)
        return texts

    def _text(self, row: int, number: int) -> Text:
        tokens = self.tokens[row, : min(self.counts[row], self.new)]
        ends = torch.isin(tokens, self.stops)
        count = int(ends.int().argmax()) + 1 if bool(ends.any()) else len(tokens)
        return Text(number, tokens[:count].tolist(), self.hidden[row, :count].clone())
