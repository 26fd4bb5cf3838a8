"""Rows: text and JSON by file and line, so that what is wrong can be named, and what rows of several kinds have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field

from medusa_runtime.errors import InputError
from medusa_runtime.reading import Text, parse_json, read_json

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation, as OpenAI ("role", "content") or ShareGPT ("from", "value") writes it; the content of a turn that is
    not text (an image, a call) is left as it is."""

    named: Annotated[Text, Field(validation_alias=AliasChoices("role", "from"))]
    content: Annotated[Any, Field(validation_alias=AliasChoices("content", "value"))] = None

    @property
    def role(self) -> str | None:
        """ "user", "assistant" or "system"; None where it is another."""
        return ROLES.get(self.named)


def read_text(path: Path) -> str:
    """A file's text, or an InputError that says why there is none."""
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_entries(path: Path) -> list[tuple[str, Any]]:
    """(where it stands, what it is) of each entry of a ``.json`` list or line of a ``.jsonl`` file, empty lines left out.

    Raises:
        InputError: names file and line: not to be read, not JSON, no list.
    """
    if path.suffix == ".jsonl":  # a line ends with \n alone: JSON text may hold the other characters that end one
        lines = enumerate(read_text(path).split("\n"), start=1)
        return [
            (where, parse_json(line, where)) for i, line in lines if line.strip() for where in [f"{path}, line {i}"]
        ]
    entries = read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path}: holds no list; for one object a line name it .jsonl")
    return [(f"{path}, entry {i}", entry) for i, entry in enumerate(entries, start=1)]


def group_of(row: dict[str, Any], where: str) -> str:
    """The group with which a row is held out: its "group", a text or a number; where it stands, if it has none.

    Raises:
        InputError: a group that is neither.
    """
    group = row.get("group")
    if group is None:
        return where
    if type(group) not in (str, int, float) or group != group:
        raise InputError(f'{where}: "group" must be text or a number; leave it out where there is none')
    return str(group)
