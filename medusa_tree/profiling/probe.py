"""Probe: typical acceptance's trace, which says at every position of a text which nodes of a large tree a step would accept.

The text and whatever hangs from it form one big tree: its trunk is prompt and text, and where several probe nodes or the text
agree they are one node. It is verified level by level, so that only accepted nodes with children go through the model: a
few a position instead of the whole probe tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medusa_runtime.acceptance.accept import log_probabilities, threshold
from medusa_runtime.acceptance.rules import Rule, Typical
from medusa_runtime.attention import AttentionContext, TreeMask
from medusa_runtime.cache.cache import TreeCache
from medusa_runtime.decode import generate
from medusa_runtime.model import MedusaModel
from medusa_runtime.step import propose
from medusa_runtime.tree import CandidateTree

from ..planning.compare import COPIED, fit_to_heads, published_tree
from ..planning.offers import estimate, full_order
from ..progress import Progress
from ..traces.probetrace import ProbeTrace
from ..traces.text import Ragged, TraceText
from ..traces.trace import RankTrace
from .profile import profile, ranks_of, targets_of
from .shards import in_order

PROBE = 256  # nodes of the probe tree, before the lists that people use
TEXT = 32  # nodes of the tree that makes the text to fit on
BATCH = 16  # prompts decoded at once


def profile_typical(
    model: MedusaModel,
    prompts: Sequence[Sequence[int]],
    held_out: Sequence[bool] | npt.NDArray[np.bool_],
    rule: Typical,
    max_new_tokens: int = 128,
    candidates: int = 10,
    progress: Progress = lambda done: None,
) -> ProbeTrace:
    """Probe the text that typical acceptance makes.

    Greedy text of the fitting prompts is ranked first, which says what to probe and what to make the text with, see
    :func:`trees_for`.

    Args:
        prompts, held_out, max_new_tokens, candidates: as for :func:`medusa_tree.profiling.profile.profile`.

    Raises:
        InputError: prompt and new tokens exceed the model's context, or logits that are NaN or infinite.
    """
    fitting = [p for p, h in zip(prompts, held_out, strict=True) if not h]
    trees = trees_for(profile(model, fitting, [False] * len(fitting), max_new_tokens, candidates))
    return probe_texts(model, prompts, held_out, rule, *trees, max_new_tokens, candidates, progress=progress)


def trees_for(greedy: RankTrace) -> tuple[CandidateTree, CandidateTree]:
    """The tree to make text with, and the one to probe it with: the most frequent paths of greedy text, its first TEXT and PROBE.
    Chains and the copied list are probed, too, to be compared with."""
    order = full_order(estimate(greedy), PROBE, greedy.heads)
    return order.cut(TEXT), probe_tree(order, greedy)


def retake(
    model: MedusaModel,
    prompts: Sequence[Sequence[int]],
    trace: ProbeTrace,
    text_tree: CandidateTree,
    max_new_tokens: int = 128,
    progress: Progress = lambda done: None,
) -> ProbeTrace:
    """The trace with the held-out text made anew, with ``text_tree``.

    Under typical acceptance each tree makes a text of its own, and replay is exact for the tree that made it. So once a tree
    is chosen, on the fitting sequences, what is reported of it is replayed on its own text.
    """
    rule = trace.acceptance
    if not isinstance(rule, Typical):
        raise TypeError("a probe trace is of typical acceptance")
    held = np.flatnonzero(trace.held_out).tolist()
    rows = [prompts[i] for i in held]
    return replaced(
        trace,
        probe_texts(
            model,
            rows,
            [True] * len(held),
            rule,
            text_tree,
            trace.probe,
            max_new_tokens,
            trace.candidates,
            held,
            progress,
        ),
    )


def replaced(trace: ProbeTrace, held: ProbeTrace) -> ProbeTrace:
    """The trace with other held-out sequences, in the order of their streams."""
    whole = in_order(ProbeTrace.merge([trace.select(~trace.held_out), held]))
    if not isinstance(whole, ProbeTrace):
        raise TypeError("probe traces merge into one")
    return whole


@torch.inference_mode()
def probe_texts(
    model: MedusaModel, prompts: Sequence[Sequence[int]], held_out: Sequence[bool] | npt.NDArray[np.bool_], rule: Typical,
    text_tree: CandidateTree, tree: CandidateTree, max_new_tokens: int, candidates: int, streams: Sequence[int] | None = None,
    progress: Progress = lambda done: None, batch_size: int = BATCH,
) -> ProbeTrace:  # fmt: skip
    """Each prompt's text made with ``text_tree``, ranked, and probed with ``tree``; other arguments as for
    :func:`medusa_tree.profiling.profile.profile`."""
    ahead = model.num_heads  # so that the last position's heads can be judged, too
    made: list[list[int]] = [[] for _ in prompts]
    ranks = [np.zeros((0, ahead), dtype=np.int16)] * len(prompts)
    accepted = [np.zeros((0, tree.nodes), dtype=np.bool_)] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(by_length), batch_size):
        batch = by_length[first : first + batch_size]
        texts = generate(model, [prompts[i] for i in batch], text_tree, max_new_tokens + ahead, rule=rule).tokens
        for i, text in zip(batch, texts, strict=True):
            kept = min(len(text), max_new_tokens)
            probed, hidden = probe(model, prompts[i], text, tree, rule, max_new_tokens + ahead)
            own = ranks_of(model, hidden, targets_of(text, ahead), candidates)
            made[i], ranks[i], accepted[i] = text, own[:kept], probed[:kept]
        progress(len(batch))
    numbers = np.arange(len(prompts)) if streams is None else np.array(streams)
    text_ids = TraceText(Ragged.of(prompts), Ragged.of(made), numbers.astype(np.int64))
    trace = RankTrace.from_sequences(ranks, list(held_out), candidates, rule, text_ids)
    own_fields = {f.name: getattr(trace, f.name) for f in fields(RankTrace)}
    return ProbeTrace(**own_fields, accepted=np.concatenate(accepted), probe=tree)


def take_trace(
    model: MedusaModel,
    prompts: Sequence[Sequence[int]],
    held_out: Sequence[bool] | npt.NDArray[np.bool_],
    max_new_tokens: int,
    candidates: int,
    rule: Rule,
    progress: Progress = lambda done: None,
) -> RankTrace:
    """The trace that planning under a rule goes by: ranks, and under typical acceptance probes."""
    if isinstance(rule, Typical) and rule.temperature > 0:
        return profile_typical(model, prompts, held_out, rule, max_new_tokens, candidates, progress=progress)
    return profile(model, prompts, held_out, max_new_tokens, candidates, progress=progress, rule=rule)


def probe_tree(order: CandidateTree, trace: RankTrace) -> CandidateTree:
    """The order's first PROBE paths, a chain, and the copied list as far as there are heads and ranks for it."""
    _, copied = fit_to_heads(COPIED, published_tree(COPIED), trace)
    known = [p for p in copied.paths if max(p) < trace.candidates]
    return CandidateTree.by_depth({*order.cut(PROBE).paths, *known, *CandidateTree.chain(trace.heads).paths})


