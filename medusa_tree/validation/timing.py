"""Timing: one batch decoded, and the clock over its steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from medusa_runtime.acceptance.rules import GREEDY, Rule
from medusa_runtime.book import TreeBook
from medusa_runtime.decode import Generation, steps
from medusa_runtime.model import MedusaModel
from medusa_runtime.tree import CandidateTree


@dataclass(frozen=True)
class Run:
    """One batch decoded: its text, and the clock from when its first step was read, so that prefill is left out, to when its last
    was: ``tokens`` emitted and ``steps`` taken in ``seconds``."""

    generation: Generation
    tokens: int
    steps: int
    seconds: float


def timed_run(
    model: MedusaModel,
    prompts: list[Sequence[int]],
    tree: CandidateTree | TreeBook,
    max_new_tokens: int,
    rule: Rule = GREEDY,
    streams: Sequence[int] | None = None,
) -> Run:
    """Decode one batch of prompts and time its steps behind the first."""
    generation = Generation.start(len(prompts))
    tokens, taken, begin, end = 0, -1, 0.0, 0.0
    for added, drafted in steps(model, prompts, tree, max_new_tokens, rule=rule, streams=streams):
        end = time.perf_counter()
        taken += 1
        if taken == 0:
            begin = end
        else:
            tokens += sum(map(len, added))
        generation.add(added, drafted)
    return Run(generation, tokens, taken, end - begin)
