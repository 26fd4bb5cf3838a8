"""Given answers: text that was made elsewhere, with its prompts, in the forms in which engines and batch services write it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel
from medusa_runtime.reading import Integer, Text, read_as
from medusa_runtime.request import check_tokens
from medusa_runtime.stops import stop_tokens

from ..rows import CONVERSATIONS, Turns, group_of, iter_entries
from .prompt import Prompt, kind_of, name_of
from .tokens import Fitted, answered_tokens, chat_tokens, common, room_for, spoken, text_tokens

Ids = list[Annotated[Integer, Field(ge=0)]]
PROMPT_IDS = ("prompt_ids", "prompt_token_ids", "input_ids")
ANSWER_IDS = ("response_ids", "token_ids", "output_ids", "output_token_ids")
ANSWER_TEXT = ("response", "answer", "output", "completion", "generated_text")
PROMPT_TEXT = ("prompt", "question", "instruction")
FORMS = '"prompt" and "response", "messages", "prompt_token_ids" and "token_ids", or a batch service\'s "custom_id" and "response" with --corpus'


def read_answers(
    path: Path, model: MedusaModel, max_new_tokens: int, asked: Sequence[Prompt] = (), most: int | None = None
) -> Fitted:
    """Read answers; the ending decides (see :func:`medusa_tree.rows.ending`): ``.jsonl`` one object a line, ``.json`` a list.

    A row's prompt is token ids (``prompt_ids``, ``prompt_token_ids``, ``input_ids``), raw text (``prompt``), or a chat (a list of
    turns); its answer token ids (``response_ids``, ``token_ids``, ``output_ids``) or text (``response``, ``answer``, ``text`` ...), at
    its top or in the first of its ``outputs``. Of ``messages`` each of the assistant's turns is an answer. A row without a prompt, as
    batch services write it, belongs to the one ``asked`` that has its ``custom_id``. docs/formats.md lists all forms.

    Args:
        max_new_tokens: of each answer so many tokens are judged, and those that heads look ahead are read beside.
        asked: the prompts of --corpus.
        most: rows, or None for all.

    Raises:
        InputError: names file and line: no answer, no prompt or several forms of it, tokens that the model does not have.
    """
    known: dict[str, list[Prompt]] = {}
    for p in asked:
        known.setdefault(p.name or "", []).append(p)
    room, stops = room_for(model, max_new_tokens), stop_tokens(model, None)
    prompts: list[Prompt] = []
    rows: list[list[int]] = []
    answers: list[list[int]] = []
    skipped = cut = 0
    for number, (where, row) in enumerate(iter_entries(path)):
        if most is not None and number >= most:
            break
        if not isinstance(row, dict):
            raise InputError(f"{where}: not an object; give {FORMS}")
        of = None if _has_prompt(row) else _asked(row, where, known)
        group = group_of(row, where) if of is None or row.get("group") is not None else of.group
        category = kind_of(row, where) or (None if of is None else of.category)
        empty = True
        for prompt, answer in _answers(row, where, model, of):
            end = next((i + 1 for i, token in enumerate(answer) if token in stops), None)
            answer = answer[: min(end or len(answer), max_new_tokens + model.num_heads)]
            if not prompt or kept(answer, stops, model.num_heads, max_new_tokens) < 1:
                continue
            check_tokens([prompt, answer], model.vocab_size, model.name, [where, where])
            empty = False
            prompts.append(Prompt(" ".join(map(str, prompt)), group, where=where, category=category))
            rows.append(prompt[-room:])
            answers.append(answer)
            cut += len(prompt) > room
        skipped += empty
    if not rows:
        raise InputError(
            f"{path}: holds no answer to judge heads by ({skipped} were empty, failed or too short); give {FORMS}"
        )
    if skipped:
        warnings.warn(
            f"{path}: {skipped} rows are skipped: failed requests, nothing asked, or answers too short to judge a head by",
            stacklevel=2,
        )
    return Fitted(prompts, rows, room, cut, model.tokenizer, answers)


def kept(answer: Sequence[int], stops: frozenset[int], heads: int, max_new_tokens: int) -> int:
    """Positions of an answer that all heads can be judged at: all where it ended, and else but the last, behind which nobody knows
    what would have come."""
    ended = bool(answer) and answer[-1] in stops
    return min(max_new_tokens, len(answer) - (0 if ended else heads))


def _answers(
    row: dict[str, Any], where: str, model: MedusaModel, of: Prompt | None
) -> Iterator[tuple[list[int], list[int]]]:
    """The (prompt, answer) pairs of a row, as token ids; none where the request failed. ``of`` is the prompt that it is of, where
    that stands elsewhere."""
    tokenizer = model.tokenizer
    for name in CONVERSATIONS:
        if row.get(name) and not any(
            row.get(key) is not None for key in (*ANSWER_IDS, *ANSWER_TEXT, "outputs", "text")
        ):
            messages = spoken(read_as(Turns, row[name], f'{where}: "{name}"', "give a list of turns"), where)
            yield from answered_tokens(tokenizer, messages, where)
            return
    made = row["outputs"][0] if isinstance(row.get("outputs"), list) and row["outputs"] else row
    if not isinstance(made, dict):
        made = {"text": made}
    ids = next((made[key] for key in ANSWER_IDS if made.get(key) is not None), None)
    text = next((made[key] for key in ANSWER_TEXT if made.get(key) is not None), None)
    if text is None and (
        made is not row or any(row.get(key) is not None for key in (*PROMPT_TEXT, *PROMPT_IDS, *CONVERSATIONS))
    ):
        text = made.get("text")
    if isinstance(text, dict) or row.get("error"):  # a batch service's
        text = _of_service(text, row)
        if text is None:
            return
    if ids is None and text is None:
        raise InputError(f"{where}: no answer in it; give {FORMS}")
    prompt = _prompt(row, where, of)
    if ids is not None:
        answer = read_as(Ids, ids, f"{where}: the answer's token ids", "give whole numbers, 0 or more")
        yield _prompt_ids(prompt, where, model), answer
        return
    said = read_as(Text, text, f"{where}: the answer", "give a text")
    if isinstance(prompt, str):
        before, whole = (text_tokens(tokenizer, part, where) for part in (prompt, prompt + said))
        same = common(before, whole)
        yield whole[:same], whole[same:]
    elif prompt and isinstance(prompt[0], int):
        yield list(prompt), text_tokens(tokenizer, said, where, special=False)
    else:
        yield from list(answered_tokens(tokenizer, [*prompt, {"role": "assistant", "content": said}], where))[-1:]


def _of_service(response: Any, row: dict[str, Any]) -> str | None:
    """The text in the answer of an OpenAI-compatible batch service; None where the request failed."""
    try:
        return Batch.validate_python(response).body.choices[0].said if not row.get("error") else None
    except (ValidationError, IndexError):
        return None


@dataclass(frozen=True)
class _Message:
    content: Text


@dataclass(frozen=True)
class _Choice:
    """Of a chat, or of a completion."""

    message: _Message | None = None
    text: Text | None = None

    @property
    def said(self) -> str | None:
        return self.text if self.message is None else self.message.content


@dataclass(frozen=True)
class _Body:
    choices: list[_Choice]


@dataclass(frozen=True)
class _Response:
    body: _Body


Batch = TypeAdapter(_Response)


def _has_prompt(row: dict[str, Any]) -> bool:
    return any(row.get(key) is not None for key in (*PROMPT_IDS, *PROMPT_TEXT, *CONVERSATIONS))


def _asked(row: dict[str, Any], where: str, known: dict[str, list[Prompt]]) -> Prompt:
    """The prompt of --corpus that a row without one belongs to, by its name."""
    name = name_of(row)
    if name is None:
        raise InputError(f"{where}: has no prompt; give {FORMS}")
    if len(found := known.get(name, [])) != 1:
        told = "no prompt of --corpus is" if not found else f"{len(found)} prompts of --corpus are"
        raise InputError(f"{where}: belongs to {name!r}, which {told} named; give {FORMS}")
    return found[0]


def _prompt(row: dict[str, Any], where: str, of: Prompt | None) -> Any:
    """A row's prompt: token ids, a text, or messages."""
    if of is not None:
        return of.messages if of.chat else of.text
    for key in PROMPT_IDS:
        if row.get(key) is not None:
            return read_as(Ids, row[key], f'{where}: "{key}"', "give whole numbers, 0 or more")
    for key in (*PROMPT_TEXT, *CONVERSATIONS):
        if (value := row.get(key)) is None:
            continue
        if isinstance(value, str):
            return value
        return spoken(read_as(Turns, value, f'{where}: "{key}"', "give a text, or a list of turns"), where)
    raise TypeError("a row without a prompt belongs to one that was asked")


def _prompt_ids(prompt: Any, where: str, model: MedusaModel) -> list[int]:
    if isinstance(prompt, str):
        return text_tokens(model.tokenizer, prompt, where)
    if prompt and isinstance(prompt[0], dict):
        return chat_tokens(model.tokenizer, prompt, where)
    return list(prompt)
