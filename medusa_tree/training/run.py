"""A training run from names to a folder: data, self-distillation, fitting, checkpoint, figures."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from medusa_runtime.errors import InputError, out_of_memory
from medusa_runtime.files import write_beside
from medusa_runtime.heads.checkpoint import FORMATS, save_full, save_heads
from medusa_runtime.heads.heads import MedusaHeads
from medusa_runtime.hub import DEFAULT, Hub
from medusa_runtime.model import MedusaModel
from medusa_runtime.processes import process_group
from medusa_runtime.reading import Object, read_as, read_json

from ..profiling.corpus import Prompt, read_corpus
from ..profiling.shards import FILE as RUN
from ..progress import Report, unseen
from ..rows import opened
from .backbone import check_device, load_backbone
from .data import Row, read_rows, split
from .distill import answer, askable, is_answers, join_answers
from .evaluate import Acceptance, Scores, acceptance, held_out_prompts, score
from .model import TrainingModel, check_draft_vocab, frequent_tokens, new_heads
from .recipe import Recipe
from .trainer import fit, newest_checkpoint

WORK = "work"  # folder under the output for what a run needs to go on: checkpoints, answers, settings
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Distillation:
    """How the model answers the prompts itself; see :func:`medusa_tree.training.distill.answer`."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int | None = None


@dataclass(frozen=True)
class Run:
    """What to train on and where to put it.

    model: folder or Hub id of the backbone.
    data: training rows; where ``distillation`` is given prompts, or the answers that an earlier run left.
    evaluation: held-out rows, taken as they are, or None to hold out ``held_out`` of the documents.
    form: one of checkpoint.FORMATS, or None for the one that carries the heads most widely.
    hub: how a backbone on the Hub is asked for: its revision, and more.
    """

    model: str
    data: Path
    output: Path
    recipe: Recipe
    distillation: Distillation | None = None
    evaluation: Path | None = None
    held_out: float = 0.05
    form: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    trust_remote_code: bool = False
    resume: bool = False
    eval_prompts: int = 64
    eval_new_tokens: int = 128
    hub: Hub = DEFAULT


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the log of :func:`fit`, scores on held-out text before and after, replay acceptance, seconds and
    bytes (the peak of the process, or of the GPU where there is one), and the commit of the backbone's Hub repository, if any."""

    log: list[dict[str, Any]]
    before: Scores
    after: Scores
    acceptance: list[Acceptance]
    rows: int
    held_out_rows: int
    held_out_prompts: int
    seconds: float
    peak_bytes: int
    heads: MedusaHeads
    commit: str | None


def run(job: Run, report: Report = unseen) -> Outcome | None:
    """Train and save. Returns None on processes other than the main one.

    Raises:
        InputError: names the file, line or option that is wrong; see the parts.
    """
    with process_group():
        state = PartialState(cpu=job.device is not None and job.device.startswith("cpu"))
        try:
            return _run(job, state, report)
        finally:
            PartialState._reset_state()  # it is one for all, and knows a group that will be gone


