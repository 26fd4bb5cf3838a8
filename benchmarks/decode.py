"""Decode the same held-out prompts plainly, with the heads' tree, with a lookup alone, with both together, and with transformers'
generate, with and without its prompt lookup, in turns.

    python benchmarks/decode.py [--device cuda] [-o benchmarks/results/decode.json]

Whole requests are timed, prefill included; ratios are of sums over all prompts, with 95% bootstrap intervals
over prompts; by quartile of how much the answers repeat themselves, too. Without --tree the demo is calibrated first, on this device.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from record import record
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, logging
from turns import in_turns

from medusa_runtime import CandidateTree, MedusaModel, TreeBook
from medusa_runtime.treefile import read_tree
from medusa_tree.bundled import resolve_corpus, resolve_model
from medusa_tree.devices.measure import synchronize
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.calibration import calibration_path, load_calibration
from medusa_tree.planning.plan import plan
from medusa_tree.profiling.corpus import hold_out, read_corpus
from medusa_tree.profiling.tokens import tokenize
from medusa_tree.traces.bootstrap import rate_ratio

LOOKUP = 10  # tokens that transformers' prompt lookup drafts a step, as its documentation has it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="tree.json of the demo")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile our pass over a tree")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    tree_json = args.tree or Path(tempfile.mkdtemp()) / "tree.json"
    if args.tree is None:
        command = [
            sys.executable,
            "-m",
            "medusa_tree",
            "calibrate",
            "--model",
            "demo",
            "--dtype",
            args.dtype,
            "-o",
            str(tree_json),
        ]
        subprocess.run([*command, *(["--device", args.device] if args.device else [])], check=True)
    contents, calibration = read_tree(tree_json), load_calibration(calibration_path(tree_json))
    alone = plan(calibration, Budget(), drafts="lookup").contents
    where, heads = resolve_model("demo", None)
    model = MedusaModel.from_pretrained(where, heads, dtype=args.dtype, device=args.device)
    if args.compile:
        model.compile()
    base = AutoModelForCausalLM.from_pretrained(where, dtype=model.dtype).to(model.device).eval()
    texts = read_corpus(resolve_corpus("demo"))
    held = [t for t, h in zip(texts, hold_out(texts, 0.25, seed=0), strict=True) if h]
    prompts = tokenize(held, model.tokenizer, 512)[: args.prompts]
    new = args.max_new_tokens

    def transformers_generate(**options: int):
        def run(prompt: list[int]) -> int:
            ids = torch.tensor([prompt], device=base.device)
            mask = torch.ones_like(ids)
            out = base.generate(
                ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0, **options
            )
            return out.shape[1] - len(prompt)

        return run

    def ours(tree: CandidateTree | TreeBook):
        def run(prompt: list[int]) -> int:
            answers[tuple(prompt)] = model.generate([prompt], tree=tree, max_new_tokens=new).tokens[0]
            return len(answers[tuple(prompt)])

        return run

    answers: dict[tuple[int, ...], list[int]] = {}
    books = {"plain": CandidateTree(), "heads": contents.tree(), "lookup": alone.book(), "both": contents.book()}
    ways = {
        **{name: ours(book) for name, book in books.items()},
        "transformers": transformers_generate(),
        "prompt_lookup": transformers_generate(prompt_lookup_num_tokens=LOOKUP),
    }
    seconds = {name: np.zeros((args.rounds, len(prompts))) for name in ways}
    tokens = {name: np.zeros(len(prompts)) for name in ways}
    for way in ways.values():
        way(prompts[0])
    for r, i, name in in_turns(list(ways), len(prompts), args.rounds):
        synchronize(model.device)
        begin = time.perf_counter()
        tokens[name][i] = ways[name](prompts[i])
        synchronize(model.device)
        seconds[name][r, i] = time.perf_counter() - begin

    middle = {name: np.median(s, axis=0) for name, s in seconds.items()}  # a prompt's median over the rounds

    def ratio(name: str, over: str, some: np.ndarray | slice = slice(None)) -> dict[str, float]:
        value, low, high = rate_ratio(tokens[name][some], middle[name][some], tokens[over][some], middle[over][some])
        return {"ratio": value, "low": low, "high": high}

    repeated = np.array([repetitiveness(answers[tuple(p)]) for p in prompts])
    quartiles = np.array_split(np.argsort(repeated, kind="stable"), 4)
    table = Table("", "tokens/s", "both over it")
    for name in ways:
        over = ratio("both", name)
        interval = "" if name == "both" else f"{over['ratio']:.2f} ({over['low']:.2f} to {over['high']:.2f})"
        table.add_row(name.replace("_", " "), f"{tokens[name].sum() / middle[name].sum():.0f}", interval)
    Console(stderr=True).print(table)
    record(
        "decode",
        model,
        args.out,
        book=[[m, t.nodes, t.heads, t.lookup] for m, t in zip(books["both"].matches, books["both"].trees, strict=True)],
        nodes=books["heads"].nodes,
        depth=books["heads"].depth,
        prompts=len(prompts),
        max_new_tokens=new,
        rounds=args.rounds,
        tokens_per_s={name: float(tokens[name].sum() / middle[name].sum()) for name in ways},
        both_over={name: ratio("both", name) for name in ways if name != "both"},
        heads_over={name: ratio("heads", name) for name in ("plain", "transformers", "prompt_lookup")},
        quartiles_of_repetition=[
            {
                "repeated": [float(repeated[q].min()), float(repeated[q].max())],
                "both_over_heads": ratio("both", "heads", q),
            }
            for q in quartiles
        ],
        compiled=args.compile,
    )


def repetitiveness(answer: list[int], n: int = 8) -> float:
    """The share of an answer's n-grams that stood in it before."""
    grams = [tuple(answer[i : i + n]) for i in range(len(answer) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


if __name__ == "__main__":
    main()
