"""What typical acceptance gains and costs over epsilon: speed, and the base model's likelihood of the text.

    python benchmarks/typical.py [--device cuda] [-o benchmarks/results/typical.json]

One tree, made for greedy acceptance on the demo's fitting prompts, decodes held-out prompts greedily, by typical acceptance with
delta = sqrt(epsilon) as in the paper, and not at all (plain decoding), in turns. Ratios are of sums over all prompts, with
95% bootstrap intervals over prompts; a drawing goes beside the JSON.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from record import record
from turns import in_turns

from medusa_runtime import Greedy, MedusaModel, Typical
from medusa_runtime.tree import CandidateTree
from medusa_tree.bundled import resolve_corpus, resolve_model
from medusa_tree.planning.offers import estimate, full_order
from medusa_tree.profiling.corpus import hold_out, read_corpus
from medusa_tree.profiling.profile import profile
from medusa_tree.profiling.tokens import tokenize
from medusa_tree.traces.bootstrap import bootstrap, rate_ratio, ratio_interval
from medusa_tree.validation.texts import log_likelihood
from medusa_tree.validation.timing import timed_run

EPSILONS = (0.01, 0.03, 0.09, 0.2, 0.4, 0.7)


def draw(where: Path, rows: list[dict[str, Any]], greedy: dict[str, Any], title: str) -> None:
    """Speed, acceptance length and likelihood over epsilon; greedy acceptance as the line to hold them against."""
    from matplotlib.figure import Figure

    labels = {
        "speedup": "speedup over plain decoding", "acceptance_length": "tokens a step", "nats": "nats a token, base model",
    }  # fmt: skip
    figure = Figure(figsize=(6, 8), layout="constrained")
    for axis, (key, label) in zip(figure.subplots(3, 1, sharex=True), labels.items(), strict=True):
        value, low, high = np.array([row[key] for row in rows]).T
        axis.errorbar(EPSILONS, value, [value - low, high - value], marker="o", capsize=3, label="typical acceptance")
        axis.axhline(greedy[key][0], linestyle="--", color="0.4", label="greedy acceptance (lossless)")
        axis.set(ylabel=label, xscale="log", xticks=EPSILONS, xticklabels=[f"{e:g}" for e in EPSILONS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.axes[0].set(title=title)
    figure.axes[-1].set(xlabel="epsilon (delta is its square root)")
    figure.savefig(where, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, default=24, help="held-out prompts")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    where, heads = resolve_model("demo", None)
    model = MedusaModel.from_pretrained(where, heads, dtype=args.dtype, device=args.device)
    texts = read_corpus(resolve_corpus("demo"))
    held = hold_out(texts, 0.25, seed=0)
    rows = tokenize(texts, model.tokenizer, 512)
    fitting = [r for r, h in zip(rows, held, strict=True) if not h][:48]
    prompts = [r for r, h in zip(rows, held, strict=True) if h][: args.prompts]
    new = args.max_new_tokens
    trace = profile(model, fitting, [False] * len(fitting), new)
    tree = full_order(estimate(trace), args.nodes, trace.heads).cut(args.nodes)

    ways = {"plain": (CandidateTree(), Greedy()), "greedy": (tree, Greedy())}
    ways |= {f"{e:g}": (tree, Typical(e, e**0.5)) for e in EPSILONS}
    seconds = {name: np.zeros((args.rounds, len(prompts))) for name in ways}
    timed, made, steps, nats = ({name: np.zeros(len(prompts)) for name in ways} for _ in range(4))
    for t, rule in ways.values():
        timed_run(model, [prompts[0]], t, 16, rule)
    for r, i, name in in_turns(list(ways), len(prompts), args.rounds):
        run = timed_run(model, [prompts[i]], ways[name][0], new, ways[name][1])
        seconds[name][r, i], timed[name][i] = run.seconds, run.tokens
        text = run.generation.tokens[0]
        made[name][i], steps[name][i] = len(text), len(run.generation.emitted[0])
        nats[name][i] = log_likelihood(model, prompts[i], text)
    best = {name: np.median(s, axis=0) for name, s in seconds.items()}  # a prompt's median over the rounds

    def figures(name: str) -> dict[str, Any]:
        low, high = bootstrap(lambda n, t: n / t, nats[name], made[name])
        return {
            "speedup": list(rate_ratio(timed[name], best[name], timed["plain"], best["plain"])),
            "acceptance_length": [float(made[name].sum() / steps[name].sum()), *ratio_interval(made[name], steps[name])],
            "nats": [float(nats[name].sum() / made[name].sum()), float(low), float(high)],
        }  # fmt: skip

    swept = [figures(f"{e:g}") for e in EPSILONS]
    typical = [{"epsilon": e, "delta": e**0.5, **f} for e, f in zip(EPSILONS, swept, strict=True)]
    record(
        "typical", model, args.out, nodes=tree.nodes, depth=tree.depth, prompts=len(prompts), max_new_tokens=new, rounds=args.rounds,
        plain_nats=figures("plain")["nats"], greedy=figures("greedy"), typical=typical,
    )  # fmt: skip
    if args.out:
        title = f"{tree.nodes} nodes, {len(prompts)} held-out prompts, {args.dtype}"
        draw(args.out.with_suffix(".png"), swept, figures("greedy"), title)


if __name__ == "__main__":
    main()
