"""What is profiled, on the command line: prompts or given answers, and the job that comes of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medusa_tree.bundled import DEMO
from medusa_tree.drafters import BOTH, LOOKUP

from .acceptance import Acceptance
from .common import COUNT, FILE, SEED, leads, stderr, together, warn_of_cut_prompts
from .drafts import load_drafting
from .model import ModelSource, processes

if TYPE_CHECKING:
    from medusa_tree.profiling.job import Profiling
    from medusa_tree.profiling.run import Job


@dataclass(frozen=True)
class Prompts:
    """The options that say what to profile."""

    corpus: tuple[str, ...]
    answers: Path | None
    reference_text: bool
    prompts: int | None
    max_new_tokens: int
    held_out: float
    candidates: int
    seed: int
    batch_tokens: int | None

    def profiling(self, accepting: Acceptance) -> Profiling:
        """What they ask for, with text made by the rule.

        Raises:
            InputError: options that do not go together.
        """
        from medusa_runtime.acceptance.rules import GREEDY, Typical
        from medusa_runtime.errors import InputError
        from medusa_tree.profiling.job import Profiling

        rule = accepting.rule(self.seed) or GREEDY
        if self.reference_text and self.answers is None:
            raise InputError("--reference-text: says what the answers of --answers are; give their file")
        if self.answers is not None and isinstance(rule, Typical) and not rule.lossless:
            raise InputError(
                "--answers: typical acceptance makes a text of its own with each tree; leave --answers out, or plan for greedy or sampled text"
            )
        return Profiling(
            self.corpus or (DEMO,), self.prompts, self.max_new_tokens, self.held_out, self.candidates, self.seed, rule, self.answers,
            self.reference_text, self.batch_tokens,
        )  # fmt: skip


profiling_options = together(
    Prompts,
    "asked",
    click.option("--corpus", multiple=True, help="Prompts: .jsonl, .json, .parquet or one a line; hf:OWNER/NAME[:SPLIT]; NAME=FILE for a category; repeat for several.  [default: demo, Python code]"),
    click.option("--answers", type=FILE, help="Text made elsewhere, prompts and answers: followed in a few passes, nothing is decoded."),
    click.option("--reference-text", is_flag=True, help="The answers are not the model's own text, and need not agree with it."),
    click.option("--prompts", type=click.IntRange(min=2), help="Use only the first N prompts, of each corpus.  [default: all]"),
    click.option("--max-new-tokens", type=COUNT, default=128, show_default=True, help="Tokens to generate a prompt."),
    click.option("--held-out", type=float, default=0.25, show_default=True, help="Fraction of prompts kept for the reported figures."),
    click.option("--candidates", type=COUNT, default=10, show_default=True, help="Ranks kept a head."),
    click.option("--seed", type=SEED, default=0, show_default=True, help="Draws the held-out prompts, and samples."),
    click.option("--batch-tokens", type=COUNT, help="Tokens of prompts and texts held at once.  [default: as the free memory allows]"),
)  # fmt: skip


def make_job(source: ModelSource, profiling: Profiling, drafts: str = BOTH, side_by_side: bool = False) -> Job:
    """Read what is to be profiled, load the model, and judge all that can be judged before the work.

    Args:
        drafts: who is to draft, see :mod:`medusa_tree.cli.drafts`.
        side_by_side: processes that torchrun started share the prompts, each with a model of its own.

    Raises:
        InputError: whatever cannot be used, by name.
    """
    from medusa_tree.planning.drafts import check_rule
    from medusa_tree.profiling.job import read_asked

    check_rule(profiling.rule, drafts != LOOKUP)
    asked = read_asked(profiling)
    if asked.told:
        stderr().print(f"[yellow]{asked.told}.[/yellow]")
    if profiling.corpora == (DEMO,) and profiling.answers is None and source.model != DEMO:
        stderr().print(
            "[yellow]No --corpus given: calibrating on the bundled Python code. Use prompts like those you will serve.[/yellow]"
        )
    model = load_drafting(source.on_own_gpu() if side_by_side else source, drafts)
    from medusa_tree.profiling.run import job_of

    process = (int(os.environ.get("RANK", "0")), processes()) if side_by_side and not source.tensor_parallel else (0, 1)
    job = job_of(model, asked, profiling, (source.model, source.heads), process, leads() or process[1] > 1)
    warn_of_cut_prompts(job.prompts)
    if job.text is not None:
        stderr().print(f"{profiling.answers}: {job.text}.")
    return job
