"""What a training run reports: the model card, its curves, and the object that --json prints."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from medusa_runtime.files import write_beside

from ..profiling.provenance import versions
from .evaluate import Scores
from .run import Outcome, Run


def summary(job: Run, outcome: Outcome) -> dict[str, Any]:
    """Every figure of a run, for machines."""
    heads = outcome.heads
    weights = sum(p.numel() * p.element_size() for p in heads.parameters())
    return {
        "model": job.model, "commit": outcome.commit, "data": str(job.data), "recipe": job.recipe.to_json(), "self_distillation": None if job.distillation is None else asdict(job.distillation),
        "rows": outcome.rows, "held_out_rows": outcome.held_out_rows, "held_out_prompts": outcome.held_out_prompts,
        "acceptance_length": [asdict(a) for a in outcome.acceptance],
        "before": _scores(outcome.before), "after": _scores(outcome.after), "head_bytes": weights,
        "seconds": round(outcome.seconds, 1), "peak_bytes": outcome.peak_bytes, "versions": versions(), "log": outcome.log,
    }  # fmt: skip


def _scores(scores: Scores) -> dict[str, Any]:
    return {
        "base_loss": scores.base_loss, "perplexity": math.exp(scores.base_loss), "tokens": int(scores.tokens),
        "head_top_k": [[round(x, 5) for x in row] for row in scores.top_k().tolist()],
    }  # fmt: skip


def card(figures: dict[str, Any], base_name: str) -> str:
    """The model card, Markdown: what these heads are, and how good."""
    recipe, before, after = figures["recipe"], figures["before"], figures["after"]
    distilled = figures["self_distillation"]
    backbone = "trained along" if recipe["name"] == "medusa-2" else "frozen"
    if recipe["name"] == "medusa-2":
        backbone += f" with LoRA of rank {recipe['lora_rank']}, merged" if recipe["lora_rank"] else ", all its weights"
    text = "the text of the data" if distilled is None else "the model's own answers"
    lines = [
        "---", "library_name: transformers", f"base_model: {base_name}", "tags: [medusa, speculative-decoding]", "---", "",
        f"# {recipe['heads']} Medusa heads for {base_name}", "",
        f"Trained by `{recipe['name']}` (arXiv 2401.10774) on {text}, {figures['rows']:,} rows of at most {recipe['max_length']} tokens; the backbone: {backbone}.", "",
        f"Held-out figures: {figures['held_out_rows']:,} rows, {after['tokens']:,} tokens. Backbone: loss {before['base_loss']:.4f} before, {after['base_loss']:.4f} after "
        f"({100 * (after['base_loss'] / before['base_loss'] - 1):+.2f}%); perplexity {before['perplexity']:.3f} and {after['perplexity']:.3f}.", "",
        "| head | top-1, % | top-3, % | top-5, % | top-10, % |", "| --- | --- | --- | --- | --- |",
        *(f"| {k}: next + {k} | " + " | ".join(f"{100 * row[i]:.1f}" for i in (0, 2, 4, 9)) + " |" for k, row in enumerate(after["head_top_k"], start=1)), "",
        f"Acceptance length (tokens a step, root included) by replay of the model's own greedy output, on held-out prompts that took no part in choosing the tree, of {figures['held_out_prompts']}:", "",
        "| nodes | acceptance length | 95% interval |", "| --- | --- | --- |",
        *(f"| {a['nodes']} | {a['value']:.3f} | {a['low']:.3f} to {a['high']:.3f} |" for a in figures["acceptance_length"]), "",
        "Choose the tree for your device: `medusa-tree calibrate --model <this folder> --corpus prompts.jsonl -o tree.json`.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def tables(figures: dict[str, Any]) -> list[Table]:
    """For the terminal: head accuracies on held-out text, and acceptance length."""
    after, before = figures["after"], figures["before"]
    accuracy = Table(title=f"Head accuracy on held-out text\n{after['tokens']:,} tokens", title_style="bold")
    for name in ("head", "top-1, %", "top-3, %", "top-5, %", "top-10, %"):
        accuracy.add_column(name, justify="left" if name == "head" else "right", no_wrap=True)
    for k, row in enumerate(after["head_top_k"], start=1):
        accuracy.add_row(f"{k}: next + {k}", *(f"{100 * row[i]:.1f}" for i in (0, 2, 4, 9)))
    change = 100 * (after["base_loss"] / before["base_loss"] - 1)
    accuracy.caption = f"backbone: loss {after['base_loss']:.4f} ({change:+.2f}%), perplexity {after['perplexity']:.2f}"
    lengths = Table(
        title=f"Acceptance length by replay\n{figures['held_out_prompts']} held-out prompts", title_style="bold"
    )
    for name in ("nodes", "tokens a step", "95% interval"):
        lengths.add_column(name, justify="right", no_wrap=True)
    for a in figures["acceptance_length"]:
        lengths.add_row(str(a["nodes"]), f"{a['value']:.3f}", f"{a['low']:.3f} to {a['high']:.3f}")
    lengths.caption = "best tree of each size, chosen on half of the prompts, replayed on the rest"
    return [accuracy, lengths]


def curves(log: list[dict[str, Any]], path: Path) -> None:
    """A PNG of two panels over the steps: each head's loss (and the backbone's), and its held-out top-1 accuracy."""
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = sorted({k for entry in log for k in entry if k.startswith("head_")}, key=lambda k: int(k.split("_")[1]))
    for i, name in enumerate([*names, "backbone", "backbone_kl"]):
        points = [(e["step"], e[name]) for e in log if name in e]
        if points:
            style = {"color": f"C{i}"} if name in names else {"color": "0.3", "linestyle": "--"}
            left.plot(*zip(*points, strict=True), label=name.replace("_", " "), **style)
    for i, name in enumerate(names):
        points = [(e["step"], 100 * e[f"eval_{name}_top_1"]) for e in log if f"eval_{name}_top_1" in e]
        if points:
            right.plot(*zip(*points, strict=True), "o-", color=f"C{i}", markersize=3, label=name.replace("_", " "))
    left.set_ylabel("training loss, nats a token")
    right.set_ylabel("top-1 accuracy on held-out text, %")
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    with write_beside(path) as beside:
        figure.savefig(beside, dpi=130, format="png")
