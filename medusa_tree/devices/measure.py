"""Measure: the real runtime timed over nodes, depth, batch and context -> LatencyGrid."""

from __future__ import annotations

import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from medusa_runtime.acceptance.rules import GREEDY, Rule
from medusa_runtime.book import Lookup, TreeBook
from medusa_runtime.buffers import BookBuffers
from medusa_runtime.decode import Readback, prefill, steps_ahead, stop_tokens
from medusa_runtime.errors import InputError
from medusa_runtime.graph import Step, stepper
from medusa_runtime.model import MedusaModel
from medusa_runtime.processes import agreed
from medusa_runtime.step import State
from medusa_runtime.tree import CandidateTree

from ..progress import Progress
from .latency import LatencyCurve, LatencyGrid, LatencyPoint, Load
from .rounds import points_of
from .sizes import grid_trees, longest_chain

ROUNDS = 16
WARM = 3  # steps before the first round, of which the first is not counted
NO_TOKEN, ENDLESS = -1, 1 << 40
BURST = 5  # steps of one tree in a row, of which the first, in caches that another tree left behind, is not counted
SECONDS_A_LOAD = 20.0  # where a round is slow, fewer rounds are taken, but at least MIN_ROUNDS
MIN_ROUNDS = 3
# So many rounds show which sizes may be the fastest; from there on the others are timed in every SELDOM-th round.
CLEAR_AFTER = 4
SELDOM = 4

# Latency at a load -> the least and most nodes of what may be the fastest.
Contenders = Callable[[LatencyCurve], tuple[int, int]]


def most_emitted(model: MedusaModel, max_nodes: int, lookup: bool) -> int:
    """Tokens that a step can emit, of those timed."""
    return 1 + max(model.num_heads, longest_chain(max_nodes) if lookup else 0)


def room_for(model: MedusaModel, max_nodes: int, lookup: bool = True) -> int:
    """Cache slots that timing needs behind the context; more with ``lookup``, whose chains are longer than heads are many."""
    return BURST * most_emitted(model, max_nodes, lookup) + max_nodes + 1


def timed_contexts(
    model: MedusaModel, asked: Sequence[int], usual: int, max_nodes: int, lookup: bool = True
) -> tuple[int, ...]:
    """The contexts to time at, each once, all of which leave room for timing: those asked for, or the ``usual`` one, cut to the room.

    Raises:
        InputError: one asked for does not.
    """
    room = max(1, (model.max_context or 1 << 30) - room_for(model, max_nodes, lookup))
    if asked and (longest := max(asked)) > room:
        raise InputError(
            f"--context {longest}: with a tree of {max_nodes} nodes {model.name} has room for {room}; give less"
        )
    return tuple(dict.fromkeys(asked)) or (min(usual, room),)


def device_name(device: torch.device) -> str:
    """What people call the device: the GPU's name, or the CPU's and its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.get_num_threads()} threads)"


def place_name(model: MedusaModel) -> str:
    """What people call the devices that a model's weights stand on, equal ones by their number: "2 x NVIDIA H100 80GB HBM3"."""
    if model.split_over_processes:
        return f"{torch.distributed.get_world_size()} x {device_name(model.device)}"
    devices = dict.fromkeys(w.device for w in model.base.parameters())
    names = Counter("offloaded" if d.type == "meta" else device_name(d) for d in devices)
    return " + ".join(f"{n} x {name}" if n > 1 else name for name, n in names.items())


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that the clock sees finished work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def time_steps(run: Step, state: State, lengths: Sequence[int], most: int, steps: int) -> npt.NDArray[np.float64]:
    """(steps,) seconds of steps in a row, as the decoding loop takes them: from one step's tokens read on the host to the next's,
    on a GPU with one step more launched already. The state is then put back to so many tokens a sequence, so that every
    repeat does the same work.

    Args:
        most: tokens that a step can emit.
    """
    before, slots, device = [t.clone() for t in state.tensors()], state.cache.slots, state.root.device
    ahead, flying, reached = steps_ahead(device), deque[Readback](), list(lengths)
    read = []
    synchronize(device)
    begin = time.perf_counter()
    for i in range(steps + ahead):
        if i < steps:
            flying.append(Readback(*run()))
        if i >= ahead:
            _, emitted, _ = flying.popleft().wait()
            read.append(time.perf_counter())
            reached = [a + b for a, b in zip(reached, emitted, strict=True)]
            slots.expect(0, len(flying) * most, reached)
    for tensor, value in zip(state.tensors(), before, strict=True):
        tensor.copy_(value)
    slots.set_lengths(lengths)
    return np.diff(read, prepend=begin)


