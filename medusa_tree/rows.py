"""Rows: text and JSON by file and line, so that what is wrong can be named, and what rows of several kinds have in common."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, cast

from pydantic import AliasChoices, BeforeValidator, Field

from medusa_runtime.errors import InputError
from medusa_runtime.reading import BOM, Text, parse_json

ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
CONVERSATIONS = ("messages", "conversations", "conversation")  # the fields that hold one
GZIP = ".gz"
# A pair, half of one (the group), or any other escape of JSON text.
SURROGATES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation, as OpenAI ("role", "content") or ShareGPT ("from", "value") writes it."""

    named: Annotated[Text, Field(validation_alias=AliasChoices("role", "from"))]
    content: Annotated[Any, Field(validation_alias=AliasChoices("content", "value"))] = None

    @property
    def role(self) -> str | None:
        """ "user", "assistant" or "system"; None where it is another."""
        return ROLES.get(self.named.lower())

    @property
    def text(self) -> str | None:
        """What is said: the content, or the texts of its parts, a line each; None where it is something else (an image, a call)."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        said = [p.get("text") if isinstance(p, dict) and p.get("type") in (None, "text") else p for p in parts]
        texts = [text for text in said if isinstance(text, str)]
        return "\n".join(texts) if texts and len(texts) == len(said) else None


def _without_nulls(value: Any) -> Any:
    """Without the fields that were only filled in where rows of both kinds share a table."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


Turns = tuple[Annotated[Turn, BeforeValidator(_without_nulls)], ...]


def ending(path: Path) -> str:
    """The ending that says what a file holds: in small letters, that of what is packed in a ``.gz``, and ``.jsonl`` for ``.ndjson``."""
    suffix = Path(path.name.lower().removesuffix(GZIP)).suffix
    return ".jsonl" if suffix == ".ndjson" else suffix


def read_text(path: Path) -> str:
    """A file's text, its lines ending with \\n, or an InputError that says why there is none."""
    with opened(path) as file:
        return _decoded(file.read().removeprefix(BOM), str(path)).replace("\r\n", "\n")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where it stands, what it says) of each line that is not blank. A line ends with \\n or \\r\\n alone: text may hold the
    other characters that Unicode lets end one.

    Raises:
        InputError: names the file, not to be read, or the line, not UTF-8.
    """
    with opened(path) as file:
        for i, line in enumerate(file, start=1):
            where = f"{path}, line {i}"
            text = _decoded(line.removeprefix(BOM) if i == 1 else line, where)
            if text.strip():
                yield where, text.removesuffix("\n").removesuffix("\r")


def read_entries(path: Path) -> list[tuple[str, Any]]:
    """(where it stands, what it is) of each entry of a ``.json`` list or line of a ``.jsonl`` file, blank lines left out.

    Raises:
        InputError: names file and line: not to be read, not JSON, no list.
    """
    if ending(path) == ".jsonl":
        return [(where, _parsed(line, where)) for where, line in read_lines(path)]
    entries = _parsed(read_text(path), str(path))
    if not isinstance(entries, list):
        raise InputError(f"{path}: holds no list; for one object a line name it .jsonl")
    return [(f"{path}, entry {i}", entry) for i, entry in enumerate(entries, start=1)]


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked where its name ends in ``.gz``; InputError where they cannot be had."""
    try:
        packed = path.name.lower().endswith(GZIP)
        with cast(IO[bytes], gzip.open(path) if packed else path.open("rb")) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is no whole gzip file ({error}); pack it again, or give it unpacked") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _decoded(text: bytes, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def _parsed(text: str, where: str) -> Any:
    """What JSON text holds. Half of a surrogate pair, which texts have that were cut between the two, is read as U+FFFD."""
    try:
        return parse_json(text, where)
    except InputError:
        whole = SURROGATES.sub(lambda escape: r"\ufffd" if escape[1] else escape[0], text)
        if whole == text:
            raise
        return parse_json(whole, where)


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
