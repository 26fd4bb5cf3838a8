"""Prompts from files of any form, datasets, and several of them by name; their digest, and which of them are held out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError

from ..bundled import resolve_corpus
from ..rows import CutOff, ending, iter_entries, read_lines
from .holdout import hold_out_groups
from .prompt import Prompt, prompt_of
from .tables import DATASET, read_dataset, read_parquet


@dataclass(frozen=True)
class Read:
    """Prompts, and how many conversations were ``skipped``: such as are empty, or do not begin with the user's turn."""

    prompts: list[Prompt]
    skipped: int

    def told(self) -> str | None:
        """What was skipped, in words."""
        if not self.skipped:
            return None
        return f"{self.skipped} conversations beside {len(self.prompts)} prompts were skipped: {UNASKED}"


UNASKED = "empty, or not begun by the user"


def read_prompts(specs: Sequence[str], most: int | None = None) -> Read:
    """The prompts of several corpora, one after the other.

    Args:
        specs: each a file, a dataset or "demo", see :func:`read_corpus`; ``NAME=`` before it makes NAME the category of its prompts.
        most: of each, the first; what stands behind them is not read. By default all.

    Raises:
        InputError: see :func:`read_corpus`.
    """
    read = [_read(resolve_corpus(source), most, name) for name, source in map(named, specs)]
    prompts = [p for one in read for p in one.prompts]
    if len(read) > 1:  # a group is of its file alone
        prompts = [replace(p, group=f"{i}: {p.group}") for i, one in enumerate(read) for p in one.prompts]
    return Read(prompts, sum(one.skipped for one in read))


def named(spec: str) -> tuple[str | None, str]:
    """``NAME=CORPUS`` -> both; a file of that whole name, or what has no such name before it, stays as it is."""
    match = re.fullmatch(r"([\w-]+)=(.+)", spec, re.ASCII | re.DOTALL)
    return (match[1], match[2]) if match and not Path(spec).exists() else (None, spec)


def read_corpus(path: Path | str) -> list[Prompt]:
    """Read prompts; the ending decides (see :func:`medusa_tree.rows.ending`): ``.jsonl`` one object a line, ``.json`` a list of
    them, ``.parquet`` a table, else text, one prompt a line. ``hf:NAME`` is a dataset, see :func:`.tables.read_dataset`.

    An object holds "prompt", "text" or "question", or a conversation: "turns" (MT-bench, Spec-Bench), "conversations"
    (ShareGPT) or "messages" (OpenAI), and perhaps "group" and "category"; docs/formats.md lists all forms.

    Raises:
        InputError: file missing or empty, a line that is not JSON, an object without a prompt, with file and line; or no
            conversation in it of which anything can be asked.
    """
    return _read(path, None, None).prompts


def _read(path: Path | str, most: int | None, category: str | None) -> Read:
    prompts: list[Prompt] = []
    skipped = 0
    try:
        for prompt in _prompts(path, category):
            if prompt is None:
                skipped += 1
                continue
            prompts.append(prompt)
            if len(prompts) == most:
                break
    except CutOff as error:
        whole = f"; or ask for those before with --prompts {len(prompts)}" if prompts else ""
        raise InputError(f"{error}{whole}") from None
    if prompts:
        return Read(prompts, skipped)
    if skipped:
        raise InputError(f"{path}: nothing can be asked: its conversations, {skipped} of {skipped}, are {UNASKED}")
    raise InputError(f"{path}: corpus is empty; give a file with at least one prompt a line")


def _prompts(path: Path | str, category: str | None) -> Iterator[Prompt | None]:
    """The prompt in each row, read as they are asked for."""
    rows: Iterator[tuple[str, Any]]
    if str(path).startswith(DATASET):
        rows = read_dataset(str(path))
    elif (form := ending(path := Path(path))) == ".parquet":
        rows = read_parquet(path)
    elif form in (".json", ".jsonl"):
        rows = iter_entries(path)
    else:
        for where, line in read_lines(path):
            yield Prompt(line, where.removeprefix(f"{path}, "), where=where, category=category)
        return
    for where, row in rows:
        yield prompt_of(row, where, category)


def corpus_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of all that the prompts say, in order."""
    said = (text for p in prompts for text in (*(content for _, content in p.before), p.text, *p.later))
    return hashlib.sha256("\0".join(said).encode()).hexdigest()


def hold_out(prompts: Sequence[Prompt], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """(S,) which prompts are kept from fitting, within each category, see :func:`.holdout.hold_out_groups`. The same prompt is
    the same text behind the same turns, whatever the system's say."""
    said = [(*(text for role, text in p.before if role != "system"), p.text.strip()) for p in prompts]
    return hold_out_groups([p.group for p in prompts], said, fraction, seed, [p.category for p in prompts])
