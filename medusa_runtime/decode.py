"""Decoding with a candidate tree, as it is called: prefill, and the loop over steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .acceptance.accept import choose
from .acceptance.rules import GREEDY, Rule
from .attention import AttentionContext
from .book import TreeBook
from .buffers import TreeBuffers
from .errors import InputError, out_of_memory
from .graph import Workspace, whole_slots
from .processes import agreed
from .request import book_for, check_request, check_tokens, draw_streams, rule_for
from .step import State
from .stops import stop_tokens
from .tree import CandidateTree
from .tree_model import TreeModel
from .treefile import TreeFile


@torch.inference_mode()
def prefill(
    model: TreeModel,
    prompts: Sequence[Sequence[int]],
    capacity: int,
    static: bool = False,
    rule: Rule = GREEDY,
    streams: Sequence[int] | None = None,
    max_new_tokens: int | None = None,
    stops: Sequence[int] = (),
    into: State | None = None,
    width: int = 0,
) -> State:
    """Run the prompts through the model in one right-padded pass; the first token follows the rule like all others.

    Args:
        prompts: B lists of token ids, none empty.
        capacity: cache slots a sequence; at least the longest prompt and what is to be decoded, a tree included.
        static: see :class:`Slots`; pays where many sequences are decoded plainly on a CPU.
        streams: B numbers, see :func:`stream`.
        max_new_tokens, stops: when sequences end; by default never.
        into: an earlier state of as many sequences, whose memory is used again.
        width: tokens of the pass, where they are to be more than the longest prompt has.

    Raises:
        InputError: an empty prompt, one longer than the cache, a token that the model does not have, logits that are NaN or infinite, or out of memory.
    """
    lengths = [len(p) for p in prompts]
    if not lengths or min(lengths) == 0:
        raise InputError("a prompt is empty: decoding needs at least one token to start from")
    check_tokens(prompts, model.vocab_size, model.name)
    longest, batch, device = max(lengths), len(prompts), model.device
    width = max(width, longest)
    capacity = capacity if into is None else into.cache.slots.capacity
    if longest > capacity:
        raise InputError(f"a prompt of {longest} tokens is longer than the cache of {capacity} slots; make one larger")
    tokens = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts], device=device)
    cache = model.new_cache(batch, capacity, static) if into is None else into.cache
    slots = cache.slots
    slots.set_lengths([0] * batch)
    last = torch.tensor(lengths, device=device) - 1
    with out_of_memory(f"a pass over {batch} prompt(s) of up to {longest} tokens", device):
        # Logits only where each prompt ends: over a long batch and a large vocabulary all of them would be gigabytes.
        hidden, logits = model(tokens, cache, AttentionContext(slots), keep=last[:, None])
    own = torch.arange(batch, device=hidden.device)
    slots.set_lengths(lengths)
    slots.ceiling = capacity if max_new_tokens is None else longest + max_new_tokens
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise unsound(model)
    numbers = torch.tensor(list(range(batch)) if streams is None else list(streams), device=device)
    root = choose(rule, logits, TreeBuffers.of(CandidateTree(), device), slots.lengths - 1, numbers)[:, 0]
    left = None if max_new_tokens is None else torch.full_like(root, max_new_tokens)
    hidden = hidden[own, last.to(hidden.device)]
    text = into.text if into is not None and into.text is not None else tokens.new_zeros(batch, capacity)
    text[:, :longest] = tokens[:, :longest]
    ends = torch.tensor(stops, dtype=torch.int64, device=device)
    made = State(cache, root, hidden, numbers, left, ends, text, last + 1)
    if into is None:
        return made
    for kept, new in zip(into.tensors(), made.tensors(), strict=True):
        kept.copy_(new)
    into.stops, into.text = ends, text
    if into.prompts is not None:
        into.prompts.copy_(last + 1)
    return into


class Readback:
    """A step's tokens and counts on their way to the host, which need not wait for them: on CUDA copies into pinned memory
    and an event behind them, on the CPU the tensors themselves."""

    def __init__(self, tokens: Tensor, emitted: Tensor, drafted: Tensor) -> None:
        self.event = torch.cuda.Event() if tokens.is_cuda else None
        self.host = tokens, emitted, drafted
        if self.event is not None:
            self.host = _pinned(tokens), _pinned(emitted), _pinned(drafted)
            self.event.record(torch.cuda.current_stream(tokens.device))

    def wait(self) -> tuple[list[list[int]], list[int], list[list[int]]]:
        """tokens (B, D + 1), emitted (B,) and drafted (B, 2) as lists."""
        if self.event is not None:
            self.event.synchronize()
        tokens, emitted, drafted = self.host
        return tokens.tolist(), emitted.tolist(), drafted.tolist()


def _pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def steps_ahead(device: torch.device) -> int:
    """How many steps are launched before the oldest is read: on a GPU one, so that it never waits for the host."""
    return int(device.type == "cuda")


def unsound(model: TreeModel) -> InputError:
    """The error for logits that are NaN or infinite, behind which there is no next token."""
    return InputError(
        f"{model.name}: the model's logits are NaN or infinite, so there is no next token; its numbers overflow in "
        f"{model.dtype_name} or its weights are damaged: try another --dtype (bfloat16, float32)"
    )


@dataclass
class Generation:
    """What was generated: for each sequence its new ``tokens`` (the end token included), how many tokens each of its steps emitted
    (``emitted``, summing to ``len(tokens)``), and how many accepted tokens, over all its steps, heads and lookup both had, the heads
    alone, and the lookup alone (``drafted``; with one a step, the root, they are the tokens)."""

    tokens: list[list[int]] = field(default_factory=list)
    emitted: list[list[int]] = field(default_factory=list)
    drafted: list[list[int]] = field(default_factory=list)

    @classmethod
    def start(cls, sequences: int) -> Generation:
        """Nothing yet, of so many sequences."""
        return cls(
            [[] for _ in range(sequences)], [[] for _ in range(sequences)], [[0, 0, 0] for _ in range(sequences)]
        )

    def add(self, added: list[list[int]], drafted: list[list[int]]) -> None:
        """Take in what one step of :func:`steps` added; a sequence that has ended adds nothing."""
        for b, new in enumerate(added):
            if new:
                self.tokens[b] += new
                self.emitted[b].append(len(new))
                self.drafted[b] = [x + y for x, y in zip(self.drafted[b], drafted[b], strict=True)]

    @property
    def acceptance_length(self) -> float:
        """Tokens a step, over all sequences: the measured E[L]; 1.0 for plain decoding."""
        return sum(map(sum, self.emitted)) / max(1, sum(map(len, self.emitted)))


def steps(
    model: TreeModel,
    prompts: Sequence[Sequence[int]],
    tree: CandidateTree | TreeBook | TreeFile,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    rule: Rule | None = None,
    streams: Sequence[int] | None = None,
) -> Generator[tuple[list[list[int]], list[list[int]]], None, None]:
    """As :func:`stream`; with each step's tokens, for each sequence, how many of them behind the root heads and lookup both had, the
    heads alone, and the lookup alone."""
    rule = rule_for(tree, rule)
    book = book_for(tree, prompts, max_new_tokens)
    capacity = check_request(model, prompts, book, max_new_tokens)
    streams = agreed(model, draw_streams(rule, len(prompts))) if streams is None else streams
    stops = sorted(stop_tokens(model, eos_token_id))
    ahead = steps_ahead(model.device)
    space = Workspace()
    try:
        with model.turn:
            space = Workspace.take(model, len(prompts), capacity)
            space.state = prefill(
                model, prompts, whole_slots(model, capacity), False, rule, streams, max_new_tokens, stops, space.state
            )
            run = space.stepper(model, book, rule, stops)
        lengths, left = list(map(len, prompts)), [max_new_tokens] * len(prompts)
        flying: deque[Readback] = deque()
        while any(left):
            # A step adds a token to every sequence that goes on: no more are launched than may be needed.
            if len(flying) <= ahead and len(flying) < max(left):
                with model.turn:
                    flying.append(Readback(*run()))
                continue
            tokens, emitted, drafted = flying.popleft().wait()
            added: list[list[int]] = []
            for b, (row, count) in enumerate(zip(tokens, emitted, strict=True)):
                if count < 0:
                    raise unsound(model)
                new = row[:count]
                left[b] = 0 if new and new[-1] in stops else left[b] - count
                lengths[b] += count
                added.append(new)
            space.state.cache.slots.expect(0, len(flying) * (book.depth + 1), lengths)
            yield added, [_who_drafted(len(new), *depths) for new, depths in zip(added, drafted, strict=True)]
    except InputError:  # what is not a number in a cache would spread to whoever gets it next
        space = Workspace()
        raise
    finally:
        with model.turn:
            model.workspace = space if model.fixed else None


def _who_drafted(emitted: int, heads: int, lookup: int) -> list[int]:
    """Of a step's tokens behind the root, as far as they count: had by both, by the heads alone, by the lookup alone."""
    heads, lookup = (max(0, min(depth, emitted - 1)) for depth in (heads, lookup))
    both = min(heads, lookup)
    return [both, heads - both, lookup - both]


