"""Validate: decode held-out prompts with the tree and plainly, and set what was predicted beside what is measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medusa_runtime.acceptance.rules import GREEDY, Rule, Typical
from medusa_runtime.book import TreeBook
from medusa_runtime.decode import generate
from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Estimate, OperatingPoint

from ..devices.measure import place_name
from ..progress import Report, counted, unseen
from ..traces.bootstrap import bootstrap, rate_ratio, ratio_interval
from ..traces.replay import Replay
from .acceptance import Acceptance, DraftedBy
from .partings import Partings
from .reference import Reference
from .result import Full, Lossless, Ruled, Validation
from .texts import log_likelihood, unruly
from .ties import judge
from .timing import Run, timed_run

PLAIN = CandidateTree()
ROWS = 16  # sequences of a plain pass that is to be like a tree's


def validate(
    model: MedusaModel,
    tree: CandidateTree | TreeBook,
    point: OperatingPoint,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    report: Report = unseen,
    rule: Rule = GREEDY,
    streams: Sequence[int] | None = None,
    replayed: Replay | None = None,
) -> Validation:
    """Decode each batch of prompts plainly and with the tree, one right after the other, in turns as to which is
    first, so that a drift of the machine falls on both; then judge the texts, off the clock.

    Args:
        tree, point: the operating point's tree, or its book, and predictions; its batch is the batch decoded in.
        rule: how tokens are accepted, by both; plainly, typical acceptance is greedy decoding.
        streams: a number a prompt, see :func:`medusa_runtime.decode.stream`; by default 0, 1, ...
        replayed: the tree's or book's replay on these very prompts, which acceptance is then held against.

    Raises:
        InputError: no step to time, as all texts end with the first, which is not; or as decoding raises it.
    """
    if max_new_tokens < 2:
        raise InputError(
            f"--max-new-tokens {max_new_tokens}: the first step is not timed, so none would be; give 2 or more"
        )
    numbers = list(range(len(prompts)) if streams is None else streams)[: len(prompts)]
    trees: dict[str, CandidateTree | TreeBook] = {"plain": PLAIN, "tree": tree}
    for warm in trees.values():
        timed_run(model, [prompts[0]], warm, min(8, max_new_tokens), rule)
    runs: dict[str, list[Run]] = {"plain": [], "tree": []}
    decoded = counted(report, "Decoding, plainly and with tree", len(prompts))
    for i, at in enumerate(range(0, len(prompts), point.batch)):
        batch, own = list(prompts[at : at + point.batch]), numbers[at : at + point.batch]
        for name in ("plain", "tree") if i % 2 == 0 else ("tree", "plain"):
            runs[name].append(timed_run(model, batch, trees[name], max_new_tokens, rule, own))
        decoded(len(batch))
    plain, with_tree = ([row for r in runs[name] for row in r.generation.tokens] for name in ("plain", "tree"))
    emitted = [row for r in runs["tree"] for row in r.generation.emitted]
    timed = [i for i in range(len(runs["tree"])) if all(rs[i].steps > 0 for rs in runs.values())]
    if not timed:
        raise InputError(
            f"all texts end with their first step, which is not timed; give more than --max-new-tokens {max_new_tokens}, or prompts with longer answers"
        )
    seconds = {name: np.array([rs[i].seconds for i in timed]) for name, rs in runs.items()}
    tokens = {name: np.array([rs[i].tokens for i in timed]) for name, rs in runs.items()}
    steps = {name: np.array([rs[i].steps for i in timed]) for name, rs in runs.items()}
    text: Lossless | Ruled
    if isinstance(rule, Typical) and not rule.lossless:
        text = _ruled(model, prompts, plain, with_tree, emitted, rule, report)
    else:
        text = _lossless(model, prompts, plain, with_tree, point.batch, max_new_tokens, rule, numbers, report)
    drafted = [row for r in runs["tree"] for row in r.generation.drafted]
    by = None if point.book is None else DraftedBy.of(emitted, drafted, point.book.drafted, replayed)
    return Validation(
        point=point,
        rule=rule,
        prompts=len(prompts),
        text=text,
        acceptance=Acceptance.of(emitted, (point.book or point).acceptance_length, replayed),
        drafted=by,
        full=_full(point.batch, runs["tree"]),
        decoded=tree,
        step_latency_ms={name: _ratio(1e3 * seconds[name], steps[name]) for name in runs},
        tokens_per_s={name: _ratio(tokens[name], seconds[name]) for name in runs},
        speedup=Estimate(*rate_ratio(tokens["tree"], seconds["tree"], tokens["plain"], seconds["plain"])),
        device=place_name(model),
        dtype=model.dtype_name,
    )


def _full(batch: int, runs: Sequence[Run]) -> Full | None:
    """What full batches show of sequences that end before others."""
    whole = [r for r in runs if len(r.generation.tokens) == batch and r.steps > 0]
    if batch == 1 or not whole:
        return None
    emitted = [row for r in whole for row in r.generation.emitted]
    steps = sum(map(len, emitted))
    seconds = sum(r.seconds for r in whole) / sum(r.steps for r in whole)
    at_work = steps / sum(max(map(len, r.generation.emitted)) for r in whole)
    return Full(at_work, batch * sum(map(sum, emitted)) / steps / seconds)


def _lossless(
    model: MedusaModel, prompts: Sequence[Sequence[int]], plain: list[list[int]], with_tree: list[list[int]], batch: int, max_new_tokens: int,
    rule: Rule, streams: Sequence[int], report: Report,
) -> Lossless:  # fmt: skip
    """Where texts part, and, if any do, how often plain ones do of themselves."""
    tree = Partings.between(plain, with_tree)
    if not tree.count:
        return Lossless(len(prompts), tree=tree)
    again, shape = _plainly_again(model, prompts, batch, max_new_tokens, rule, streams, report)
    reference = Reference(model)
    found = judge(reference, prompts, plain, with_tree, rule, streams, report)
    own = Partings.between(plain, again)
    return Lossless(len(prompts), found.differences, tree, own, shape, found.rounding, reference.name)


def _plainly_again(
    model: MedusaModel, prompts: Sequence[Sequence[int]], batch: int, max_new_tokens: int, rule: Rule, streams: Sequence[int], report: Report
) -> tuple[list[list[int]], int]:  # fmt: skip
    """The prompts' plain texts from batches of another size than ``batch``, and that size: one, or where it is one already, ROWS, about
    as many rows as a tree's pass has. Products of one row and of several are added up in different ways."""
    size = ROWS if batch == 1 else 1
    texts: list[list[int]] = []
    decoded = counted(report, f"Plainly, {size} at a time", len(prompts))
    while (at := len(texts)) < len(prompts):
        part, own = prompts[at : at + size], streams[at : at + size]
        try:
            texts += generate(model, part, PLAIN, max_new_tokens, rule=rule, streams=own).tokens
        except InputError:  # out of memory: fewer will do
            if size <= 2 or model.split_over_processes:  # another process may have had enough, and waits
                raise
            size //= 2
            continue
        decoded(len(part))
    return texts, size


def _ruled(
    model: MedusaModel, prompts: Sequence[Sequence[int]], plain: list[list[int]], with_tree: list[list[int]], emitted: list[list[int]],
    rule: Typical, report: Report,
) -> Ruled:  # fmt: skip
    """What the texts are worth to the base model, and whether the tree's keep to the rule."""
    nats = [
        np.array([log_likelihood(model, p, t) for p, t in zip(prompts, texts, strict=True)])
        for texts in (plain, with_tree)
    ]
    tokens = [np.array(list(map(len, texts))) for texts in (plain, with_tree)]
    low, high = bootstrap(lambda a, m, b, n: b / n - a / m, nats[0], tokens[0], nats[1], tokens[1])
    both = {name: _ratio(n, t) for name, n, t in zip(("plain", "tree"), nats, tokens, strict=True)}
    cost = Estimate(both["tree"].value - both["plain"].value, float(low), float(high))
    reference = Reference(model)
    return Ruled(
        {**both, "difference": cost}, *unruly(reference, prompts, with_tree, emitted, rule, report), reference.name
    )


def _ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """sum(above) / sum(below) with its 95% bootstrap interval over the entries."""
    return Estimate(float(above.sum() / below.sum()), *ratio_interval(above, below))