def measure(
    model: MedusaModel,
    max_nodes: int,
    candidates: int = 10,
    batches: Sequence[int] = (1,),
    contexts: Sequence[int] = (256,),
    rounds: int = ROUNDS,
    seed: int = 0,
    progress: Progress = lambda done: None,
    rule: Rule = GREEDY,
    contenders: Contenders | None = None,
    leave_out: Callable[[Load, InputError], object] | None = None,
    lookup: Lookup | None = None,
    beside: tuple[int, ...] = (),
) -> LatencyGrid:
    """Step latency over the grid. Every round times its trees in a new random order, so that a machine that slows down
    for a while slows all of them; each in a short burst, as decoding takes the same step again and again.

    Tokens a second hardly change over a wide range of sizes, and a plan takes the best of many: noise alone would
    choose. So the sizes that may be the fastest, and plain decoding, are in every round, the others in some.

    No step emits more than 1 + H tokens, so a tree whose step takes over 1 + H times plain decoding's cannot win,
    nor can a larger one: a load's sizes end there. With a lookup the longest chain stands for H, where it is longer.

    Processes that a model is split over all go by the first one's clock, and have the same grid in the end.

    Args:
        max_nodes: largest tree.
        candidates: K, the most ranks a head that a tree will use.
        contexts: tokens in the cache when a step begins.
        rounds: of BURST steps a tree; the median and quartiles are kept. Fewer where a load would take over SECONDS_A_LOAD.
        rule: how tokens are accepted, which takes its time, too.
        contenders: the smallest and the largest size that may be the fastest, by what is known of the latency at a load
            (:func:`medusa_tree.planning.choose.contenders`); by default all may.
        leave_out: told of a load for which memory does not suffice, if any other does; by default, and where the model is split
            over processes, that is an error.
        progress: called with how many of the ``rounds`` rounds a load are done since it was last called.
        lookup: with it chains are timed, too, and plain decoding that looks up, for what that adds to a step.
        beside: tokens of the user's own text that is looked up in besides.
    """
    looks = lookup is not None
    width = candidates if model.heads is None else min(candidates, model.heads.rows)
    trees = [(tree, tree.lookup > 0) for tree in grid_trees(max_nodes, model.num_heads, width, looks)]
    job = _Job(
        model, [*trees, *[(CandidateTree(), True)] * looks], room_for(model, max_nodes, looks), most_emitted(model, max_nodes, looks), rounds, rule,
        np.random.default_rng(seed), contenders, progress, lookup, beside,
    )  # fmt: skip
    points: list[LatencyPoint] = []
    for load in [(b, c) for b in batches for c in contexts]:
        try:
            timed, seconds = _time_load(job, load)
        except InputError as error:  # one of several processes that run out of memory has left the others inside a step
            if leave_out is None or not points or model.split_over_processes:
                raise
            leave_out(load, error)
            progress(rounds)
        else:
            points += points_of(timed, load, seconds)
    return LatencyGrid(tuple(points), place_name(model), model.dtype_name, gpu=model.device.type == "cuda")


@dataclass(frozen=True)
class _Job:
    """What is timed at every load, and how; ``room`` is the cache slots that it needs behind the context, ``most`` the tokens that a
    step can emit. trees: each with whether its step looks up, as a chain's does."""

    model: MedusaModel
    trees: list[tuple[CandidateTree, bool]]
    room: int
    most: int
    rounds: int
    rule: Rule
    rng: np.random.Generator
    contenders: Contenders | None
    progress: Progress
    lookup: Lookup | None
    beside: tuple[int, ...]