def stream(
    model: TreeModel,
    prompts: Sequence[Sequence[int]],
    tree: CandidateTree | TreeBook | TreeFile,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    rule: Rule | None = None,
    streams: Sequence[int] | None = None,
) -> Iterator[list[list[int]]]:
    """Decode, yielding after each step the tokens it added to each sequence (an empty list once it has ended); of a
    whole tree.json with the operating point for these prompts. Requests from several threads take turns, a step each.

    Args:
        tree: one tree, a book of them, or a whole tree.json.
        rule: how tokens are accepted; by default as the tree.json was calibrated, or greedily.
        streams: a number a sequence, which with the rule's seed fixes what is drawn for it; by default 0, 1, ..., or where the
            rule has no seed, such as were never used. A sequence keeps its text in any batch if it keeps its number.

    Raises:
        InputError: an empty prompt, a token or more context than the model has, a tree deeper than its heads, or logits that are NaN or
            infinite.
    """
    with closing(steps(model, prompts, tree, max_new_tokens, eos_token_id, rule, streams)) as run:
        for added, _ in run:
            yield added


def generate(
    model: TreeModel,
    prompts: Sequence[Sequence[int]],
    tree: CandidateTree | TreeBook | TreeFile,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    rule: Rule | None = None,
    streams: Sequence[int] | None = None,
) -> Generation:
    """Decode to the end; see :func:`stream`."""
    result = Generation.start(len(prompts))
    for added, drafted in steps(model, prompts, tree, max_new_tokens, eos_token_id, rule, streams):
        result.add(added, drafted)
    return result
