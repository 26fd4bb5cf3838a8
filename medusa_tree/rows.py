"""Rows: text and JSON by file and line, so that what is wrong can be named, and what rows of several kinds have in common."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any, cast

import ijson
from pydantic import AliasChoices, BeforeValidator, Field

from medusa_runtime.errors import InputError
from medusa_runtime.reading import BOM, Text, parse_json

ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
CONVERSATIONS = ("messages", "conversations", "conversation")  # the fields that hold one
GZIP = ".gz"
LARGE = 32 << 20  # bytes from which on a list is not held in memory as a whole
PIECE = 1 << 16
NESTING = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}
DEEPEST = 200  # as in what is read as a whole
# A pair, half of one (the group), or any other escape of JSON text.
SURROGATES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
OUTSIDE = re.compile(r"(?s:.*)(?<!\\)[^\\u0-9a-fA-F]")  # up to a character that is of no escape


class CutOff(InputError):
    """A file ends before what is in it does."""


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
    """All of :func:`iter_entries`."""
    return list(iter_entries(path))


def iter_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, what it is) of each entry of a ``.json`` list or line of a ``.jsonl`` file, blank lines left out. They are
    read as they are asked for; a list of ``LARGE`` bytes or more, or one with something wrong in it, entry by entry.

    Raises:
        InputError: names file and line: not to be read, not JSON, no list.
        CutOff: a list that ends early, once all before has been given.
    """
    if ending(path) == ".jsonl":
        yield from ((where, _parsed(line, where)) for where, line in read_lines(path))
        return
    with opened(path) as file:
        head = file.read(LARGE)
        text = head.removeprefix(BOM)
        listed = text.lstrip()[:1] == b"["
        entries = None
        if len(head) < LARGE:
            try:
                entries = _parsed(_decoded(text, str(path)), str(path))
            except InputError:
                if not listed:
                    raise
        if not listed:
            raise InputError(f"{path}: holds no list; for one object a line name it .jsonl")
        found = _streamed(_pieces(text, file, str(path)), path) if entries is None else enumerate(entries, start=1)
        yield from ((f"{path}, entry {i}", entry) for i, entry in found)


def _streamed(pieces: Iterator[str], path: Path) -> Iterator[tuple[int, Any]]:
    """The entries of a list by number, each once the text has come to its end. By the parser's events: for entries of
    its own making it needs memory of the square of how deep they are nested. By ``use_float`` a number beyond 64 bits is an error
    of its own, where the parser would fall over one of thousands of digits."""
    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events, use_float=True)
    entry, count, depth, wrong = ijson.ObjectBuilder(), 0, 0, ""
    for piece in filter(None, pieces):  # to the parser an empty one is the end
        try:
            parser.send(piece.encode())
        except ijson.JSONError as error:
            wrong = _reason(error)
        for event, value in events:  # those before what is wrong, too
            above, depth = depth, depth + NESTING.get(event, 0)
            if not above or not depth:  # the list's own brackets
                continue
            if depth > DEEPEST:
                wrong = f"nested more than {DEEPEST} deep"
                break
            entry.event(event, value)
            if depth == 1:
                count += 1
                yield count, entry.value
                entry = ijson.ObjectBuilder()
        events.clear()
        if wrong:
            behind = f" behind entry {count}" if count else ""
            raise InputError(f"{path}: not JSON{behind} ({wrong})")
    try:
        parser.close()
    except ijson.JSONError as error:
        if not count:
            raise InputError(f"{path}: not JSON ({_reason(error)})") from None
        raise CutOff(f"{path}: is cut off, whole up to entry {count} ({_reason(error)}); give the whole file") from None


def _reason(error: ijson.JSONError) -> str:
    """The parser's words without the text that it shows below them."""
    return str(error).partition("\n")[0].removeprefix("parse error: ").removeprefix("lexical error: ").rstrip(".")


def _pieces(head: bytes, file: IO[bytes], where: str) -> Iterator[str]:
    """The text of ``head`` and what is left of a file, piece by piece, none of which ends inside an escape; mended (:func:`_mended`).
    A character that is cut off at the end is left out."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, done = "", 0
    blocks = (head[i : i + PIECE] for i in range(0, len(head), PIECE))
    for block in chain(blocks, iter(partial(file.read, PIECE), b"")):
        kept = len(decoder.getstate()[0])
        try:
            text = rest + decoder.decode(block)
        except UnicodeDecodeError as error:
            raise _undecodable(error, where, done - kept) from None
        done += len(block)
        end = found.end() if (found := OUTSIDE.match(text)) else 0
        yield _mended(text[:end])
        rest = text[end:]
    yield _mended(rest)


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
        raise _undecodable(error, where) from None


def _undecodable(error: UnicodeDecodeError, where: str, before: int = 0) -> InputError:
    return InputError(f"{where}: is not UTF-8 text ({error.reason} at byte {before + error.start}); save it as UTF-8")


def _mended(text: str) -> str:
    """JSON text in which half of a surrogate pair, which texts have that were cut between the two, is U+FFFD."""
    if SURROGATE.search(text) is None:
        return text
    return SURROGATES.sub(lambda escape: r"\ufffd" if escape[1] else escape[0], text)


def _parsed(text: str, where: str) -> Any:
    """What JSON text holds, mended where it must be."""
    try:
        return parse_json(text, where)
    except InputError:
        whole = _mended(text)
        if whole == text:
            raise
        return parse_json(whole, where)


def group_of(row: dict[str, Any], where: str) -> str:
    """The group with which a row is held out: its "group", a text or a number; where it stands, if it has none.

    Raises:
        InputError: a group that is neither.
    """
    group = label_of(row, "group", where)
    return where if group is None else group


def label_of(row: dict[str, Any], field: str, where: str) -> str | None:
    """A field of a row that sorts it, a text or a number; None where it is missing or null.

    Raises:
        InputError: it is neither.
    """
    label = row.get(field)
    if label is None:
        return None
    if type(label) not in (str, int, float) or label != label:
        raise InputError(f'{where}: "{field}" must be text or a number; leave it out where there is none')
    return str(label)
