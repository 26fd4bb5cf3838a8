"""Rows: text and JSON by file and line, so that what is wrong can be named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medusa_runtime.errors import InputError


def read_text(path: Path) -> str:
    """A file's text, or an InputError that says why there is none."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_entries(path: Path) -> list[tuple[str, Any]]:
    """(where it stands, what it is) of each entry of a ``.json`` list or line of a ``.jsonl`` file, empty lines left out.

    Raises:
        InputError: names file and line: not to be read, not JSON, no list.
    """
    text = read_text(path)
    if path.suffix == ".jsonl":
        lines = [(f"{path}, line {i}", line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
        return [(where, _load(line, where)) for where, line in lines]
    entries = _load(text, str(path))
    if not isinstance(entries, list):
        raise InputError(f"{path}: holds no list; for one object a line name it .jsonl")
    return [(f"{path}, entry {i}", entry) for i, entry in enumerate(entries, start=1)]


def _load(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from None