@dataclass
class Branches:
    """The big tree, Q nodes from the prompt's first token on: tokens, parents (the first one's is -1), and depths."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    numbers: dict[tuple[int, int], int] = field(default_factory=dict)  # (parent, token) -> node

    def child(self, parent: int, token: int) -> int:
        """The child with this token, made if it is not there."""
        if (parent, token) not in self.numbers:
            self.numbers[parent, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(0 if parent < 0 else self.depths[parent] + 1)
        return self.numbers[parent, token]

    def mask(self, device: torch.device) -> TreeMask:
        """Who sees whom; parents come first."""
        ancestors = np.eye(len(self.tokens), dtype=np.bool_)
        for i, parent in enumerate(self.parents[1:], start=1):
            ancestors[i] |= ancestors[parent]
        depths = torch.tensor(self.depths, device=device)
        return TreeMask(depths[None], torch.as_tensor(ancestors, device=device)[None], depths.new_zeros(1, 0, 0))


@torch.inference_mode()
def probe(
    model: MedusaModel,
    prompt: Sequence[int],
    text: Sequence[int],
    tree: CandidateTree,
    rule: Typical,
    room: int | None = None,
) -> tuple[npt.NDArray[np.bool_], Tensor]:
    """What a decoding step would accept of the tree at each of the text's T tokens: with the text before it as it is, the
    model's greedy root, and the heads' proposal there.

    Args:
        room: tokens that the text was given behind the prompt; by default T. Where the context ends with them, the first
            ``room`` - H tokens are judged right, as nodes behind the rest stand at positions that do not exist.

    Returns:
        accepted (T, N) bool, closed under parents; hidden (T, d), the state that each token was decided from.
    """
    device, total = model.device, len(text)
    ceiling = len(prompt) + (room or total)
    branches = Branches()
    before = -1
    for token in [*prompt, *text[:-1]]:  # nothing is decided behind the last
        before = branches.child(before, token)
    first = before + 1 - total  # the node that the first token is decided behind
    hidden, logits = _run(model, branches, first, ceiling)
    log_p = log_probabilities(rule, logits)  # of the branches from ``first`` on
    width = min(tree.width, model.medusa_heads.rows)
    proposals = propose(model.medusa_heads, hidden, tree.heads, width).transpose(0, 1).cpu().numpy()
    place = np.zeros((total, tree.nodes + 1), dtype=np.int64)  # the branch that each accepted probe node is
    place[:, 0] = [branches.child(first + p, root) for p, root in enumerate(log_p.argmax(dim=-1).tolist())]
    accepted = np.zeros((total, tree.nodes + 1), dtype=np.bool_)
    accepted[:, 0] = True
    inner = np.isin(np.arange(tree.nodes + 1), tree.parents[1:])
    for depth in range(1, tree.depth + 1):
        done = first + len(log_p)
        if len(branches.tokens) > done:
            log_p = torch.cat([log_p, log_probabilities(rule, _run(model, branches, done, ceiling)[1])])
        bar = threshold(rule, log_p)
        nodes = np.flatnonzero((tree.depths == depth) & (tree.ranks < width))
        above = tree.parents[nodes]
        p, column = np.nonzero(accepted[:, above])
        drafted = proposals[p, depth - 1, tree.ranks[nodes][column]]
        behind = torch.as_tensor(place[p, above[column]] - first, device=device)
        stands = (log_p[behind, torch.as_tensor(drafted, device=device)] > bar[behind]).cpu().numpy()
        p, node, drafted = p[stands], nodes[column[stands]], drafted[stands]
        accepted[p, node] = True
        for i in np.flatnonzero(inner[node]):
            place[p[i], node[i]] = branches.child(int(place[p[i], tree.parents[node[i]]]), int(drafted[i]))
    return accepted[:, 1:], hidden


def _run(model: MedusaModel, branches: Branches, done: int, ceiling: int) -> tuple[Tensor, Tensor]:
    """All branches through the model in one pass: hidden (Q - done, d) and logits (Q - done, V) of those not ``done``.
    ``ceiling`` is the most tokens that the text may come to."""
    count, device = len(branches.tokens), model.device
    layers = model.base.config.get_text_config().num_hidden_layers
    cache = TreeCache(layers, count, 1, device)
    cache.slots.ceiling = ceiling
    context = AttentionContext(cache.slots, branches.mask(device))
    tokens = torch.tensor([branches.tokens], device=device)
    hidden, logits = model(tokens, cache, context, keep=torch.arange(done, count, device=device))
    return hidden[0], logits[0]
