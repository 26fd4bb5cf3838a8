"""Self-distillation data: the model answers the prompts itself (Cai et al., 2024, §2.3.2), batch by batch, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from medusa_runtime.decode import check_tokens
from medusa_runtime.errors import InputError, out_of_memory
from medusa_runtime.files import write_beside
from medusa_runtime.reading import Object, parse_json, read_as, read_json

from ..profiling.corpus import Prompt
from ..profiling.tokens import tokenize
from ..rows import read_lines

SETTINGS = "answers.json"


def answer(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    process: tuple[int, int] = (0, 1),
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Answer the prompts and add each batch to ``folder/answers-{process}.jsonl`` as soon as it is made.

    Of the model's generation config only the end tokens are kept: with a repetition penalty or a top-k of its own it would
    write another text than decoding verifies. What stands in the folder is kept, so that a killed run goes on where it was;
    every batch has a seed of its own, so that it goes on the same way, with however many processes.

    Args:
        prompts: chat turns go through the model's own template.
        temperature: 0 is greedy, the text that greedy decoding verifies against.
        process: (this one, how many there are); batch i is process i % n's.
        progress: called with the number of prompts done.

    Raises:
        InputError: see :func:`askable`, or answers of other settings in the folder.
    """
    if not 0 <= temperature <= 10 or not 0 < top_p <= 1:
        raise InputError(f"--temperature {temperature} must be from 0 to 10 and --top-p {top_p} above 0, up to 1")
    rows = askable(base, tokenizer, prompts, max_new_tokens)
    decoding: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "do_sample": temperature > 0, "eos_token_id": base.generation_config.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id or 0,
    }  # fmt: skip
    if temperature:
        decoding |= {"temperature": temperature, "top_p": top_p, "top_k": 0}  # left open, top_k would be 50
    prompts_digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    settings = {**decoding, "batch_size": batch_size, "seed": seed, "prompts": prompts_digest}
    folder.mkdir(parents=True, exist_ok=True)
    _same_settings(folder / SETTINGS, settings, first=process[0] == 0)
    done = {entry["row"] for entry in _answers(folder)}
    progress(len(done))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # alike lengths share a batch: less padding
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    part = folder / f"answers-{process[0]}.jsonl"
    _drop_broken_line(part)
    with part.open("a", encoding="utf-8") as file, _decoding(base, GenerationConfig(**decoding)):
        for b, batch in enumerate(batches):
            if b % process[1] != process[0] or done.issuperset(batch):
                continue
            torch.manual_seed(seed + b)
            made = _generate(base, [rows[i] for i in batch])
            for i, new in zip(batch, made, strict=True):
                entry = {"row": i, "group": prompts[i].group, "prompt_ids": rows[i], "response_ids": new}
                file.write(json.dumps(entry) + "\n")
            file.flush()
            progress(len(batch))


def askable(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[list[int]]:
    """The prompts' tokens.

    Raises:
        InputError: a prompt that leaves no room in the model's context or has tokens that it does not know, a chat turn that the
            tokenizer's template does not take.
    """
    config = base.config.get_text_config()
    rows = tokenize(prompts, tokenizer)
    check_tokens(rows, config.vocab_size, tokenizer.name_or_path, [p.where for p in prompts])
    room = getattr(config, "max_position_embeddings", None)
    for i, row in enumerate(rows):
        if room is not None and len(row) + max_new_tokens > room:
            raise InputError(
                f"prompt {i + 1} ({prompts[i].text[:40]!r}) has {len(row)} tokens; with {max_new_tokens} new ones that exceeds the model's "
                f"{room} positions: shorten it, or lower --max-new-tokens"
            )
    return rows


@contextmanager
def _decoding(base: PreTrainedModel, how: GenerationConfig) -> Iterator[None]:
    """``how`` as the model's own: what a config handed to ``generate`` leaves open is filled in from the model's."""
    own = base.generation_config
    base.generation_config = how
    try:
        yield
    finally:
        base.generation_config = own


@torch.no_grad()
def _generate(base: PreTrainedModel, rows: list[list[int]]) -> list[list[int]]:
    """What transformers' generate adds to each row, its end token included."""
    longest, how = max(map(len, rows)), base.generation_config
    pad, ends = how.pad_token_id, how.eos_token_id
    tokens = torch.tensor([[pad] * (longest - len(r)) + r for r in rows], device=base.device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=base.device)
    base.eval()
    with out_of_memory(f"answers to {len(rows)} prompt(s) of up to {longest} tokens (--answer-batch)", base.device):
        out = base.generate(input_ids=tokens, attention_mask=mask)
    stops = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    made = []
    for row in out[:, longest:].tolist():
        end = next((i for i, t in enumerate(row) if t in stops), len(row) - 1)
        made.append(row[: end + 1])
    return made


def join_answers(folder: Path, output: Path) -> None:
    """All processes' answers in the prompts' order, as training rows (see :func:`read_rows`)."""
    entries = sorted(_answers(folder), key=lambda e: e["row"])
    with write_beside(output) as beside:
        beside.write_text("".join(json.dumps(e) + "\n" for e in entries), "utf-8")


def is_answers(path: Path) -> bool:
    """Whether a file holds answers already made, as :func:`join_answers` writes them."""
    try:
        _, first = next(read_lines(path), ("", "null"))
        entry = parse_json(first, str(path))
    except InputError:
        return False
    return isinstance(entry, dict) and entry.get("response_ids") is not None


def _answers(folder: Path) -> list[dict[str, Any]]:
    """Every whole line of every process's file; a row that stands twice counts once."""
    found: dict[int, dict[str, Any]] = {}
    for part in sorted(folder.glob("answers-*.jsonl")):
        for line in part.read_text("utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # else the run was killed while it wrote
                entry = json.loads(line)
                found.setdefault(entry["row"], entry)
    return list(found.values())


def _drop_broken_line(part: Path) -> None:
    if part.is_file():
        text = part.read_bytes()
        if not text.endswith(b"\n") and text:
            with part.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)


def _same_settings(path: Path, settings: dict[str, Any], first: bool) -> None:
    if path.is_file():
        before = read_as(Object, read_json(path), str(path))
        other = [k for k in settings if before.get(k) != settings[k]]
        if other:
            raise InputError(
                f"{path.parent}: holds answers made with other {', '.join(other)}; give another -o, or remove that folder"
            )
    elif first:
        with write_beside(path) as beside:
            beside.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
