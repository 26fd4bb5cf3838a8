"""Tokens: prompts and conversations as token ids, by the tokenizer's chat template where they are chats, and as many as there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from medusa_runtime.decode import check_tokens
from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel

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
    ``room`` only the ends."""

    prompts: Sequence[Prompt]
    rows: list[list[int]]
    room: int
    cut: int

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
    places, ahead = model.max_context or 1 << 30, model.num_heads
    room = places - max_new_tokens - ahead
    if room < 1:
        raise InputError(
            f"--max-new-tokens {max_new_tokens}: with {ahead} looked ahead they exceed the {places} positions of {model.name}; ask for less"
        )
    rows = tokenize(prompts, model.tokenizer)
    check_tokens(rows, model.vocab_size, model.name, [p.where for p in prompts])
    return Fitted(prompts, [row[-room:] for row in rows], room, sum(len(row) > room for row in rows))
