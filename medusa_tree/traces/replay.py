"""Replay: walk a rank trace the way decoding would, for the acceptance length that the runtime will show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medusa_runtime.tree import CandidateTree

from .bootstrap import bootstrap, ratio_interval
from .trace import RankTrace

LANES = 1 << 25  # (position, tree) pairs held at once


@dataclass(frozen=True)
class Replay:
    """Per sequence, (S,) each: tokens emitted and steps taken. ``acceptance_length`` is tokens a step over all."""

    tokens: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]

    @property
    def acceptance_length(self) -> float:
        return float(self.tokens.sum() / self.steps.sum())

    def interval(self) -> tuple[float, float]:
        """95% interval of the acceptance length."""
        return ratio_interval(self.tokens, self.steps)

    def less(self, other: Replay) -> tuple[float, float, float]:
        """This acceptance length less another's on the same sequences, and the 95% interval of the difference."""
        low, high = bootstrap(lambda t, a, b: t / a - t / b, self.tokens, self.steps, other.steps)
        return self.acceptance_length - other.acceptance_length, float(low), float(high)


def visited(accepted: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The positions at which a step begins, in order: p += 1 + a(p), from each sequence's start to its end.

    Args:
        accepted: (P,) tokens accepted at each position.
        starts: (S + 1,) sequence boundaries.

    A sequence of n positions emits n tokens: its last step is cut short at the end, as it is when decoding stops
    at a length. So each walk ends where the next sequence starts, and all of them are one walk.
    """
    step = 1 + accepted
    for left in range(1, int(accepted.max(initial=0)) + 1):
        at = starts[1:] - left
        at = at[at >= starts[:-1]]
        step[at] = np.minimum(step[at], left)
    jumps, end = step.tobytes(), len(step)
    begins = bytearray(end)  # a walk is sequential: over bytes, CPython takes 0.1 us a step
    at_position = 0
    while at_position < end:
        begins[at_position] = 1
        at_position += jumps[at_position]
    return np.flatnonzero(np.frombuffer(begins, dtype=np.uint8))


def visited_by(tree: CandidateTree, trace: RankTrace) -> npt.NDArray[np.int64]:
    """The positions of the trace at which decoding with the tree takes a step."""
    return visited(trace.table.accepted(tree)[trace.table.index], trace.starts)


def replay(tree: CandidateTree, trace: RankTrace) -> Replay:
    """Decode every sequence of the trace with the tree, on paper."""
    steps = np.diff(np.searchsorted(visited_by(tree, trace), trace.starts))
    return Replay(trace.lengths, steps)


def replay_lengths(accepted: npt.NDArray[np.uint8], trace: RankTrace) -> npt.NDArray[np.float64]:
    """Acceptance length of many trees on one trace, (T,): every (sequence, tree) pair walks in its own lane.

    Args:
        accepted: (U, T) tokens that each tree accepts of each row of the trace's table.
    """
    chunk = max(1, LANES // trace.positions)
    parts = [_walk(accepted[:, i : i + chunk], trace) for i in range(0, accepted.shape[1], chunk)]
    return trace.positions / np.concatenate(parts)


def replay_prefixes(tree: CandidateTree, trace: RankTrace, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Replay acceptance length of the first n nodes of the tree, for each n in ``sizes``; (len(sizes),)."""
    reach = trace.table.reach(tree)
    accepted = np.zeros((len(reach), len(sizes)), dtype=np.uint8)
    for nodes in reach.T:
        accepted += nodes[:, None] <= sizes
    return replay_lengths(accepted, trace)


def _walk(accepted: npt.NDArray[np.uint8], trace: RankTrace) -> npt.NDArray[np.int64]:
    """(T,) steps taken by each tree over all sequences."""
    trees = accepted.shape[1]
    jump = (1 + accepted)[trace.table.index].reshape(-1)
    lane = np.tile(np.arange(trees), len(trace.lengths))
    at = np.repeat(trace.starts[:-1], trees) * trees + lane  # in the flat (position, tree) array
    end = np.repeat(trace.starts[1:], trees) * trees
    steps = np.zeros(trees, dtype=np.int64)
    while len(at):
        steps += np.bincount(lane, minlength=trees)
        at = at + trees * jump[at].astype(np.int64)
        running = at < end
        if not running.all():
            at, end, lane = at[running], end[running], lane[running]
    return steps
