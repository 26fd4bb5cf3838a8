"""Memory of a long profiling job: resident megabytes as it goes through so many prompts, the demo's over and over.

    python benchmarks/profile_memory.py [--prompts 20000] [--device cuda] [-o benchmarks/results/profile_memory.json]

Marks are taken at every twentieth of the shards; ``resident_growth_mb`` is the last less the third, when all that is allocated once
is there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from memory import resident_mb
from record import demo, record

from medusa_tree.bundled import resolve_corpus
from medusa_tree.profiling.corpus import hold_out, read_corpus
from medusa_tree.profiling.job import Profiling
from medusa_tree.profiling.prompt import Prompt
from medusa_tree.profiling.run import Job, profile_run
from medusa_tree.profiling.shards import shard
from medusa_tree.profiling.tokens import fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    model = demo(args.device, args.dtype)
    texts = read_corpus(resolve_corpus("demo"))
    asked = [Prompt(f"# {i}\n{texts[i % len(texts)].text[-400:]}", f"{i}") for i in range(args.prompts)]
    profiling = Profiling(("demo",), max_new_tokens=args.max_new_tokens)
    held_out = hold_out(asked, profiling.held_out, profiling.seed)
    job = Job(model, fitted(model, asked, args.max_new_tokens), held_out, profiling, (model.name, model.heads_name))
    marks: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder, seen = Path(name) / "run", 0

        def report(stage: str, done: int, total: int) -> None:
            nonlocal seen
            if done * 20 >= total * (seen + 1):
                seen += 1
                marks.append({"prompts": done, "resident_mb": round(resident_mb(), 1)})

        run = profile_run(job, folder, report)
        size = sum(shard(folder, "ranks", n).stat().st_size for n in range(run.shards["ranks"]))
    growth = round(marks[-1]["resident_mb"] - marks[2]["resident_mb"], 1)
    record(
        "profile_memory", model, args.out, prompts=args.prompts, shards=run.shards["ranks"], shards_mb=round(size / 2**20, 1),
        marks=marks, resident_growth_mb=growth,
    )  # fmt: skip


if __name__ == "__main__":
    main()
