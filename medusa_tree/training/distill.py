"""Self-distillation data: the model answers the prompts itself (Cai et al., 2024, §2.3.2), by the profiling job: without ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from medusa_runtime.acceptance.rules import GREEDY, Rule, Sampling
from medusa_runtime.errors import InputError
from medusa_runtime.files import write_beside
from medusa_runtime.proof import own_attention
from medusa_runtime.reading import parse_json
from medusa_runtime.request import check_tokens
from medusa_runtime.tree_model import TreeModel

from ..profiling import shards
from ..profiling.corpus import Prompt
from ..profiling.memory import ROWS, batches, halving, tokens_at_once
from ..profiling.provenance import weight_digest
from ..profiling.shards import ALONE, Process, Run
from ..profiling.texts import LOOK, decode_texts
from ..profiling.tokens import Fitted, tokenize
from ..profiling.turns import in_turns
from ..progress import Progress
from ..rows import read_lines
from ..traces.text import TURN, Ragged, TraceText, text_of
from ..traces.tracefile import load_arrays

STAGE = "answers"


def answer(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int | None = None,
    seed: int = 0,
    process: Process = ALONE,
    progress: Progress = lambda done: None,
) -> None:
    """Answer the prompts, a shard after the other, into ``folder``; of conversations every turn, behind the answers before it.

    The text is what decoding verifies: of the model's generation config only the end tokens count. What stands in the folder is
    kept: a killed run goes on where it was, with however many processes, and comes out the same; none waits for another.

    Args:
        prompts: chat turns go through the model's own template.
        temperature: 0 is greedy, the text that greedy decoding verifies against.
        batch_size: answered side by side at most; by default as many as the free memory allows.
        process: (this one, how many there are).
        progress: told how many prompts more are done.

    Raises:
        InputError: see :func:`askable`, or answers of other settings in the folder.
    """
    if not 0 <= temperature <= 10 or not 0 < top_p <= 1:
        raise InputError(f"--temperature {temperature} must be from 0 to 10 and --top-p {top_p} above 0, up to 1")
    asked = askable(base, tokenizer, prompts, max_new_tokens)
    rule: Rule = Sampling(temperature, top_p=top_p, seed=seed) if temperature else GREEDY
    told = json.dumps([asked.rows, [p.later for p in prompts]])
    settings = {
        "weights": weight_digest(base), "prompts": hashlib.sha256(told.encode()).hexdigest(), "--max-new-tokens": max_new_tokens,
        "--temperature": temperature, "--top-p": top_p, "--seed": seed, "--answer-batch": batch_size,
    }  # fmt: skip
    with as_tree_model(base, tokenizer) as model:
        lengths, tokens, most = list(map(len, asked.rows)), tokens_at_once(model), batch_size or ROWS
        count = len(batches(lengths, max_new_tokens, tokens, most))
        run = shards.begin(folder, settings, Run(shards.FORMAT, shards.VERSION, settings, tokens, {STAGE: count}, {}))
        parts = batches(lengths, max_new_tokens, run.tokens, most)
        there = [n for n in range(len(parts)) if shards.shard(folder, STAGE, n).exists()]
        progress(sum(len(parts[n]) for n in there))
        room = halving(model, run.tokens, most)

        def turn(rows: list[list[int]], who: npt.NDArray[np.int64], streams: list[int]) -> TraceText:
            longest = max(map(len, rows)) + max_new_tokens + LOOK
            return room(
                longest, lambda n, done: _texts(model, rows, streams, max_new_tokens, n, rule), lambda done: None
            )

        def make(n: int) -> TraceText:
            text = TraceText.join(in_turns(asked, parts[n], turn, lambda t: [row.tolist() for row in t.outputs]))
            progress(len(parts[n]))
            return text

        missing = [n for n in range(len(parts)) if n not in there]
        shards.complete(folder, STAGE, make, _save, missing, process)


def _texts(
    model: TreeModel, rows: list[list[int]], streams: list[int], new: int, side_by_side: int, rule: Rule
) -> TraceText:
    """The text behind each row."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    texts: list[list[int]] = [[] for _ in rows]
    asked, numbers = [rows[i] for i in order], [streams[i] for i in order]
    for ended in decode_texts(model, asked, new, side_by_side, rule, numbers):
        for text in ended:
            texts[order[text.number]] = text.tokens
    return TraceText(Ragged.of(rows), Ragged.of(texts), np.array(streams, dtype=np.int64))


def _save(path: Path, text: TraceText) -> None:
    with write_beside(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **text.arrays())  # type: ignore[arg-type]


@contextmanager
def as_tree_model(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[TreeModel]:
    """A model that is to be trained, decoding for a while: left as it was, attention, gradients and hooks."""
    training, wanted = base.training, [p for p in base.parameters() if p.requires_grad]
    with own_attention(base):
        model = TreeModel(base, None, tokenizer, tokenizer.name_or_path)
        try:
            yield model
        finally:
            model.catching.remove()
            base.train(training)
            for parameter in wanted:
                parameter.requires_grad_(True)


def askable(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_new_tokens: int
) -> Fitted:
    """The prompts' tokens.

    Raises:
        InputError: a prompt that leaves no room in the model's context or has tokens that it does not know, a chat turn that the
            tokenizer's template does not take.
    """
    config = base.config.get_text_config()
    rows = tokenize(prompts, tokenizer)
    check_tokens(rows, config.vocab_size, tokenizer.name_or_path, [p.where for p in prompts])
    places = getattr(config, "max_position_embeddings", None) or 1 << 30
    for i, row in enumerate(rows):
        if len(row) + max_new_tokens > places:
            raise InputError(
                f"prompt {i + 1} ({prompts[i].text[:40]!r}) has {len(row)} tokens; with {max_new_tokens} new ones that exceeds the model's "
                f"{places} positions: shorten it, or lower --max-new-tokens"
            )
    asked = Fitted(prompts, rows, places - max_new_tokens, 0, tokenizer)
    asked.try_turns()
    return asked


def join_answers(folder: Path, prompts: Sequence[Prompt], output: Path) -> None:
    """The answers in the prompts' order, as training rows (see :func:`read_rows`)."""
    paths = sorted(folder.glob(f"{STAGE}-*.npz"))
    text = TraceText.join([found for path in paths if (found := text_of(load_arrays(path), path)) is not None])
    text = text.take(np.lexsort((text.streams // TURN, text.streams % TURN)))
    with write_beside(output) as beside, beside.open("w", encoding="utf-8") as file:
        for prompt, made, stream in zip(text.prompts, text.outputs, text.streams.tolist(), strict=True):
            ids = {"prompt_ids": prompt.tolist(), "response_ids": made.tolist()}
            file.write(json.dumps({"row": stream % TURN, "group": prompts[stream % TURN].group, **ids}) + "\n")


def is_answers(path: Path) -> bool:
    """Whether a file holds answers already made, as :func:`join_answers` writes them."""
    try:
        _, first = next(read_lines(path), ("", "null"))
        entry = parse_json(first, str(path))
    except InputError:
        return False
    return isinstance(entry, dict) and entry.get("response_ids") is not None
