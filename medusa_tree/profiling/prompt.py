"""A prompt, and how it stands in a row of a corpus: raw text, turns, a conversation, or a request as OpenAI's API takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from medusa_runtime.errors import InputError
from medusa_runtime.reading import Text, read_as

from ..rows import CONVERSATIONS, Turn, Turns, group_of, label_of


@dataclass(frozen=True)
class Prompt:
    """One prompt: raw ``text``, or a user's turn to go through the model's chat template (``chat``).

    Prompts of one ``group`` (a source file, a conversation) are held out together. ``where`` it stands is for errors.

    before: turns of a chat that stand before the text, (role, content) each, such as the system's.
    later: what the user says then, each once the model has answered.
    category: the kind of text, where the corpus names one.
    name: what the corpus calls it, by which an answer that was given elsewhere is found.
    """

    text: str
    group: str
    chat: bool = False
    where: str = field(default="the prompt", compare=False)
    before: tuple[tuple[str, str], ...] = ()
    later: tuple[str, ...] = ()
    category: str | None = None
    name: str | None = field(default=None, compare=False)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat up to the text."""
        return [{"role": role, "content": content} for role, content in (*self.before, ("user", self.text))]


Texts = tuple[Text, ...]
# The fields that hold a prompt, in the order in which they are looked for.
FORMS: dict[str, Any] = {"prompt": Texts, "text": Text, "turns": Texts, **dict.fromkeys(CONVERSATIONS, Turns), "question": Text}  # fmt: skip
REQUEST = "messages"  # what is to be answered, not a conversation as it went
NAMES = ("custom_id", "task_id", "question_id")  # OpenAI's batches; HumanEval; MT-bench and Spec-Bench


def prompt_of(row: Any, where: str, category: str | None = None) -> Prompt | None:
    """The prompt in a row; None where it is a conversation of which nothing can be asked: it is empty, or does not begin with the
    user's turn.

    Args:
        where: the row stands, for errors.
        category: of the prompt, whatever the row says; by default what it says.

    Raises:
        InputError: a row without a prompt, or a field that is not what it should be.
    """
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise InputError(f"{where}: neither a text nor an object")
    made = partial(
        Prompt,
        group=group_of(row, where),
        where=where,
        category=category or kind_of(row, where),
        name=name_of(row),
    )
    body = row["body"] if isinstance(row.get("body"), dict) else {}  # a line of OpenAI's batch API
    for key, form in FORMS.items():
        if not (value := row.get(key) or body.get(key)):
            continue
        kind = Text if key == "prompt" and isinstance(value, str) else form
        said = read_as(kind, value, f'{where}: "{key}"', "give a text, or a list of turns")
        if (prompt := _asked(key, said, made)) is not None:
            return prompt
    if any(isinstance(row.get(key), list) for key in CONVERSATIONS if key != REQUEST):
        return None
    raise InputError(f"{where}: no prompt in it; give {', '.join(map(repr, FORMS))}")


def kind_of(row: dict[str, Any], where: str) -> str | None:
    """The category of a row; InputError where it is neither text nor a number."""
    return label_of(row, "category", where) or label_of(row, "sub_category", where) or None


def name_of(row: dict[str, Any]) -> str | None:
    """What the corpus calls a row."""
    return next((str(row[key]) for key in NAMES if type(row.get(key)) in (str, int, float) and row[key] != ""), None)


def _asked(key: str, said: Any, made: Callable[..., Prompt]) -> Prompt | None:
    """The prompt in what a field says, None where it has none."""
    if isinstance(said, str):
        return made(said, chat=key == "question") if said.strip() else None
    if key == REQUEST:
        return _request(said, made)
    if key in CONVERSATIONS:
        return _opening(said, made)
    turns = [turn for turn in said if turn.strip()]
    return made(turns[0], chat=True, later=tuple(turns[1:])) if turns else None


def _request(turns: tuple[Turn, ...], made: Callable[..., Prompt]) -> Prompt | None:
    """The user's last turn where nothing follows, else, in a conversation that has been answered, the first; with all before it."""
    said = _told(turns)
    asked = [i for i, (role, _) in enumerate(said) if role == "user"]
    if not asked:
        return None
    at = asked[-1] if asked[-1] == len(said) - 1 else asked[0]
    return made(said[at][1], chat=True, before=tuple(said[:at]))


def _opening(turns: tuple[Turn, ...], made: Callable[..., Prompt]) -> Prompt | None:
    """The user's turn that a conversation begins with, behind none but the system's."""
    start = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    opening = _told(turns[start : start + 1])
    if not opening or opening[0][0] != "user":
        return None
    return made(opening[0][1], chat=True, before=tuple(_told(turns[:start])))


def _told(turns: tuple[Turn, ...]) -> list[tuple[str, str]]:
    """(role, text) of the turns that have both."""
    return [(turn.role, turn.text) for turn in turns if turn.role and turn.text and turn.text.strip()]
