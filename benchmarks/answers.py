"""Given answers against decoding: the seconds of a profiling job on text that is there already, over those of the job that makes it.

    python benchmarks/answers.py [--max-new-tokens 128] [--dtype float32] [--device cuda] [-o benchmarks/results/answers.json]

The text is the model's own, so that both jobs have the same positions; ``same_ranks`` says at how many of them and heads the ranks
are equal (in bfloat16 other shapes round otherwise). The two take turns; the ratio of each round is a pair.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from record import demo, record

from medusa_runtime import MedusaModel
from medusa_tree.profiling.job import Profiling, read_asked
from medusa_tree.profiling.run import job_of, profile_run
from medusa_tree.profiling.shards import collect
from medusa_tree.traces.trace import RankTrace


def timed(model: MedusaModel, profiling: Profiling, names: tuple[str, str | None]) -> tuple[float, RankTrace]:
    """Seconds of the whole job, from reading its prompts to its last shard, and its trace."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        profile_run(job_of(model, read_asked(profiling), profiling, names), Path(folder) / "run")
        seconds = time.perf_counter() - begin
        return seconds, collect(Path(folder) / "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    model = demo(args.device, args.dtype)
    own = Profiling(("demo",), max_new_tokens=args.max_new_tokens)
    names = (model.name, model.heads_name)
    _, trace = timed(model, own, names)
    ratios, decoded, followed = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        rows = zip(trace.text.prompts, trace.text.outputs, strict=True) if trace.text else ()
        path.write_text(
            "".join(json.dumps({"prompt_ids": p.tolist(), "response_ids": o.tolist()}) + "\n" for p, o in rows)
        )
        given = Profiling(("demo",), max_new_tokens=args.max_new_tokens, answers=path)
        _, same = timed(model, given, names)
        for _ in range(args.rounds):
            decoded.append(timed(model, own, names)[0])
            followed.append(timed(model, given, names)[0])
            ratios.append(followed[-1] / decoded[-1])
    equal = float((same.ranks == trace.ranks).mean()) if same.ranks.shape == trace.ranks.shape else None
    record(
        "answers",
        model,
        args.out,
        max_new_tokens=args.max_new_tokens,
        positions=trace.positions,
        seconds={"decoding": float(np.median(decoded)), "given_answers": float(np.median(followed))},
        ratio={"median": float(np.median(ratios)), "low": min(ratios), "high": max(ratios), "rounds": args.rounds},
        same_ranks=equal,
    )


if __name__ == "__main__":
    main()
