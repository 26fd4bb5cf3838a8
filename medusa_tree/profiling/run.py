"""The profiling job: a run's folder, filled shard by shard with ranks and text; killed, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medusa_runtime.acceptance.rules import GREEDY, Rule, Typical
from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel
from medusa_runtime.processes import agreed
from medusa_runtime.tree import CandidateTree

from ..planning.drafts import check_rule
from ..progress import Progress, Report, unseen
from ..traces.trace import RankTrace
from ..traces.tracefile import save_trace
from . import shards
from .answers import read_answers
from .corpus import hold_out
from .follow import check_texts, judged, profile_answers
from .job import Asked, Profiling
from .memory import ROWS, batches, halving, tokens_at_once
from .probe import BATCH, probe_texts, trees_for
from .profile import check_room, profile
from .provenance import provenance, weight_digest
from .shards import ALONE, Process, Run
from .texts import LOOK
from .tokens import Fitted, fitted
from .turns import categories_of, in_turns

Take = Callable[[list[list[int]], npt.NDArray[np.bool_], list[int], Progress], RankTrace]


@dataclass(frozen=True)
class Job:
    """A profiling job: which model on which prompts, and as what of the processes that share it.

    held_out: (S,) which prompts are kept from fitting.
    names: of model and heads as the user gave them, for the provenance. text: what text it is, where the model does not make it.
    writes: whether this process writes shards: of several that run one model together, one does.
    """

    model: MedusaModel
    prompts: Fitted
    held_out: npt.NDArray[np.bool_]
    profiling: Profiling
    names: tuple[str, str | None]
    text: str | None = None
    process: Process = ALONE
    writes: bool = True


def job_of(
    model: MedusaModel, asked: Asked, profiling: Profiling, names: tuple[str, str | None], process: Process = ALONE, writes: bool = True
) -> Job:  # fmt: skip
    """The job on prompts that were read, or on the answers that are given.

    Raises:
        InputError: prompts or answers that the model cannot take, or answers that are not its own; typical acceptance without heads.
    """
    check_rule(profiling.rule, model.heads is not None)
    if profiling.answers is None:
        prompts = fitted(model, asked.prompts, profiling.max_new_tokens)
        return Job(model, prompts, asked.held_out, profiling, names, None, process, writes)
    given = read_answers(profiling.answers, model, profiling.max_new_tokens, asked.prompts, profiling.prompts)
    check_texts(model, given)
    held_out = hold_out(given.prompts, profiling.held_out, profiling.seed)
    text = agreed(model, judged(model, given, profiling))
    return Job(model, given, held_out, profiling, names, text, process, writes)


def profile_run(job: Job, folder: Path, report: Report = unseen) -> Run:
    """Fill a run's folder, or what is missing of it.

    Raises:
        InputError: the folder's job has other settings; see also :func:`medusa_tree.profiling.profile.profile`.
    """
    model, prompts, profiling = job.model, job.prompts, job.profiling
    if prompts.answers is None:
        check_room(model, prompts.rows, profiling.max_new_tokens)
    settings = settings_of(job)
    begun = _begun(job, settings)
    run = agreed(model, shards.begin(folder, settings, begun) if job.writes else begun)
    if job.process[1] == 1 and job.writes:
        shards.drop_remains(folder)
    everyone = np.arange(len(prompts.rows))
    rule = profiling.rule
    if isinstance(rule, Typical) and not rule.lossless:
        fitting = everyone[~job.held_out]
        _stage(job, run, folder, "greedy", fitting, _ranker(job, run, GREEDY), report)
        text_tree, tree = agreed(model, _trees(folder, run) if job.writes else (CandidateTree(), CandidateTree()))
        _stage(job, run, folder, "probe", everyone, prober(job, _tokens(job, run), text_tree, tree), report)
    else:
        answers = prompts.answers
        take = _ranker(job, run, rule) if answers is None else _follower(job, run, answers)
        _stage(job, run, folder, "ranks", everyone, take, report)
    return run


def settings_of(job: Job) -> dict[str, Any]:
    """What must be the same for shards to go together, by the name that users know it by; made by all processes that hold a share
    of the weights."""
    asked, prompts = job.profiling, job.prompts
    told = [
        prompts.rows,
        prompts.answers,
        [p.later for p in prompts.prompts],
        [p.category for p in prompts.prompts],
        job.held_out.tolist(),
    ]
    return {
        "weights": weight_digest(job.model.base), "heads": None if job.model.heads is None else weight_digest(job.model.heads), "--dtype": job.model.dtype_name,
        "prompts": hashlib.sha256(json.dumps(told).encode()).hexdigest(), "--held-out": asked.held_out, "--seed": asked.seed,
        "--max-new-tokens": asked.max_new_tokens, "--candidates": asked.candidates, "--acceptance": str(asked.rule),
        "--reference-text": asked.reference,
    }  # fmt: skip


def belongs(settings: dict[str, Any], folder: Path) -> bool:
    """Whether a folder holds a run of these very settings."""
    try:
        return shards.other_setting(shards.read_run(folder), settings) is None
    except InputError:
        return False


def _tokens(job: Job, run: Run) -> int:
    """Tokens held at once: as the run was begun, or fewer, as is asked for now."""
    return min(run.tokens, job.profiling.tokens or run.tokens)


def _trees(folder: Path, run: Run) -> tuple[CandidateTree, CandidateTree]:
    """What to make text with under typical acceptance, and what to probe it with."""
    return trees_for(shards.in_order(shards.joined(list(shards.made(folder, "greedy", run.shards["greedy"])))))


def _begun(job: Job, settings: dict[str, Any]) -> Run:
    """The run as it would be begun here and now: what memory is free decides how it is cut into shards."""
    tokens = job.profiling.tokens or agreed(job.model, tokens_at_once(job.model))
    everyone = np.arange(len(job.prompts.rows))
    stages = {"ranks": everyone}
    if isinstance(job.profiling.rule, Typical) and not job.profiling.rule.lossless:
        stages = {"greedy": everyone[~job.held_out], "probe": everyone}
    counts = {stage: len(_cut(job, tokens, stage, numbers)) for stage, numbers in stages.items()}
    record = provenance(
        job.model, job.names, job.profiling, job.prompts, (settings["weights"], settings["heads"]), job.text
    )
    return Run(shards.FORMAT, shards.VERSION, settings, tokens, counts, record)


def _cut(job: Job, tokens: int, stage: str, numbers: npt.NDArray[np.int64]) -> list[list[int]]:
    """The prompts of each shard of a stage, of those that are in it."""
    prompts, new = job.prompts, job.profiling.max_new_tokens + job.model.num_heads + LOOK
    if prompts.answers is not None:
        lengths, new = [len(row) + len(answer) for row, answer in zip(prompts.rows, prompts.answers, strict=True)], 0
    else:
        # What a conversation comes to is not known before; a character is a token at most.
        asked = [prompts.prompts[i].later for i in numbers.tolist()]
        behind = [sum(len(text) + job.profiling.max_new_tokens for text in later) for later in asked]
        lengths = [
            min(prompts.room, len(prompts.rows[i]) + more) for i, more in zip(numbers.tolist(), behind, strict=True)
        ]
    most = BATCH if stage == "probe" else ROWS
    return [[int(numbers[i]) for i in part] for part in batches(lengths, new, tokens, most)]


def _ranker(job: Job, run: Run, rule: Rule) -> Take:
    """Ranks of plain text, as many sequences side by side as memory allows."""
    model, asked, room = job.model, job.profiling, halving(job.model, _tokens(job, run))
    new, candidates = asked.max_new_tokens, asked.candidates

    def take(rows: list[list[int]], held: npt.NDArray[np.bool_], streams: list[int], progress: Progress) -> RankTrace:
        longest = max(map(len, rows)) + new + model.num_heads + LOOK
        return room(
            longest, lambda n, told: profile(model, rows, held, new, candidates, n, told, rule, streams), progress
        )

    return take


def prober(job: Job, tokens: int, text_tree: CandidateTree, tree: CandidateTree) -> Take:
    """Text made by typical acceptance with ``text_tree``, probed with ``tree``; of so many ``tokens`` at once."""
    asked, rule = job.profiling, job.profiling.rule
    room = halving(job.model, tokens, BATCH)
    if not isinstance(rule, Typical):
        raise TypeError("probes are of typical acceptance")

    def take(rows: list[list[int]], held: npt.NDArray[np.bool_], streams: list[int], told: Progress) -> RankTrace:
        how = rule, text_tree, tree, asked.max_new_tokens, asked.candidates, streams
        longest = max(map(len, rows)) + asked.max_new_tokens + job.model.num_heads + text_tree.nodes
        return room(longest, lambda n, counted: probe_texts(job.model, rows, held, *how, counted, n), told)

    return take


def _follower(job: Job, run: Run, answers: list[list[int]]) -> Take:
    """Ranks of the answers that are given."""
    model, asked, room = job.model, job.profiling, halving(job.model, _tokens(job, run))

    def take(rows: list[list[int]], held: npt.NDArray[np.bool_], streams: list[int], progress: Progress) -> RankTrace:
        own = [answers[i] for i in streams]
        longest = max(len(row) + len(answer) for row, answer in zip(rows, own, strict=True))

        def make(side_by_side: int, told: Progress) -> RankTrace:
            how = asked.max_new_tokens, asked.candidates, asked.rule, side_by_side
            return profile_answers(model, rows, own, held, streams, *how, told)

        return room(longest, make, progress)

    return take


def _stage(
    job: Job, run: Run, folder: Path, stage: str, numbers: npt.NDArray[np.int64], take: Take, report: Report
) -> None:
    """Make the shards of a stage that are missing."""
    parts, turns = _cut(job, run.tokens, stage, numbers), job.prompts.turns
    texts = [sum(turns[i] for i in part) for part in parts]
    label = {"greedy": "Ranking greedy text", "probe": "Probing text"}.get(stage, "Profiling heads")
    label += " (prompts)" if max(turns) == 1 else " (turns)"

    def make(n: int) -> RankTrace:
        done = sum(count for m, count in enumerate(texts) if shards.shard(folder, stage, m).exists())

        def progress(count: int) -> None:
            nonlocal done
            done += count
            report(label, done, sum(texts))

        progress(0)
        return take_in_turns(job, parts[n], take, progress)

    missing = [n for n in range(len(parts)) if not shards.shard(folder, stage, n).exists()]
    shards.complete(
        folder,
        stage,
        make,
        save_trace,
        agreed(job.model, missing),
        job.process,
        job.writes,
        not job.model.split_over_processes,
    )
    report(label, sum(texts), sum(texts))


def take_in_turns(job: Job, numbers: Sequence[int], take: Take, progress: Progress) -> RankTrace:
    """The trace of these prompts, by ``take``; of conversations turn by turn."""

    def turn(rows: list[list[int]], who: npt.NDArray[np.int64], streams: list[int]) -> RankTrace:
        trace = take(rows, job.held_out[who], streams, progress)
        return replace(trace, categories=categories_of(job.prompts, who))

    return shards.joined(in_turns(job.prompts, numbers, turn, answers_of))


def answers_of(trace: RankTrace) -> list[list[int]]:
    """What was said in each sequence, without the tokens that heads looked ahead at."""
    if trace.text is None:
        raise TypeError("what was just decoded has its text")
    return [output[:length].tolist() for output, length in zip(trace.text.outputs, trace.lengths, strict=True)]
