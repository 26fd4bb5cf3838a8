"""What each recipe, and each cheaper kind of head, is worth on the demo: same backbone, same number of steps.

    python data/demo/train.py --text work     # the demo's training and held-out text, and prompts from training files
    python benchmarks/recipes.py work -o benchmarks/results/recipes-cpu.json

Every variant is trained by the product itself and read back from its checkpoint. Accuracy and the backbone's loss are on
held-out text; acceptance length is by replay on the bundled held-out prompts, trees chosen on one half and replayed on the
other. Speed is of the best 16-node tree, each variant against plain decoding of the same model, in turns over prompts.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from record import keep
from turns import in_turns

from medusa_runtime import CandidateTree, MedusaModel
from medusa_tree.bundled import resolve_corpus, resolve_model
from medusa_tree.devices.measure import device_name
from medusa_tree.planning.offers import estimate, full_order
from medusa_tree.profiling.corpus import read_corpus
from medusa_tree.profiling.profile import profile
from medusa_tree.profiling.tokens import tokenize
from medusa_tree.traces.bootstrap import rate_ratio
from medusa_tree.traces.replay import replay
from medusa_tree.training.card import summary
from medusa_tree.training.recipe import Recipe
from medusa_tree.training.run import Distillation, Run, run
from medusa_tree.validation.timing import timed_run

SIZES = (16, 32, 64)
SPEED = 16  # nodes of the tree that is timed
RATE = 3e-3  # a small model takes a larger rate than the paper's 1e-3
TEXT, ANSWERS = "train.jsonl", "answers.jsonl"
ROWS = {TEXT: 8, ANSWERS: 24}  # a step: about 4,096 tokens of either
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name: (data, recipe)
    "medusa-1": (TEXT, {}),
    "medusa-2": (TEXT, {"name": "medusa-2", "lora_rank": 0}),
    "medusa-1, self-distilled": (ANSWERS, {"distill": True}),
    "medusa-2, self-distilled": (ANSWERS, {"name": "medusa-2", "lora_rank": 0, "distill": True}),
    "medusa-2, self-distilled, LoRA": (ANSWERS, {"name": "medusa-2", "distill": True}),
    "two blocks, self-distilled": (ANSWERS, {"distill": True, "blocks": 2}),
    "shared output, self-distilled": (ANSWERS, {"distill": True, "own_output": False}),
    "draft vocabulary 1,024, self-distilled": (ANSWERS, {"distill": True, "draft_vocab": 1024}),
    "shared output, draft vocabulary 1,024": (ANSWERS, {"distill": True, "own_output": False, "draft_vocab": 1024}),
}


def trained(work: Path, name: str, steps: int) -> tuple[Path, dict[str, Any]]:
    """Train a variant, or take what an earlier call left: its folder and figures."""
    data, settings = VARIANTS[name]
    out = work / "recipes" / name.replace(", ", "-").replace(",", "").replace(" ", "-")
    kept = out / "training.json"
    if not kept.is_file():
        recipe = Recipe(
            max_steps=steps, batch_size=ROWS[data], max_length=512, learning_rate=RATE, backbone_rate=0.1, **settings
        )
        made = (work / data).is_file()  # the first self-distilled variant makes the answers, the others take them
        job = Run(
            resolve_model("demo", None)[0], work / data if made else work / "prompts.jsonl", out, recipe,
            Distillation(max_new_tokens=128, batch_size=128) if recipe.distill else None, work / "held.jsonl", resume=True, eval_prompts=16,
        )  # fmt: skip

        def report(stage: str, done: int, total: int) -> None:
            if done % max(1, total // 10) == 0:
                print(f"{name}: {stage} {done}/{total}", flush=True)

        outcome = run(job, report)
        if outcome is None:
            raise SystemExit("run this benchmark as one process")
        if not made:
            shutil.copy(out / "work" / "answers" / "answers.jsonl", work / data)
        kept.write_text(json.dumps(summary(job, outcome)))
    return out, json.loads(kept.read_text())


def judged(
    folder: Path, prompts: list[list[int]], new: int
) -> tuple[MedusaModel, CandidateTree, list[dict[str, float]]]:
    """The model as a user would load it, its best tree of SPEED nodes, and the acceptance lengths of SIZES."""
    model = MedusaModel.from_pretrained(folder, dtype="bfloat16")
    trace = profile(model, prompts, np.arange(len(prompts)) % 2 == 1, new)
    fit, held = trace.split()
    order = full_order(estimate(fit), max(SIZES), fit.heads)
    played = [(n, replay(order.cut(n), held)) for n in SIZES]
    return model, order.cut(SPEED), [
        {"nodes": n, "value": p.acceptance_length, "low": p.interval()[0], "high": p.interval()[1]} for n, p in played
    ]  # fmt: skip


def head_bytes(model: MedusaModel) -> int:
    """Bytes of the heads' own weights and of the output layer that they read, all heads used."""
    heads = model.medusa_heads
    own = sum(p.numel() * p.element_size() for p in heads.parameters())
    shared = 0 if heads.output_weight is not None else heads.rows * heads.hidden_size * 2
    return own + shared


