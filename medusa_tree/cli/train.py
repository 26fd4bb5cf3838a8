"""medusa-tree train: train Medusa heads, alone or with their backbone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import COUNT, FILE, FOLDER, SEED, progress_bars, stderr, stdout, together
from .model import Placement, placement_options, quiet_transformers

if TYPE_CHECKING:
    from medusa_tree.training.run import Distillation


@dataclass(frozen=True)
class Answers:
    """The options that say how the model answers the prompts itself."""

    max_new_tokens: int
    temperature: float
    top_p: float
    answer_batch: int | None

    def distillation(self) -> Distillation:
        from medusa_tree.training.run import Distillation

        return Distillation(self.max_new_tokens, self.temperature, self.top_p, self.answer_batch)


answer_options = together(
    Answers,
    "answers",
    click.option("--max-new-tokens", type=COUNT, default=512, show_default=True, help="Length of such an answer."),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="Of such answers; 0 is greedy."),
    click.option("--top-p", type=float, default=1.0, show_default=True, help="Of such answers."),
    click.option(
        "--answer-batch", type=COUNT, help="Prompts answered at once, at most.  [default: as the free memory allows]"
    ),
)


@click.command()
@click.option("--model", required=True, help="Folder or Hub id of the backbone; 'demo' is the bundled one.")
@click.option(
    "--data", type=FILE, required=True, help="Training rows (.jsonl, .json or text), or prompts with --self-distill."
)
@click.option("--eval", "evaluation", type=FILE, help="Held-out rows, as for training.  [default: a share of --data]")
@click.option(
    "--held-out", type=float, default=0.05, show_default=True, help="Share of --data's documents kept for the figures."
)
@click.option(
    "--recipe",
    type=click.Choice(["medusa-1", "medusa-2"]),
    default="medusa-1",
    show_default=True,
    help="Heads on a frozen backbone, or both.",
)
@click.option("--heads", type=int, default=4, show_default=True, help="How many tokens ahead to guess.")
@click.option("--blocks", type=int, default=1, show_default=True, help="Residual blocks a head.")
@click.option("--shared-output", is_flag=True, help="Heads use the model's output layer and have none of their own.")
@click.option("--draft-vocab", type=int, help="Heads propose only this many most frequent tokens.  [default: all]")
@click.option(
    "--self-distill",
    is_flag=True,
    help="Let the model answer the prompts in --data (or take answers.jsonl of an earlier run), and train on its answers.",
)
@answer_options
@click.option("--epochs", type=float, default=1.0, show_default=True, help="Passes over the rows.")
@click.option("--max-steps", type=int, default=-1, help="Stop after so many steps instead.")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Rows a step and process.")
@click.option("--accumulate", type=int, default=1, show_default=True, help="Batches a step.")
@click.option("--max-length", type=int, default=1024, show_default=True, help="Tokens a row; longer ones are cut.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Of the heads, at its peak.")
@click.option(
    "--backbone-rate", type=float, default=0.25, show_default=True, help="The backbone's share of it (medusa-2)."
)
@click.option(
    "--heads-first",
    type=float,
    default=0.3,
    show_default=True,
    help="Share of the steps in which the backbone rests (medusa-2).",
)
@click.option(
    "--heads-weight",
    type=float,
    default=0.2,
    show_default=True,
    help="Weight of the heads' loss beside the backbone's (medusa-2).",
)
@click.option(
    "--lora-rank",
    type=int,
    default=32,
    show_default=True,
    help="Adapters on the backbone; 0 trains all of it (medusa-2).",
)
@click.option(
    "--gradient-checkpointing",
    is_flag=True,
    help="Less memory for the backbone's gradients, a third more time (medusa-2).",
)
@click.option("--quantize", type=click.Choice(["4bit", "8bit"]), help="Load the backbone so, by bitsandbytes.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["medusa", "pt", "tgi-v2", "vllm"]),
    help="How to write the heads.  [default: medusa where it can carry them]",
)
@click.option(
    "--eval-prompts",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    help="Held-out prompts for acceptance length.",
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the run that was begun in the output folder.")
@placement_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    required=True,
    help="Folder for the heads (medusa-2: the full model), card and curves.",
)
def train(
    model: str, data: Path, evaluation: Path | None, held_out: float, form: str | None, self_distill: bool, answers: Answers, quantize: str | None,
    eval_prompts: int, resume: bool, placement: Placement, as_json: bool, output: Path, recipe: str, shared_output: bool, **settings: Any,
) -> None:  # fmt: skip
    """Train Medusa heads for MODEL, as in the paper; on several GPUs: torchrun --nproc-per-node N -m medusa_tree train ...

    A killed run goes on with --resume. Writes the heads (or the full model), README.md, training.json and training.png.
    """
    with stderr().status("Loading ..."):
        quiet_transformers()
        from medusa_runtime.hub import Hub
        from medusa_tree.bundled import resolve_model
        from medusa_tree.training.recipe import Recipe
        from medusa_tree.training.run import Run, run

    how = Recipe(name=recipe, own_output=not shared_output, distill=self_distill, **settings)
    where, _ = resolve_model(model, None)
    where = str(Path(where).resolve()) if Path(where).is_dir() else where
    job = Run(
        where, data, output, how, answers.distillation() if self_distill else None, evaluation, held_out, form,
        device=placement.device, dtype=placement.dtype, quantize=quantize, trust_remote_code=placement.trust_remote_code,
        resume=resume, eval_prompts=eval_prompts, hub=Hub(placement.revision),
    )  # fmt: skip
    try:
        with progress_bars() as report:
            outcome = run(job, report)
    except KeyboardInterrupt:
        stderr().print(f"Stopped. Go on with the same command and --resume; what is done stands in {output}.")
        raise
    if outcome is None:
        return
    from medusa_runtime.files import write_beside
    from medusa_tree.training.card import card, curves, summary, tables

    figures = summary(job, outcome)
    with write_beside(output / "training.json") as beside:
        beside.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    with write_beside(output / "README.md") as beside:
        beside.write_text(card(figures, model), "utf-8")
    curves(outcome.log, output / "training.png")
    if as_json:
        print(json.dumps({k: v for k, v in figures.items() if k != "log"}, indent=2))
        return
    for table in tables(figures):
        stdout().print(table)
    stderr().print(
        f"Wrote {output} (README.md, training.json, training.png).\nNext: medusa-tree calibrate --model {output} -o tree.json"
    )
