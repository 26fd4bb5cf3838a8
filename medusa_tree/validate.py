"""Validate: decode held-out prompts with the tree and plainly, and set what was predicted beside what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from medusa_runtime.attention import AttentionContext
from medusa_runtime.decode import Generation, stream
from medusa_runtime.model import MedusaModel
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Estimate, OperatingPoint

from .bootstrap import rate_ratio, ratio_interval
from .measure import device_name, synchronize


@dataclass(frozen=True)
class Difference:
    """Where a tree's text first leaves the plain text: the prompt, the place, and how near a tie it was there.

    gap: the plain pass's logit of its own token less that of the other; ulp: the spacing of numbers of the
    model's dtype at that size. Within ``NEAR_TIE_ULPS`` of them the order of additions decides.
    """

    prompt: int
    position: int
    gap: float
    ulp: float

    @property
    def near_tie(self) -> bool:
        return self.gap <= NEAR_TIE_ULPS * self.ulp


NEAR_TIE_ULPS = 8.0


@dataclass(frozen=True)
class Validation:
    """Measured figures of one operating point, and the predictions they stand beside."""

    point: OperatingPoint
    prompts: int
    differences: list[Difference]
    acceptance_length: Estimate
    step_latency_ms: dict[str, Estimate]  # "plain", "tree"
    tokens_per_s: dict[str, Estimate]
    speedup: Estimate
    device: str
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """The object ``validate --json`` prints, versions aside."""

        def both(predicted: Estimate, measured: Estimate) -> dict[str, Any]:
            return {
                "predicted": predicted.value,
                "predicted_interval": [predicted.low, predicted.high],
                "measured": measured.value,
                "measured_interval": [measured.low, measured.high],
            }

        def all_of(measured: dict[str, Estimate], predicted: Estimate) -> dict[str, float]:
            return {**{name: e.value for name, e in measured.items()}, "predicted_tree": predicted.value}

        return {
            "lossless": {
                "prompts": self.prompts,
                "identical": self.prompts - len(self.differences),
                "near_ties": sum(d.near_tie for d in self.differences),
                "differences": [{**asdict(d), "near_tie": d.near_tie} for d in self.differences],
            },
            "acceptance_length": both(self.point.acceptance_length, self.acceptance_length),
            "step_latency_ms": all_of(self.step_latency_ms, self.point.step_latency_ms),
            "tokens_per_s": all_of(self.tokens_per_s, self.point.tokens_per_s),
            "speedup": both(self.point.speedup, self.speedup),
            "batch": self.point.batch,
            "nodes": self.point.nodes,
            "depth": self.point.depth,
            "device": self.device,
            "dtype": self.dtype,
        }


def validate(
    model: MedusaModel,
    tree: CandidateTree,
    point: OperatingPoint,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    progress: Callable[[int], object] = lambda done: None,
) -> Validation:
    """Decode each batch of prompts plainly and with the tree, one right after the other, in turns as to which is
    first, so that a drift of the machine falls on both.

    Args:
        tree, point: the operating point's tree and predictions; its batch is the batch decoded in.
        progress: called with the number of prompts done.
    """
    trees = {"plain": CandidateTree(), "tree": tree}
    for warm in trees.values():
        timed_run(model, [prompts[0]], warm, min(8, max_new_tokens))
    runs: dict[str, list[Run]] = {"plain": [], "tree": []}
    batches = [list(prompts[i : i + point.batch]) for i in range(0, len(prompts), point.batch)]
    for i, batch in enumerate(batches):
        for name in ("plain", "tree") if i % 2 == 0 else ("tree", "plain"):
            runs[name].append(timed_run(model, batch, trees[name], max_new_tokens))
        progress(len(batch))
    plain, with_tree = ([row for r in runs[name] for row in r.generation.tokens] for name in ("plain", "tree"))
    pairs = enumerate(zip(plain, with_tree, strict=True))
    differences = [first_difference(model, i, prompts[i], a, b) for i, (a, b) in pairs if a != b]

    seconds = {name: np.array([r.seconds for r in rs]) for name, rs in runs.items()}
    tokens = {name: np.array([r.tokens for r in rs]) for name, rs in runs.items()}
    steps = {name: np.array([r.steps for r in rs]) for name, rs in runs.items()}
    rows = [row for r in runs["tree"] for row in r.generation.emitted]
    return Validation(
        point=point,
        prompts=len(prompts),
        differences=differences,
        acceptance_length=_ratio(np.array([sum(row) for row in rows]), np.array([len(row) for row in rows])),
        step_latency_ms={name: _ratio(1e3 * seconds[name], steps[name]) for name in runs},
        tokens_per_s={name: _ratio(tokens[name], seconds[name]) for name in runs},
        speedup=Estimate(*rate_ratio(tokens["tree"], seconds["tree"], tokens["plain"], seconds["plain"])),
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


@dataclass(frozen=True)
class Run:
    """One batch decoded: its text, and the clock from the end of its first step, so that prefill is left out:
    ``tokens`` emitted and ``steps`` taken in ``seconds``."""

    generation: Generation
    tokens: int
    steps: int
    seconds: float


def timed_run(model: MedusaModel, prompts: list[Sequence[int]], tree: CandidateTree, max_new_tokens: int) -> Run:
    """Decode one batch of prompts and time its steps behind the first."""
    generation = Generation([[] for _ in prompts], [[] for _ in prompts])
    tokens, steps, begin = 0, -1, 0.0
    for added in stream(model, prompts, tree, max_new_tokens):
        steps += 1
        if steps == 0:
            synchronize(model.device)
            begin = time.perf_counter()
        else:
            tokens += sum(map(len, added))
        generation.add(added)
    synchronize(model.device)
    return Run(generation, tokens, steps, time.perf_counter() - begin)


def _ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """sum(above) / sum(below) with its 95% bootstrap interval over the entries."""
    return Estimate(float(above.sum() / below.sum()), *ratio_interval(above, below))


@torch.inference_mode()
def first_difference(
    model: MedusaModel, index: int, prompt: Sequence[int], plain: Sequence[int], other: Sequence[int]
) -> Difference:
    """The first place two continuations part, and the gap between the two tokens' logits there, from one plain
    pass over the text they share."""
    at = next(i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b)  # an end is a token, too
    text = torch.tensor([[*prompt, *plain[:at]]], device=model.device)
    cache = model.new_cache(1, text.shape[1])
    _, logits = model(
        text, cache, AttentionContext(cache.slots), keep=torch.tensor([text.shape[1] - 1], device=model.device)
    )
    row = logits[0, -1].float()
    top = float(row.abs().max())
    gap = abs(float(row[plain[at]] - row[other[at]]))
    ulp = torch.finfo(model.dtype).eps * 2.0 ** np.floor(np.log2(top))
    return Difference(index, at, gap, float(ulp))
