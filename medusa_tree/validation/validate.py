"""Validate: decode held-out prompts with the tree and plainly, and set what was predicted beside what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medusa_runtime.acceptance.rules import GREEDY, Rule, rule_json
from medusa_runtime.decode import Generation, stream
from medusa_runtime.model import MedusaModel
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Estimate, OperatingPoint

from ..devices.measure import device_name
from ..traces.bootstrap import bootstrap, rate_ratio, ratio_interval
from .texts import Difference, first_difference, log_likelihood


@dataclass(frozen=True)
class Validation:
    """Measured figures of one operating point, and the predictions they stand beside.

    differences: from the plain text, where the rule promises that there are none but ties.
    likelihood: where it does not, what the base model gives the texts, in nats a token: "plain", "tree", and their "difference",
        paired by prompt.
    """

    point: OperatingPoint
    rule: Rule
    prompts: int
    differences: list[Difference]
    likelihood: dict[str, Estimate]
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

        compared = {
            "prompts": self.prompts,
            "identical": self.prompts - len(self.differences),
            "near_ties": sum(d.near_tie for d in self.differences),
            "differences": [{**asdict(d), "near_tie": d.near_tie} for d in self.differences],
        }
        return {
            "acceptance": rule_json(self.rule),
            "prompts": self.prompts,
            "lossless": compared if self.rule.lossless else None,
            "log_likelihood_per_token": {name: asdict(e) for name, e in self.likelihood.items()} or None,
            "acceptance_length": both(self.point.acceptance_length, self.acceptance_length),
            "step_latency_ms": all_of(self.step_latency_ms, self.point.step_latency_ms),
            "tokens_per_s": all_of(self.tokens_per_s, self.point.tokens_per_s),
            "speedup": both(self.point.speedup, self.speedup),
            "batch": self.point.batch,
            "context": self.point.context,
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
    rule: Rule = GREEDY,
    streams: Sequence[int] | None = None,
) -> Validation:
    """Decode each batch of prompts plainly and with the tree, one right after the other, in turns as to which is
    first, so that a drift of the machine falls on both.

    Args:
        tree, point: the operating point's tree and predictions; its batch is the batch decoded in.
        progress: called with the number of prompts done.
        rule: how tokens are accepted, by both; plainly, typical acceptance is greedy decoding.
        streams: a number a prompt, see :func:`medusa_runtime.decode.stream`; by default 0, 1, ...
    """
    numbers = list(range(len(prompts)) if streams is None else streams)
    trees = {"plain": CandidateTree(), "tree": tree}
    for warm in trees.values():
        timed_run(model, [prompts[0]], warm, min(8, max_new_tokens), rule)
    runs: dict[str, list[Run]] = {"plain": [], "tree": []}
    batches = [list(prompts[i : i + point.batch]) for i in range(0, len(prompts), point.batch)]
    for i, batch in enumerate(batches):
        own = numbers[i * point.batch :][: len(batch)]
        for name in ("plain", "tree") if i % 2 == 0 else ("tree", "plain"):
            runs[name].append(timed_run(model, batch, trees[name], max_new_tokens, rule, own))
        progress(len(batch))
    plain, with_tree = ([row for r in runs[name] for row in r.generation.tokens] for name in ("plain", "tree"))
    differences: list[Difference] = []
    likelihood: dict[str, Estimate] = {}
    if rule.lossless:
        parted = [i for i, (a, b) in enumerate(zip(plain, with_tree, strict=True)) if a != b]
        differences = [first_difference(model, i, prompts[i], plain[i], with_tree[i], rule, numbers[i]) for i in parted]
    else:
        likelihood = _likelihood(model, prompts, plain, with_tree)

    seconds = {name: np.array([r.seconds for r in rs]) for name, rs in runs.items()}
    tokens = {name: np.array([r.tokens for r in rs]) for name, rs in runs.items()}
    steps = {name: np.array([r.steps for r in rs]) for name, rs in runs.items()}
    rows = [row for r in runs["tree"] for row in r.generation.emitted]
    return Validation(
        point=point,
        rule=rule,
        prompts=len(prompts),
        differences=differences,
        likelihood=likelihood,
        acceptance_length=_ratio(np.array([sum(row) for row in rows]), np.array([len(row) for row in rows])),
        step_latency_ms={name: _ratio(1e3 * seconds[name], steps[name]) for name in runs},
        tokens_per_s={name: _ratio(tokens[name], seconds[name]) for name in runs},
        speedup=Estimate(*rate_ratio(tokens["tree"], seconds["tree"], tokens["plain"], seconds["plain"])),
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


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
    tree: CandidateTree,
    max_new_tokens: int,
    rule: Rule = GREEDY,
    streams: Sequence[int] | None = None,
) -> Run:
    """Decode one batch of prompts and time its steps behind the first."""
    generation = Generation([[] for _ in prompts], [[] for _ in prompts])
    tokens, steps, begin, end = 0, -1, 0.0, 0.0
    for added in stream(model, prompts, tree, max_new_tokens, rule=rule, streams=streams):
        end = time.perf_counter()
        steps += 1
        if steps == 0:
            begin = end
        else:
            tokens += sum(map(len, added))
        generation.add(added)
    return Run(generation, tokens, steps, end - begin)


def _ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """sum(above) / sum(below) with its 95% bootstrap interval over the entries."""
    return Estimate(float(above.sum() / below.sum()), *ratio_interval(above, below))


def _likelihood(
    model: MedusaModel, prompts: Sequence[Sequence[int]], plain: list[list[int]], with_tree: list[list[int]]
) -> dict[str, Estimate]:
    """Nats a token that the base model gives the plain and the tree's text, and their difference, with intervals."""
    nats = [
        np.array([log_likelihood(model, p, t) for p, t in zip(prompts, texts, strict=True)])
        for texts in (plain, with_tree)
    ]
    tokens = [np.array(list(map(len, texts))) for texts in (plain, with_tree)]
    low, high = bootstrap(lambda a, m, b, n: b / n - a / m, nats[0], tokens[0], nats[1], tokens[1])
    both = {name: _ratio(n, t) for name, n, t in zip(("plain", "tree"), nats, tokens, strict=True)}
    return {
        **both,
        "difference": Estimate(both["tree"].value - both["plain"].value, float(low), float(high)),
    }
