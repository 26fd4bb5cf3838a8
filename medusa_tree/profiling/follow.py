"""Follow: text that is given, through the model in a few passes instead of a step a token; hidden states and, where asked, its choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medusa_runtime.acceptance.rules import Rule
from medusa_runtime.attention import AttentionContext, TreeMask
from medusa_runtime.decode import stop_tokens, unsound
from medusa_runtime.errors import InputError, out_of_memory
from medusa_runtime.model import MedusaModel
from medusa_runtime.processes import agreed
from medusa_runtime.request import check_context
from medusa_runtime.tree import CandidateTree

from ..progress import Progress
from ..traces.text import Ragged, TraceText
from ..traces.trace import RankTrace
from .answers import kept
from .job import Profiling
from .memory import rows_at_once, tokens_at_once
from .profile import ranks_of_texts
from .texts import PASS_TOKENS, Text, width_of
from .tokens import Fitted

WHOLE = 4096  # tokens up to which a text goes through in one pass
CHUNK = 1024  # of longer ones in a pass: a chain of so many nodes, behind what is in the cache
CHUNK_TOKENS = 4 * CHUNK  # of all texts in such a pass: its mask has a row for each
LOOKED_AT = (16, 32)  # texts, and positions of each, at which the model is asked for its own choice
AGREE = 0.97  # of greedy text: other kernels and batches flip ties, some in a thousand


@dataclass(frozen=True)
class Followed:
    """A text's hidden states (T, d), which each token was decided from, and at the positions asked for whether the model would
    have chosen its token."""

    text: Text
    agreed: list[bool]


@torch.inference_mode()
def follow(
    model: MedusaModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    rows: int,
    looked_at: Sequence[Sequence[int]] | None = None,
) -> Iterator[list[Followed]]:
    """Every answer behind its prompt through the model, ``rows`` side by side at most; yields batches, in order. A text of up to WHOLE
    tokens goes through in one pass, a longer one in chunks.

    Args:
        looked_at: positions of each answer at which the model's choice is wanted; logits are computed nowhere else.

    Raises:
        InputError: logits that are NaN or infinite.
        OutOfMemory: fewer rows are needed.
    """
    given = [_Given(i, prompts[i], answers[i], [] if looked_at is None else looked_at[i]) for i in range(len(prompts))]
    at = 0
    while at < len(given):
        longest = len(given[at].tokens)  # the longest come first
        in_a_pass = PASS_TOKENS // width_of(model, longest) if longest <= WHOLE else CHUNK_TOKENS // CHUNK
        part = given[at : at + max(1, min(rows, in_a_pass))]
        yield _batch(model, part)
        at += len(part)


@dataclass(frozen=True)
class _Given:
    """Answer ``number``, its prompt, and the positions at which it is looked at."""

    number: int
    prompt: Sequence[int]
    answer: Sequence[int]
    looked_at: Sequence[int]

    @property
    def tokens(self) -> list[int]:
        """What goes through the model: nothing is decided behind the last token."""
        return [*self.prompt, *self.answer[:-1]]


def _batch(model: MedusaModel, texts: list[_Given]) -> list[Followed]:
    """Texts side by side."""
    rows, device = [t.tokens for t in texts], model.device
    longest = max(map(len, rows))
    whole = longest <= WHOLE
    width = width_of(model, longest) if whole else CHUNK
    capacity = -(-longest // width) * width
    tokens = torch.tensor([[*row, *[0] * (capacity - len(row))] for row in rows], device=device)
    cache = model.new_cache(len(rows), capacity, passing=whole)
    slots = cache.slots
    slots.set_lengths([0] * len(rows))
    slots.ceiling = longest
    states: list[list[Tensor]] = [[] for _ in rows]
    own: list[list[bool]] = [[] for _ in rows]
    for begin in range(0, longest, width):
        end = begin + width
        context = AttentionContext(slots, _chain(width, device) if begin else None)
        columns, asked = _columns(begin, width, texts)
        with out_of_memory(f"a pass over {len(rows)} text(s) x {end - begin} tokens", device):
            hidden, logits = model(tokens[:, begin:end], cache, context, torch.as_tensor(columns, device=device))
        slots.set_lengths([end] * len(rows))
        if not bool(logits.amax(dim=-1).isfinite().all()):
            raise unsound(model)
        chosen = logits.argmax(dim=-1).tolist()
        for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
            first, last = max(0, len(text.prompt) - 1 - begin), min(end, len(row)) - begin
            if first < last:
                states[i].append(hidden[i, first:last].clone())
                if not bool(states[i][-1].isfinite().all()):  # logits of which are not looked at
                    raise unsound(model)
            own[i] += [chosen[i][j] == text.answer[position] for j, position in asked[i]]
    return [
        Followed(Text(t.number, list(t.answer), torch.cat(state)), said)
        for t, state, said in zip(texts, states, own, strict=True)
    ]


def _columns(
    begin: int, width: int, texts: Sequence[_Given]
) -> tuple[npt.NDArray[np.int64], list[list[tuple[int, int]]]]:
    """(B, n) the columns of a pass at which logits are wanted, and of each text which of them (j) are for which position. At least
    one, and all rows as many: where there is nothing to ask, the answer is not looked at."""
    asked: list[list[tuple[int, int]]] = []
    places: list[list[int]] = []
    for text in texts:
        columns = [(p, len(text.prompt) - 1 + p - begin) for p in text.looked_at]
        inside = [(p, column) for p, column in columns if 0 <= column < width]
        asked.append([(j, p) for j, (p, _) in enumerate(inside)])
        places.append([column for _, column in inside])
    most = max(1, *map(len, places))
    return np.array([[*own, *[0] * (most - len(own))] for own in places], dtype=np.int64), asked


@lru_cache(maxsize=4)
def _chain(tokens: int, device: torch.device) -> TreeMask:
    """Text behind text: each token sees those before it."""
    return TreeMask.of(CandidateTree.chain(tokens - 1), device)


def agreement(model: MedusaModel, given: Fitted, tokens: int, seed: int) -> tuple[float, int]:
    """The share of looked-at positions, and how many, at which a given token is the model's own greedy choice: of some answers drawn
    from all, some positions each.

    Args:
        tokens: of prompt and text held at once.
    """
    texts, positions = LOOKED_AT
    rng = np.random.default_rng(seed)
    answers = given.answers or []
    chosen = rng.permutation(len(answers))[:texts].tolist()
    chosen.sort(key=lambda i: -len(given.rows[i]) - len(answers[i]))
    looked_at = [sorted(rng.permutation(len(answers[i]))[:positions].tolist()) for i in chosen]
    rows = rows_at_once(tokens, max(len(given.rows[i]) + len(answers[i]) for i in chosen))
    batches = follow(model, [given.rows[i] for i in chosen], [answers[i] for i in chosen], rows, looked_at)
    found = [one for batch in batches for followed in batch for one in followed.agreed]
    return sum(found) / len(found), len(found)


def check_texts(model: MedusaModel, given: Fitted) -> None:
    """InputError where texts lie on both sides of a RoPE switch, see :func:`medusa_runtime.request.check_context`: they go through the
    model side by side, and each in one pass with its prompt."""
    pairs = list(zip(given.rows, given.answers or [], strict=True))
    for prompt, answer in pairs:
        check_context(model, [prompt], len(answer))
    check_context(model, [[*prompt, *answer] for prompt, answer in pairs], 0)


def judged(model: MedusaModel, given: Fitted, asked: Profiling) -> str:
    """What text the answers are, in words for the provenance.

    Raises:
        InputError: text that passes for the model's own greedy output and cannot be.
    """
    share, count = agreement(model, given, asked.tokens or agreed(model, tokens_at_once(model)), asked.seed)
    greedy = not getattr(asked.rule, "temperature", 0)
    if share < AGREE and greedy and not asked.reference:
        raise InputError(
            f"{asked.answers}: at {share:.1%} of {count} tokens looked at the answer is this model's own greedy choice; of its own greedy "
            f"text at least {AGREE:.0%} are. Give --acceptance sample with the temperature that it was sampled at, or --reference-text "
            "where it is another model's, or people's, and is to be profiled all the same"
        )
    what = "reference text" if asked.reference else f"answers made elsewhere: {asked.rule}"
    return f"{what}; at {share:.1%} of {count} tokens looked at, the model's own greedy choice"


def profile_answers(
    model: MedusaModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], held_out: Sequence[bool] | npt.NDArray[np.bool_],
    streams: Sequence[int], max_new_tokens: int, candidates: int, rule: Rule, rows: int, progress: Progress = lambda done: None,
) -> RankTrace:  # fmt: skip
    """The trace of given answers, see :func:`medusa_tree.profiling.profile.profile`; ``rows`` side by side at most, of prompts and
    answers that come to less and less."""
    stops, heads = stop_tokens(model, None), model.num_heads
    ranks: list[npt.NDArray[np.int16]] = []
    for batch in follow(model, prompts, answers, rows):
        ranks += ranks_of_texts(model, [followed.text for followed in batch], candidates)
        progress(len(batch))
    ranks = [own[: kept(answer, stops, heads, max_new_tokens)] for own, answer in zip(ranks, answers, strict=True)]
    text = TraceText(Ragged.of(prompts), Ragged.of(answers), np.array(streams, dtype=np.int64))
    return RankTrace.from_sequences(ranks, list(held_out), candidates if heads else 1, rule, text)