def _run(job: Run, state: PartialState, report: Report) -> Outcome | None:
    begin = time.monotonic()
    check_device(job.device, state.device)
    work = job.output / WORK
    _claim(job, work, state)
    if job.quantize and job.recipe.full:
        raise InputError("--quantize: a quantised backbone cannot be trained in full; use --lora-rank or medusa-1")
    tokenizer, base = load_backbone(job.model, state.device, job.dtype, job.quantize, job.trust_remote_code, job.hub)
    form = check_form(job.form, job.recipe)
    saved_dtype = base.config.dtype or torch.float32
    places = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    length = min(job.recipe.max_length, places or job.recipe.max_length)

    vocab = base.get_output_embeddings().weight.shape[0]
    if job.recipe.draft_vocab is not None:
        check_draft_vocab(job.recipe.draft_vocab, vocab)
    known = base.get_input_embeddings().weight.shape[0]
    room = None if places is None else places - job.eval_new_tokens - job.recipe.heads

    def read(path: Path) -> list[Row]:
        rows = read_rows(path, tokenizer, length)
        if max(max(row.ids) for row in rows) >= known:
            raise InputError(f"{path}: has tokens beyond the {known} of {job.model}; made with its tokenizer?")
        return rows

    def divided(rows: list[Row]) -> tuple[list[Row], list[Row], list[list[int]]]:
        """Rows to train on, rows held out, and the prompts of these."""
        train, held = (rows, evaluation) if evaluation else split(rows, job.held_out, job.recipe.seed)
        return train, held, held_out_prompts(held, job.eval_prompts, room)

    # Whatever is read is judged before the model answers anything, which takes hours.
    evaluation = None if job.evaluation is None else read(job.evaluation)
    data = job.data
    if job.distillation is not None and not is_answers(data):
        asked = read_corpus(data)
        ids = askable(base, tokenizer, asked, job.distillation.max_new_tokens).rows
        divided([Row(row, row, prompt.group) for row, prompt in zip(ids, asked, strict=True)])
        data = _distilled(job, job.distillation, base, tokenizer, asked, work / "answers", state, report)
    rows, held, prompts = divided(read(data))

    token_map = None
    if job.recipe.draft_vocab is not None:
        token_map = frequent_tokens(
            [[t for t in r.labels if t >= 0] for r in rows], vocab, job.recipe.draft_vocab
        )  # what heads are to guess
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    torch.manual_seed(job.recipe.seed)
    mixed = saved_dtype in (torch.bfloat16, torch.float16)
    autocast = partial(torch.autocast, state.device.type, torch.bfloat16, enabled=mixed)
    size = f"rows of up to {length} tokens (--max-length), {job.recipe.batch_size} at a time (--batch-size)"
    with out_of_memory(f"training {job.recipe.heads} heads on {size}", state.device):
        if job.recipe.full:
            base = base.float()  # what is trained is kept in float32 until it is saved
        model = TrainingModel(base, new_heads(base, job.recipe, token_map), job.recipe).to(state.device)
        with autocast():
            before = score(model, held, job.recipe.batch_size)
        log = fit(
            model, job.recipe, rows, held, work, pad, lambda done, total: report("Training (steps)", done, total),
            bf16=mixed, use_cpu=state.device.type == "cpu",
        )  # fmt: skip
        with autocast():
            after = score(model, held, job.recipe.batch_size)
    if not state.is_main_process:
        state.wait_for_everyone()
        return None

    heads = model.heads.to(saved_dtype).requires_grad_(False)
    trained = model.trained_base()
    if job.quantize is None:
        trained = trained.to(saved_dtype)
    output_weight = trained.get_output_embeddings().weight
    if job.recipe.joint:
        save_full(trained, heads, job.output)
        tokenizer.save_pretrained(job.output)
    if not job.recipe.joint or job.form is not None:
        where = job.output / "heads" if job.recipe.joint else job.output
        name = str(job.output.resolve()) if job.recipe.joint else job.model
        save_heads(heads, where, name, form, output_weight)
    served = MedusaModel(trained, heads, tokenizer, name=job.model)
    measured = acceptance(
        served, prompts, job.eval_new_tokens, progress=lambda n: report("Profiling (prompts)", n, len(prompts))
    )
    state.wait_for_everyone()
    peak = (
        torch.cuda.max_memory_allocated()
        if state.device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return Outcome(
        log,
        before,
        after,
        measured,
        len(rows),
        len(held),
        len(prompts),
        time.monotonic() - begin,
        peak,
        heads,
        served.commit,
    )


def check_form(form: str | None, recipe: Recipe) -> str:
    """The format to write heads in: the one asked for if it can carry them, else the most widely read one that can.

    Raises:
        InputError: one that cannot.
    """
    able = ["vllm"]
    if recipe.draft_vocab is None:
        if recipe.own_output:
            able = ["medusa", "pt", "vllm"]
        elif recipe.blocks == 1:
            able = ["tgi-v2", "vllm"]
    if form is not None and form not in able:
        what = FORMATS if form not in FORMATS else able
        raise InputError(f"--format {form}: cannot carry these heads; use {' or '.join(what)}")
    return form or able[0]


def _claim(job: Run, work: Path, state: PartialState) -> None:
    """Take the output folder for this run, or go on with the one that stands in it."""
    files = {"data": job.data, "eval": job.evaluation}
    wanted = {
        "model": job.model, "revision": job.hub.revision, "dtype": job.dtype, "quantize": job.quantize, "held_out": job.held_out, **job.recipe.to_json(),
        **{name: path and str(path) for name, path in files.items()},
        **{f"{name}_sha256": path and _digest(path) for name, path in files.items()},
    }  # fmt: skip
    path = work / SETTINGS
    trained, answered = newest_checkpoint(work) is not None, (work / "answers" / RUN).is_file()
    if (trained or answered) and path.is_file():
        if not job.resume:
            raise InputError(
                f"-o {job.output}: a run was begun there; go on with it by --resume, or give another folder"
            )
        before = read_as(Object, read_json(path), str(path))
        fixed = (
            wanted if trained else ("model", "revision", "dtype", "quantize")
        )  # whose answers; their settings stand beside them
        other = [k for k in fixed if before.get(k) != wanted[k]]
        if other:
            raise InputError(
                f"-o {job.output}: its run has {other[0]} {before.get(other[0])!r}, not {wanted[other[0]]!r}; resume it with the same options and files"
            )
    if state.is_main_process:
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"-o {job.output}: cannot be made ({error.strerror}); choose another folder") from None
        with write_beside(path) as beside:
            beside.write_text(json.dumps(wanted, indent=2) + "\n", "utf-8")
    state.wait_for_everyone()


def _digest(path: Path) -> str:
    """SHA-256 of what a file holds."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _distilled(
    job: Run, how: Distillation, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], folder: Path,
    state: PartialState, report: Report,
) -> Path:  # fmt: skip
    """The model's own answers to the prompts, as a file of training rows."""
    made = 0

    def progress(done: int) -> None:
        nonlocal made
        made += done
        report("Answering (prompts)", made, len(prompts))

    answer(
        base, tokenizer, prompts, folder, max_new_tokens=how.max_new_tokens, temperature=how.temperature, top_p=how.top_p,
        batch_size=how.batch_size, seed=job.recipe.seed, process=(state.process_index, state.num_processes), progress=progress,
    )  # fmt: skip
    joined = folder / "answers.jsonl"
    join_answers(folder, prompts, joined)  # by every process: whoever is here has all answers, and none waits
    return joined
