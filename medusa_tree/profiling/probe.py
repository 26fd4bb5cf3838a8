"""Probe: typical acceptance's trace, which says at every position of a text which nodes of a large tree a step would accept.

The text and whatever hangs from it form one big tree: its trunk is prompt and text, and where several probe nodes or the text
agree they are one node. It is verified level by level, so that only accepted nodes with children go through the model: a
few a position instead of the whole probe tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
from ..traces.trace import RankTrace
from .profile import profile, ranks_of

PROBE = 256  # nodes of the probe tree, before the lists that people use
TEXT = 32  # nodes of the tree that makes the text to fit on
BATCH = 16  # prompts decoded at once

Probed = tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]  # a text's ranks (T, H), and what would be accepted (T, N)


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

    Greedy text of the fitting prompts is ranked first: its most frequent paths are the probe tree, and the first TEXT of
    them the tree that the text is made with. Chains and the copied list are probed, too, to be compared with.

    Args:
        prompts, held_out, max_new_tokens, candidates: as for :func:`medusa_tree.profiling.profile.profile`.

    Raises:
        InputError: prompt and new tokens exceed the model's context, or logits that are NaN or infinite.
    """
    held = np.asarray(held_out, dtype=np.bool_)
    fitting = [p for p, h in zip(prompts, held, strict=True) if not h]
    greedy = profile(model, fitting, [False] * len(fitting), max_new_tokens, candidates)
    order = full_order(estimate(greedy), PROBE, greedy.heads)
    tree = probe_tree(order, greedy)
    probed = _probe_all(model, prompts, rule, order.cut(TEXT), tree, max_new_tokens, candidates, progress)
    return _joined(probed, held, candidates, rule, tree)


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
    made = _probe_all(
        model, [prompts[i] for i in held], rule, text_tree, trace.probe, max_new_tokens, trace.candidates, progress
    )
    probed = list(zip(trace.sequences(), np.split(trace.accepted, trace.starts[1:-1]), strict=True))
    for i, new in zip(held, made, strict=True):
        probed[i] = new
    return _joined(probed, trace.held_out, trace.candidates, rule, trace.probe)


@torch.inference_mode()
def _probe_all(
    model: MedusaModel, prompts: Sequence[Sequence[int]], rule: Typical, text_tree: CandidateTree, tree: CandidateTree,
    max_new_tokens: int, candidates: int, progress: Progress,
) -> list[Probed]:  # fmt: skip
    """Each prompt's text made with ``text_tree``, ranked, and probed with ``tree``."""
    ahead = model.num_heads  # so that the last position's heads can be judged, too
    probed: dict[int, Probed] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(by_length), BATCH):
        batch = by_length[first : first + BATCH]
        texts = generate(model, [prompts[i] for i in batch], text_tree, max_new_tokens + ahead, rule=rule).tokens
        for i, text in zip(batch, texts, strict=True):
            kept = min(len(text), max_new_tokens)
            accepted, hidden = probe(model, prompts[i], text, tree, rule, max_new_tokens + ahead)
            tokens = torch.tensor(text, device=model.device)
            ranks = ranks_of(model, hidden[:, None], tokens[:, None], [len(text)], candidates)[0]
            probed[i] = ranks[:kept], accepted[:kept]
        progress(len(batch))
    return [probed[i] for i in range(len(prompts))]


def _joined(
    probed: Sequence[Probed], held_out: npt.NDArray[np.bool_], candidates: int, rule: Typical, tree: CandidateTree
) -> ProbeTrace:
    ranks = RankTrace.from_sequences([r for r, _ in probed], held_out.tolist(), candidates)
    accepted = np.concatenate([a for _, a in probed])
    return ProbeTrace(ranks.ranks, ranks.starts, held_out, candidates, rule, accepted=accepted, probe=tree)


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
        return TreeMask(depths, torch.as_tensor(ancestors, device=device), depths.new_zeros(0))


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
    proposals = propose(model.medusa_heads, hidden, tree.depth, width).transpose(0, 1).cpu().numpy()
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