def _time_load(job: _Job, load: Load) -> tuple[list[tuple[CandidateTree, bool]], npt.NDArray[np.float64]]:
    """The trees worth timing at a load, and (rounds, BURST, trees) seconds of their steps, not a number where one was not in
    a round. The cache is free when this is done, before the next load's is made."""
    model, (batch, context) = job.model, load
    prompts = job.rng.integers(0, model.vocab_size, (batch, context)).tolist()
    if (
        batch > 1 and context > 1
    ):  # as in decoding, sequences are of different lengths, whose rows are not written as slices
        prompts[0].pop()
    lengths = list(map(len, prompts))
    # As decoding does, a step looks for the end of each sequence, and never finds it.
    stops = [NO_TOKEN] * len(stop_tokens(model, None))
    state = prefill(model, prompts, context + job.room, rule=job.rule, max_new_tokens=ENDLESS, stops=stops)
    runs = _warm_up(job, state, lengths)
    timed, steps = [job.trees[i] for i in runs], list(runs.values())
    seconds = np.full((job.rounds, BURST, len(steps)), np.nan)
    always = set(range(len(steps)))
    begin = time.perf_counter()
    for r in range(job.rounds):
        if job.contenders is not None and r == CLEAR_AFTER:
            so_far = LatencyGrid(tuple(points_of(timed, load, seconds[:r])), "", "")
            smallest, largest = job.contenders(so_far.curve(*load))
            always = {i for i, (t, _) in enumerate(timed) if t.nodes == 0 or smallest <= t.nodes <= largest}
        for i in job.rng.permutation(len(steps)):
            if i in always or r % SELDOM == 0:
                seconds[r, :, i] = time_steps(steps[i], state, lengths, job.most, BURST)
        seconds[r], elapsed = agreed(model, (seconds[r], time.perf_counter() - begin))
        job.progress(1)
        if r + 1 >= MIN_ROUNDS and elapsed > SECONDS_A_LOAD:
            job.progress(job.rounds - r - 1)
            return timed, seconds[: r + 1]
    return timed, seconds


def _warm_up(job: _Job, state: State, lengths: Sequence[int]) -> dict[int, Step]:
    """Kernels chosen, memory touched, graphs captured: the steps worth timing, by the number of their tree, from small to
    large until one takes over ``job.most`` times plain decoding."""
    runs: dict[int, Step] = {}
    plain, said = np.inf, job.beside
    for i in sorted(range(len(job.trees)), key=lambda i: (job.trees[i][0].nodes, -job.trees[i][0].depth)):
        tree, looks = job.trees[i]
        runs[i] = _stepper(job, state, tree, said if looks else None, runs.values())
        warm = agreed(job.model, time_steps(runs[i], state, lengths, job.most, WARM)[1:].min())
        if tree.nodes == 0 and not looks:
            plain = warm
            if job.lookup is not None:
                said = (*job.beside, *_roots(runs[i], state, lengths))
        elif warm > 1.5 * job.most * plain:  # half as much again: warm steps are noisy figures
            break
    return runs


def _stepper(
    job: _Job, state: State, tree: CandidateTree, said: tuple[int, ...] | None, others: Iterable[Step]
) -> Step:
    """A step with a tree, which looks up where a text ``said`` beside is given: a chain is used for all match lengths but 0, which no root
    has that is in that text, and no tree for all."""
    if said is None or job.lookup is None:
        book = TreeBook.of(tree)
    elif tree.nodes:
        book = TreeBook((CandidateTree(), tree), (0, 1), job.lookup, said)
    else:
        book = TreeBook((tree,), (0,), job.lookup, job.beside)
    return stepper(job.model, state, BookBuffers.of(book, job.model.device), job.rule, others)


def _roots(plain: Step, state: State, lengths: Sequence[int]) -> tuple[int, ...]:
    """The next roots of the sequences, last first: in a text beside each of them has a match, with drafts behind it that are as good
    as never right, so that a burst stays where it begins. Of a batch the first sequence's are left out: as in decoding not all
    sequences use one tree."""
    roots, first = [state.root.clone()], int(len(lengths) > 1)

    def noted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        made = plain()
        roots.append(state.root.clone())
        return made

    time_steps(noted, state, lengths, 1, BURST)
    return tuple(torch.cat([r[first:] for r in roots[::-1]]).tolist())