def speeds(
    models: dict[str, tuple[MedusaModel, CandidateTree]], prompts: list[list[int]], new: int, rounds: int
) -> dict[str, Any]:
    """Each variant's tree against plain decoding of the same model, prompt by prompt in random order."""
    ways = {
        (name, way): (m, t if way == "tree" else CandidateTree())
        for name, (m, t) in models.items()
        for way in ("plain", "tree")
    }
    seconds = {way: np.zeros((rounds, len(prompts))) for way in ways}
    tokens = {way: np.zeros(len(prompts)) for way in ways}
    for model, tree in ways.values():
        timed_run(model, [prompts[0]], tree, 16)
    for r, i, way in in_turns(list(ways), len(prompts), rounds):
        done = timed_run(ways[way][0], [prompts[i]], ways[way][1], new)
        seconds[way][r, i], tokens[way][i] = done.seconds, done.tokens
    best = {way: np.median(s, axis=0) for way, s in seconds.items()}
    result = {}
    for name in models:
        tree, plain = (name, "tree"), (name, "plain")
        value, low, high = rate_ratio(tokens[tree], best[tree], tokens[plain], best[plain])
        result[name] = {
            "tokens_per_s": float(tokens[tree].sum() / best[tree].sum()),
            "speedup": value,
            "low": low,
            "high": high,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "work", type=Path, help="folder with train.jsonl, held.jsonl and prompts.jsonl; variants are kept in it"
    )
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", action="append", choices=VARIANTS, help="these variants; repeat for several")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--speed-prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_model("demo", None)[0])
    prompts = tokenize(read_corpus(resolve_corpus("demo")), tokenizer, 512)
    names = args.only or list(VARIANTS)
    folders = {name: trained(args.work, name, args.steps) for name in names}
    bundled = MedusaModel.from_pretrained(*resolve_model("demo", None), dtype="bfloat16").base
    rows: dict[str, dict[str, Any]] = {}
    models = {}
    for name, (folder, figures) in folders.items():
        model, tree, lengths = judged(folder, prompts, args.max_new_tokens)
        models[name] = (model, tree)
        before, after = figures["before"], figures["after"]
        rows[name] = {
            "base_loss": after["base_loss"], "base_loss_change": after["base_loss"] / before["base_loss"] - 1,
            "top_1": [row[0] for row in after["head_top_k"]], "top_5": [row[4] for row in after["head_top_k"]],
            "acceptance_length": lengths, "head_bytes": head_bytes(model), "training_seconds": figures["seconds"],
        }  # fmt: skip
    at = (
        np.linspace(1, len(prompts) - 1 - len(prompts) % 2, args.speed_prompts).astype(int) // 2 * 2 + 1
    )  # replayed ones
    for name, speed in speeds(models, [prompts[i] for i in at], args.max_new_tokens, args.rounds).items():
        rows[name] |= speed
    table(rows)
    keep("recipes", args.out, {
        "device": device_name(bundled.device), "dtype": "bfloat16", "steps": args.steps, "rows_a_step": ROWS, "speed_nodes": SPEED,
        "prompts": len(prompts), "base_bytes": sum(p.numel() * p.element_size() for p in bundled.parameters()), "variants": rows,
    })  # fmt: skip


def table(rows: dict[str, dict[str, Any]]) -> None:
    """The figures, as Markdown."""
    print(
        "| variant | backbone | top-1, % | top-5, % | "
        + " | ".join(f"L({n})" for n in SIZES)
        + " | heads, MB | speedup |"
    )
    print("| --- |" + " --- |" * (5 + len(SIZES)))
    for name, r in rows.items():
        tops = (" / ".join(f"{100 * x:.1f}" for x in r[k]) for k in ("top_1", "top_5"))
        lengths = " | ".join(f"{a['value']:.2f}" for a in r["acceptance_length"])
        speed = f"{r['speedup']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
        print(
            f"| {name} | {100 * r['base_loss_change']:+.2f}% | {' | '.join(tops)} | {lengths} | {r['head_bytes'] / 1e6:.1f} | {speed} |"
        )


if __name__ == "__main__":
    main()
