"""Prompts from text, JSON lines, ShareGPT conversations, MT-bench or Spec-Bench questions, and Hugging Face datasets."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError
from medusa_runtime.reading import Text, read_as

from ..rows import CONVERSATIONS, Turns, ending, group_of, read_entries, read_lines

DATASET = "hf:"


@dataclass(frozen=True)
class Prompt:
    """One prompt: raw ``text``, or a user's turn to go through the model's chat template (``chat``).

    Prompts of one ``group`` (a source file, a conversation) are held out together. ``where`` it stands is for errors.

    before: turns of a chat that stand before the text, (role, content) each, such as the system's.
    later: what the user says then, each once the model has answered.
    category: the kind of text, where the corpus names one.
    """

    text: str
    group: str
    chat: bool = False
    where: str = field(default="the prompt", compare=False)
    before: tuple[tuple[str, str], ...] = ()
    later: tuple[str, ...] = ()
    category: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat up to the text."""
        return [{"role": role, "content": content} for role, content in (*self.before, ("user", self.text))]


def read_corpus(path: Path | str) -> list[Prompt]:
    """Read prompts; the ending decides (see :func:`medusa_tree.rows.ending`): ``.jsonl`` one object a line, ``.json`` a list of
    them, else text, one prompt a line. ``hf:NAME`` is a dataset, see :func:`read_dataset`.

    An object holds "prompt" or "text" (and perhaps "group"), or a conversation: "turns" (MT-bench, Spec-Bench),
    "conversations" (ShareGPT) or "messages" (OpenAI), of which the first user turn is taken; docs/formats.md lists all forms.

    Raises:
        InputError: file missing or empty, a line that is not JSON, an object without a prompt; with file and line.
    """
    prompts: list[Prompt]
    if str(path).startswith(DATASET):
        prompts = [_prompt(entry, where) for where, entry in read_dataset(str(path))]
    elif ending(path := Path(path)) in (".json", ".jsonl"):
        prompts = [_prompt(entry, where) for where, entry in read_entries(path)]
    else:
        prompts = [Prompt(line, where.removeprefix(f"{path}, "), where=where) for where, line in read_lines(path)]
    if not prompts:
        raise InputError(f"{path}: corpus is empty; give a file with at least one prompt a line")
    return prompts


def read_dataset(name: str) -> list[tuple[str, Any]]:
    """(where it stands, the row) of a Hugging Face dataset: ``hf:OWNER/NAME[@CONFIG][:SPLIT]``, the split as the datasets library
    writes it (``train[:500]``); without one its only split. A folder of data files serves for OWNER/NAME.

    Raises:
        InputError: the library is not installed, the dataset is not to be had, or it has several splits.
    """
    match = re.fullmatch(rf"{DATASET}(?P<name>[^@:]+)(@(?P<config>[^:]+))?(:(?P<split>.+))?", name)
    if match is None:
        raise InputError(f"{name}: is no hf:OWNER/NAME[@CONFIG][:SPLIT]")
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name}: reading datasets needs a library: pip install 'medusa-tree[datasets]'") from None
    try:
        found = datasets.load_dataset(match["name"], match["config"], split=match["split"])
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{name}: cannot be loaded ({str(error.__cause__ or error).splitlines()[0]})") from None
    if match["split"] is None:
        if len(found) > 1:
            raise InputError(f"{name}: has the splits {', '.join(found)}; name one, as in {name}:{next(iter(found))}")
        (found,) = found.values()
    return [(f"{name}, row {i}", row) for i, row in enumerate(found)]


Texts = tuple[Text, ...]
FORMS: dict[str, Any] = {"prompt": Texts, "text": Text, "turns": Texts, **dict.fromkeys(CONVERSATIONS, Turns)}


def _prompt(row: Any, where: str) -> Prompt:
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise InputError(f"{where}: neither a text nor an object")
    group = group_of(row, where)
    for text, chat in _said(row, where):
        if text.strip():
            return Prompt(text, group, chat, where)
    raise InputError(f"{where}: no prompt in it; give {', '.join(map(repr, FORMS))}")


def _said(row: dict[str, Any], where: str) -> Iterator[tuple[str, bool]]:
    """What the user says in each form that the row has, and whether that is a chat; a form behind the one taken is not looked at."""
    for key, form in FORMS.items():
        value = row.get(key)
        if not value:
            continue
        kind = Text if key == "prompt" and isinstance(value, str) else form
        found = read_as(kind, value, f'{where}: "{key}"', "give a text, or a list of turns")
        chat = not isinstance(found, str)
        for turn in found if chat else [found]:
            if isinstance(turn, str):
                yield turn, chat
            elif turn.role == "user" and turn.text is not None:
                yield turn.text, True


def corpus_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of all that the prompts say, in order."""
    said = (text for p in prompts for text in (*(content for _, content in p.before), p.text, *p.later))
    return hashlib.sha256("\0".join(said).encode()).hexdigest()


def hold_out(prompts: Sequence[Prompt], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """(S,) which prompts are kept from fitting, see :func:`hold_out_groups`."""
    return hold_out_groups([p.group for p in prompts], [p.text.strip() for p in prompts], fraction, seed)


def hold_out_groups(
    groups: Sequence[str], contents: Sequence[Hashable], fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """(S,) which of the items, of a group each, are kept from fitting: whole groups, drawn until ``fraction`` of the items is
    reached. Groups that share a content, however many others lie between them, are one: the same is never on both sides.

    Raises:
        InputError: a fraction outside (0, 1), or too few groups for both halves to have one.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--held-out {fraction}: give a fraction between 0 and 1, such as 0.25")
    whole = _joined(groups, contents)
    sizes = Counter(whole[g] for g in groups)
    if len(sizes) < 2:
        raise InputError(
            f"--held-out {fraction}: all is of one document, prompt or group; one is needed to fit on and another to hold out"
        )
    names = sorted(whole)
    order = list(dict.fromkeys(whole[names[i]] for i in np.random.default_rng(seed).permutation(len(names))))
    enough = int(np.searchsorted(np.cumsum([sizes[g] for g in order]), fraction * len(groups))) + 1
    chosen = set(order[: min(enough, len(order) - 1)])
    return np.array([whole[g] in chosen for g in groups])


def _joined(groups: Sequence[str], contents: Sequence[Hashable]) -> dict[str, str]:
    """Group -> the one that stands for all that it is joined with by contents that they share."""
    above = {g: g for g in groups}

    def top(group: str) -> str:
        while above[group] != group:
            above[group] = group = above[above[group]]
        return group

    first: dict[Hashable, str] = {}
    for group, content in zip(groups, contents, strict=True):
        above[top(group)] = top(first.setdefault(content, group))
    return {g: top(g) for g in above}
