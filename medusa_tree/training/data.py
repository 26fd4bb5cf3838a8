"""Training rows: texts, conversations and the model's own answers, tokenised, with the tokens that count as labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from medusa_runtime.errors import InputError
from medusa_runtime.reading import read_as

from ..profiling.holdout import hold_out_groups
from ..profiling.tokens import answered_tokens, common, spoken, text_tokens
from ..rows import CONVERSATIONS, Turn, Turns, ending, group_of, read_entries, read_text
from .loss import IGNORE


@dataclass(frozen=True)
class Row:
    """Token ids and their labels: the same, or IGNORE where a token was not the model's to write.

    Rows of one ``group`` (pieces of a document or conversation) are held out together.
    """

    ids: list[int]
    labels: list[int]
    group: str = ""

    @property
    def example(self) -> dict[str, list[int]]:
        """The row as the trainer's datasets have it."""
        return {"input_ids": self.ids, "labels": self.labels}

    @property
    def prompt(self) -> list[int]:
        """What stands before the first token that counts; of plain text the first PROMPT tokens, half of it at most."""
        first = next((i for i, label in enumerate(self.labels) if label != IGNORE), 0)
        return self.ids[: first or min(PROMPT, len(self.ids) // 2)]

    @property
    def asked(self) -> tuple[int, ...]:
        """What rows that are held out together have in common: the prompt, whatever was answered; of plain text all of it."""
        first = next((i for i, label in enumerate(self.labels) if label != IGNORE), 0)
        return tuple(self.ids[: first or len(self.ids)])


PROMPT = 64  # tokens of a plain text that stand for a prompt


def read_rows(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Row]:
    """Read training rows; the ending decides (see :func:`medusa_tree.rows.ending`): ``.jsonl`` one object a line, ``.json`` a
    list of them, else one text, cut into rows of ``max_length`` tokens.

    An object holds "text" (all of it counts), a conversation ("messages", "conversations"; the assistant's turns count),
    or an answer of the model ("prompt_ids" and "response_ids", as self-distillation writes them; the answer counts).
    Longer rows are cut into pieces of ``max_length``.

    Raises:
        InputError: names file and line: missing, empty, not JSON, without text, a role that is not known, a
            conversation that the chat template refuses or that has none, token ids outside of the vocabulary.
    """
    rows: list[Row] = []
    if ending(path) in (".json", ".jsonl"):
        rows = [_row(entry, where, tokenizer) for where, entry in read_entries(path)]
    elif (text := read_text(path)).strip():
        ids = text_tokens(
            tokenizer, text, str(path)
        )  # one text has no documents to tell apart: its pieces are held out each for itself
        rows = [Row(ids[i : i + max_length], ids[i : i + max_length], str(i)) for i in range(0, len(ids), max_length)]
    pieces = [piece for row in rows for piece in cut(row, max_length)]
    if not pieces:
        raise InputError(f"{path}: no training rows in it")
    return pieces


def _row(entry: Any, where: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    if not isinstance(entry, dict):
        raise InputError(f'{where}: not an object; write {{"text": ...}} or {{"messages": [...]}}')
    if entry.get("response_ids") is not None:
        return _answer(entry, where, tokenizer)
    group = group_of(entry, where)
    for name in CONVERSATIONS:
        if entry.get(name):
            return _conversation(read_as(Turns, entry[name], f'{where}: "{name}"'), where, tokenizer, group)
    if not isinstance(entry.get("text"), str) or not entry["text"]:
        raise InputError(f'{where}: no text in it; "text", "messages", "conversations" or "response_ids" is needed')
    ids = text_tokens(tokenizer, entry["text"], where)
    return Row(ids, ids, group)


def _answer(entry: dict[str, Any], where: str, tokenizer: PreTrainedTokenizerBase) -> Row:
    parts, vocab = [], len(tokenizer)
    for name in ("prompt_ids", "response_ids"):
        ids = entry.get(name)
        if not isinstance(ids, list) or not ids or not all(type(t) is int and 0 <= t < vocab for t in ids):
            raise InputError(
                f'{where}: "{name}" must be a list of token ids below {vocab}; was it made with another tokenizer?'
            )
        parts.append(ids)
    prompt, answer = parts
    return Row(prompt + answer, [IGNORE] * len(prompt) + answer, group_of(entry, where))


def _conversation(turns: tuple[Turn, ...], where: str, tokenizer: PreTrainedTokenizerBase, group: str) -> Row:
    """What follows the last turn of the assistant is left out, and what a template rewrites for a later turn does not count."""
    messages = spoken(turns, where)
    ids: list[int] = []
    labels: list[int] = []
    for before, turn in answered_tokens(tokenizer, messages, where):
        same = common(ids, before)
        labels = labels[:same] + [IGNORE] * (len(before) - same) + turn
        ids = before + turn
    if not ids:
        raise InputError(f"{where}: no turn of the assistant in it, so there is nothing to learn")
    return Row(ids, labels, group)


def cut(row: Row, length: int) -> list[Row]:
    """Pieces of at most ``length`` tokens; those that ask nothing of the first head, two tokens on, are dropped."""
    pieces = [
        Row(row.ids[i : i + length], row.labels[i : i + length], row.group) for i in range(0, len(row.ids), length)
    ]
    return [p for p in pieces if any(label != IGNORE for label in p.labels[2:])]


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(training, held-out) rows: whole groups, drawn at random until ``share`` of the rows is reached.

    Raises:
        InputError: a share that leaves one of them empty.
    """
    try:
        held = hold_out_groups([r.group for r in rows], [r.asked for r in rows], share, seed)
    except InputError as error:
        raise InputError(f"{error}; or hold other data out with --eval FILE") from None
    return [r for r, h in zip(rows, held, strict=True) if not h], [r for r, h in zip(rows, held, strict=True) if h]


def collate(examples: Sequence[Mapping[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """(B, S) input_ids, attention_mask and labels, padded on the right."""
    longest = max(len(e["input_ids"]) for e in examples)

    def padded(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (longest - len(values))

    return {
        "input_ids": torch.tensor([padded(e["input_ids"], pad) for e in examples]),
        "attention_mask": torch.tensor([padded([1] * len(e["input_ids"]), 0) for e in examples]),
        "labels": torch.tensor([padded(e["labels"], IGNORE) for e in examples]),
    }
