"""Tokens: prompts and conversations as token ids, by the tokenizer's chat template where they are chats, and as many as there is room for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel
from medusa_runtime.request import check_tokens

from ..rows import ROLES, Turns
from .corpus import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a template raises, or transformers about it: a template is code, and computes with what it is given.
BROKEN = (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], where: str, asking: bool = True
) -> list[int]:
    """Token ids of a conversation through the tokenizer's chat template, ``asking``: with what opens the assistant's turn behind it.

    Args:
        messages: turns with "role" and "content".
        where: they stand, for errors.

    Raises:
        InputError: see :func:`check_template`; or the template is broken, refuses these turns or makes nothing of them.
    """
    name = check_template(tokenizer, where)
    turns = "the turn" if len(messages) == 1 else f"turns 0 to {len(messages) - 1}"
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asking)
    except BROKEN as error:
        raise InputError(f"{where}: the tokenizer's chat template refuses {turns} ({name}): {error}") from None
    ids = text_tokens(tokenizer, text, where, special=False)
    if not ids:
        raise InputError(
            f"{where}: the tokenizer's chat template makes nothing of {turns} ({name}); mend or replace it"
        )
    return ids


def check_template(tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    """The tokenizer's name, or an InputError where it has no chat template, or several and none of them the default."""
    templates, name = tokenizer.chat_template, str(getattr(tokenizer, "name_or_path", "") or "without a name")
    if not templates:
        raise InputError(
            f"{where}: is a conversation, but the tokenizer has no chat template ({name}); take a model that was trained to chat, "
            'set a template, or give plain text: a line of a .txt, or {"text": "..."}'
        )
    if isinstance(templates, dict) and "default" not in templates:
        raise InputError(
            f"{where}: is a conversation, but the tokenizer ({name}) has the chat templates {', '.join(sorted(templates))} and none named "
            "default; name one of them so"
        )
    return name


def text_tokens(tokenizer: PreTrainedTokenizerBase, text: str, where: str, special: bool = True) -> list[int]:
    """Token ids of plain text, with what the tokenizer puts around it (``special``).

    Raises:
        InputError: half of a surrogate pair, which is no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: is no text: character {error.start} is {text[error.start]!a}; give UTF-8") from None
    ids: list[int] = tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"]
    return ids


def spoken(turns: Turns, where: str) -> list[dict[str, str]]:
    """The turns as chat templates take them.

    Raises:
        InputError: one that has no known role or no text.
    """
    messages = []
    for i, turn in enumerate(turns):
        if turn.role is None or turn.text is None:
            raise InputError(f"{where}: turn {i} has no known role and text; roles: {', '.join(ROLES)}")
        messages.append({"role": turn.role, "content": turn.text})
    return messages


def answered_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], where: str
) -> Iterator[tuple[list[int], list[int]]]:
    """For each turn of the assistant in a conversation, the tokens before it and those of the turn.

    The template is applied up to the turn and through it, so that its tokens are known whatever the template looks like: those
    from where the two part. What a template rewrites for a later turn (thoughts, say) is so before that one.

    Raises:
        InputError: see :func:`chat_tokens`.
    """
    check_template(tokenizer, where)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = chat_tokens(tokenizer, messages[:i], where) if i else []
            whole = chat_tokens(tokenizer, messages[: i + 1], where, asking=False)
            same = common(before, whole)
            yield whole[:same], whole[same:]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    return sum(takewhile(bool, map(eq, a, b)))


def tokenize(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
) -> list[list[int]]:
    """Token ids of each prompt, chat turns through the tokenizer's template; the last ``max_tokens``, or all.

    Raises:
        InputError: names the prompt: it makes no tokens, or see :func:`chat_tokens`.
    """
    rows = []
    for prompt in prompts:
        if prompt.chat:
            ids = chat_tokens(tokenizer, prompt.messages, prompt.where)
        else:
            ids = text_tokens(tokenizer, prompt.text, prompt.where)
        if not ids:
            raise InputError(f"{prompt.where}: prompt {prompt.text[:40]!r} makes no tokens; remove it")
        rows.append(ids[-(max_tokens or 0) :])
    return rows


@dataclass(frozen=True)
class Fitted:
    """Prompts as ``rows`` of token ids that leave room for what is to be decoded: of the ``cut`` ones that were longer than
    ``room`` only the ends. ``answers`` are token ids of text that was made elsewhere, one a prompt; by default the model makes it."""

    prompts: Sequence[Prompt]
    rows: list[list[int]]
    room: int
    cut: int
    tokenizer: PreTrainedTokenizerBase
    answers: list[list[int]] | None = None

    @property
    def turns(self) -> list[int]:
        """Texts to be decoded for each prompt: one, and one for everything that the user says then."""
        return [1 + len(p.later) for p in self.prompts]

    def then(self, number: int, answers: Sequence[Sequence[int]]) -> list[int]:
        """The row of the turn behind these answers to prompt ``number``, token ids each: the conversation so far."""
        prompt = self.prompts[number]
        messages = prompt.messages
        for answer, asked in zip(answers, prompt.later, strict=False):
            said = self.tokenizer.decode(answer, skip_special_tokens=True)
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": asked}]
        return chat_tokens(self.tokenizer, messages, prompt.where)[-self.room :]

    def try_turns(self) -> None:
        """InputError where the chat template refuses a conversation in a later turn: told before the work."""
        for i, prompt in enumerate(self.prompts):
            if prompt.later:
                self.then(i, [[0]] * len(prompt.later))

    def told(self) -> str | None:
        """What was cut, in words."""
        if not self.cut:
            return None
        return (
            f"{self.cut} of {len(self.rows)} prompts are longer than the {self.room:,} tokens that the model has room for beside new ones; "
            "their beginnings were cut"
        )


def fitted(model: MedusaModel, prompts: Sequence[Prompt], max_new_tokens: int) -> Fitted:
    """The prompts' tokens, with room for new ones and those that heads look ahead.

    Raises:
        InputError: no room, a token that the model does not have, or see :func:`tokenize`.
    """
    room = room_for(model, max_new_tokens)
    rows = tokenize(prompts, model.tokenizer)
    check_tokens(rows, model.vocab_size, model.name, [p.where for p in prompts])
    cut = sum(len(row) > room for row in rows)
    made = Fitted(prompts, [row[-room:] for row in rows], room, cut, model.tokenizer)
    made.try_turns()
    return made


def fitted_rows(model: MedusaModel, rows: Sequence[Sequence[int]], max_new_tokens: int) -> Fitted:
    """As :func:`fitted`, of prompts that are token ids already."""
    room = room_for(model, max_new_tokens)
    names = [f"prompt {i + 1}" for i in range(len(rows))]
    check_tokens(rows, model.vocab_size, model.name, names)
    prompts = [Prompt(" ".join(map(str, row)), name, where=name) for row, name in zip(rows, names, strict=True)]
    cut = sum(len(row) > room for row in rows)
    return Fitted(prompts, [list(row[-room:]) for row in rows], room, cut, model.tokenizer)


def room_for(model: MedusaModel, max_new_tokens: int) -> int:
    """Tokens that a prompt may have, beside new ones and those that heads look ahead.

    Raises:
        InputError: none.
    """
    places, ahead = model.max_context or 1 << 30, model.num_heads
    room = places - max_new_tokens - ahead
    if room < 1:
        raise InputError(
            f"--max-new-tokens {max_new_tokens}: with {ahead} looked ahead they exceed the {places} positions of {model.name}; ask for less"
        )
    return room
