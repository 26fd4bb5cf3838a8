"""Decoding with a candidate tree, as it is called: prefill, and the loop over steps."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .acceptance.accept import choose
from .acceptance.rules import GREEDY, Rule, Sampling
from .attention import AttentionContext
from .buffers import TreeBuffers
from .errors import InputError, out_of_memory
from .graph import Workspace, whole_slots
from .processes import agreed
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
    made = State(cache, root, hidden, numbers, left, torch.tensor(stops, dtype=torch.int64, device=device))
    if into is None:
        return made
    for kept, new in zip(into.tensors(), made.tensors(), strict=True):
        kept.copy_(new)
    into.stops = made.stops
    return into


class Readback:
    """A step's tokens and counts on their way to the host, which need not wait for them: on CUDA copies into pinned memory
    and an event behind them, on the CPU the tensors themselves."""

    def __init__(self, tokens: Tensor, emitted: Tensor) -> None:
        self.event = torch.cuda.Event() if tokens.is_cuda else None
        self.host = tokens, emitted
        if self.event is not None:
            self.host = _pinned(tokens), _pinned(emitted)
            self.event.record(torch.cuda.current_stream(tokens.device))

    def wait(self) -> tuple[list[list[int]], list[int]]:
        """tokens (B, D + 1) and emitted (B,) as lists."""
        if self.event is not None:
            self.event.synchronize()
        tokens, emitted = self.host
        return tokens.tolist(), emitted.tolist()


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


def check_request(model: TreeModel, prompts: Sequence[Sequence[int]], tree: CandidateTree, max_new_tokens: int) -> int:
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
    check_context(model, prompts, max_new_tokens)
    return max(map(len, prompts), default=0) + max_new_tokens + tree.nodes + 1


def check_context(model: TreeModel, prompts: Sequence[Sequence[int]], new: int) -> None:
    """InputError where prompts and ``new`` tokens behind each exceed the model's positions, or where its RoPE would change
    on the way: keys that are cached by then, and other sequences of the batch, would be of the other frequencies."""
    shortest, longest = (f(map(len, prompts), default=0) for f in (min, max))
    if model.max_context is not None and longest + new > model.max_context:
        raise InputError(
            f"a prompt of {longest} tokens and {new} new ones exceed the {model.max_context} positions of {model.name}; shorten either"
        )
    switch = model.rope_switch
    if switch is not None and shortest <= switch < longest + new:
        raise InputError(
            f"prompts of {shortest} to {longest} tokens with {new} new ones lie on both sides of {switch} tokens, behind which "
            f"{model.name} takes other RoPE frequencies (longrope); keep prompt and new tokens within {switch}, or take "
            f"prompts that are all longer"
        )


def check_tokens(prompts: Sequence[Sequence[int]], known: int, model: str, names: Sequence[str] = ()) -> None:
    """InputError where a prompt has a token id that is not among the ``known`` of the model's embedding table.

    Args:
        names: what to call each prompt; by default its number.
    """
    for i, prompt in enumerate(prompts):
        if min(prompt) < 0 or max(prompt) >= known:
            wrong = next(token for token in prompt if not 0 <= token < known)
            raise InputError(
                f"{names[i] if names else f'prompt {i + 1}'}: has token {wrong}, and the embedding table of {model} has rows for 0 to "
                f"{known - 1}; take the model's own tokenizer, without tokens that were added to it alone"
            )


def tree_for(tree: CandidateTree | TreeFile, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> CandidateTree:
    """The tree to decode these prompts with: of a whole tree.json the point for their number, at the context that the
    longest has half-way through."""
    if isinstance(tree, CandidateTree):
        return tree
    longest = max(map(len, prompts), default=0)
    return tree.tree(max(1, len(prompts)), max(1, longest + max_new_tokens // 2))


def rule_for(tree: CandidateTree | TreeFile, rule: Rule | None) -> Rule:
    """The rule asked for, or the one that a whole tree.json was calibrated under, or greedy. A calibration's seed is of its own
    text: nobody asked for that text again."""
    if rule is not None:
        return rule
    rule = tree.acceptance if isinstance(tree, TreeFile) else GREEDY
    return replace(rule, seed=None) if isinstance(rule, Sampling) else rule


def draw_streams(rule: Rule, count: int) -> list[int]:
    """Numbers for ``count`` sequences: 0, 1, ..., or where a sampling rule has no seed, such as were never used."""
    if isinstance(rule, Sampling) and rule.seed is None:
        return [secrets.randbits(62) for _ in range(count)]
    return list(range(count))


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
    model: TreeModel,
    prompts: Sequence[Sequence[int]],
    tree: CandidateTree | TreeFile,
    max_new_tokens: int = 128,
    eos_token_id: int | Sequence[int] | None = None,
    rule: Rule | None = None,
    streams: Sequence[int] | None = None,
) -> Iterator[list[list[int]]]:
    """Decode, yielding after each step the tokens it added to each sequence (an empty list once it has ended); of a
    whole tree.json with the operating point for these prompts. Requests from several threads take turns, a step each.

    Args:
        rule: how tokens are accepted; by default as the tree.json was calibrated, or greedily.
        streams: a number a sequence, which with the rule's seed fixes what is drawn for it; by default 0, 1, ..., or where the
            rule has no seed, such as were never used. A sequence keeps its text in any batch if it keeps its number.

    Raises:
        InputError: an empty prompt, a token or more context than the model has, a tree deeper than its heads, or logits that are NaN or
            infinite.
    """
    rule = rule_for(tree, rule)
    tree = tree_for(tree, prompts, max_new_tokens)
    capacity = check_request(model, prompts, tree, max_new_tokens)
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
            run = space.stepper(model, tree, rule, stops)
        lengths, left = list(map(len, prompts)), [max_new_tokens] * len(prompts)
        flying: deque[Readback] = deque()
        while any(left):
            # A step adds a token to every sequence that goes on: no more are launched than may be needed.
            if len(flying) <= ahead and len(flying) < max(left):
                with model.turn:
                    flying.append(Readback(*run()))
                continue
            tokens, emitted = flying.popleft().wait()
            added: list[list[int]] = []
            for b, (row, count) in enumerate(zip(tokens, emitted, strict=True)):
                if count < 0:
                    raise unsound(model)
                new = row[:count]
                left[b] = 0 if new and new[-1] in stops else left[b] - count
                lengths[b] += count
                added.append(new)
            space.state.cache.slots.expect(0, len(flying) * (tree.depth + 1), lengths)
            yield added
    except InputError:  # what is not a number in a cache would spread to whoever gets it next
        space = Workspace()
        raise
    finally:
        with model.turn:
            model.workspace = space if model.fixed else None


def generate(
    model: TreeModel,
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
