"""CUDA graphs of the step, and the state they are captured on, kept from one request to the next."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .acceptance.rules import Rule
from .book import TreeBook
from .buffers import BookBuffers
from .errors import out_of_memory
from .step import State, device_step, expected, step
from .tree_model import TreeModel

WARM_UP = 2  # steps before the capture: kernels are compiled and chosen, workspaces allocated
ROUND = 256  # cache slots are rounded up to so many, that requests of like length share a workspace
KEPT = 8  # graphs of a workspace; a seed is part of a sampling rule, so vary the streams and not the seed


class WaitsForDevice(RuntimeError):
    """A model's pass reads a value on the host, as no graph can: some rotary embeddings and expert layers do."""


class StepGraph:
    """One step captured as a CUDA graph for a batch, a book of trees and a rule. Calling it replays the step.

    All that the graph reads and writes stays where it was at the capture: the state, the cache, the trees' arrays and the
    result, which the next replay overwrites. Lengths are read on the device, so one graph serves all of them.

    Args:
        beside: another graph of the same state. Only one of them runs at a time, so that they share the memory of what lies between.

    Raises:
        WaitsForDevice: the step cannot be captured.
        InputError: the tree may not fit into the cache, or memory runs out.
    """

    def __init__(
        self, model: TreeModel, state: State, book: BookBuffers, rule: Rule, beside: StepGraph | None = None
    ) -> None:
        state.cache.slots.check_room(book.nodes + 1)
        self.state, self.book = state, book
        self.stops = state.stops  # the graph reads this tensor: it must live as long
        batch, device = len(state.root), state.root.device
        what = f"a step of {batch} sequence(s) x {book.nodes + 1} tokens"
        before = [t.clone() for t in state.tensors()]
        with torch.cuda.device(device), out_of_memory(what, device), torch.inference_mode():
            self.stream: torch.cuda.Stream = torch.cuda.Stream(device) if beside is None else beside.stream
            self.stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self.stream):
                    for i in range(WARM_UP):
                        with _no_waiting() if i else nullcontext():
                            device_step(model, state, book, rule)
                        self._restore(before)
            finally:
                torch.cuda.current_stream().wait_stream(self.stream)
                self._restore(before)
            self.graph = torch.cuda.CUDAGraph()
            pool = None if beside is None else beside.graph.pool()
            # cuBLAS keeps a workspace a stream, wherever it was first needed. The graph must have its own, in its own memory, and
            # leave none behind: another graph's end, or an eager step, would else free or write what this one still uses.
            torch._C._cuda_clearCublasWorkspaces()
            with torch.cuda.graph(self.graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                self.result = device_step(model, state, book, rule)
            torch._C._cuda_clearCublasWorkspaces()
            self._restore(before)

    def _restore(self, before: list[Tensor]) -> None:
        for tensor, value in zip(self.state.tensors(), before, strict=True):
            tensor.copy_(value)

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        with expected(self.state, self.book):
            self.graph.replay()
            return self.result


@contextmanager
def _no_waiting() -> Iterator[None]:
    """WaitsForDevice where something inside waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        raise WaitsForDevice(str(error)) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


Step = Callable[[], tuple[Tensor, Tensor, Tensor]]


def stepper(model: TreeModel, state: State, book: BookBuffers, rule: Rule, beside: Iterable[Step] = ()) -> Step:
    """:func:`step` for this batch, book and rule: captured where the model's passes can be, else run as it stands.

    Args:
        beside: steps made before of the same state.
    """
    if model.graphs:
        other = next((s for s in beside if isinstance(s, StepGraph)), None)
        try:
            return StepGraph(model, state, book, rule, other)
        except WaitsForDevice:
            warnings.warn(
                f"{model.name}: a pass reads a value on the host, so that steps are not captured in CUDA graphs; they run one kernel "
                "after the other, which takes longer",
                stacklevel=2,
            )
            model.graphs = False
    return partial(step, model, state, book, rule)


def whole_slots(model: TreeModel, capacity: int) -> int:
    """The slots to allocate for a request that needs so many."""
    return -(-capacity // ROUND) * ROUND if model.fixed else capacity


@dataclass
class Workspace:
    """A batch's state with its cache, and the graphs captured on it, by the book, rule and end tokens they are for.

    The model keeps the last one between requests, so that the next of as many sequences and like length allocates and
    captures nothing. While a request holds it, another one gets its own.
    """

    state: State | None = None
    graphs: dict[tuple, Step] = field(default_factory=dict)

    @classmethod
    def take(cls, model: TreeModel, batch: int, capacity: int) -> Workspace:
        """The model's, if it has as many sequences and neither too few slots nor four times too many; else an empty one."""
        kept, model.workspace = model.workspace, None
        if not isinstance(kept, Workspace) or kept.state is None or len(kept.state.root) != batch:
            return cls()
        return kept if capacity <= kept.state.cache.slots.capacity <= 4 * max(capacity, ROUND) else cls()

    def stepper(self, model: TreeModel, book: TreeBook, rule: Rule, stops: Sequence[int]) -> Step:
        """The step on this state; captured once for each book, rule and set of end tokens, the last few of them kept."""
        if self.state is None:
            raise ValueError("a workspace has no state before its first prefill")
        key = (book, rule, tuple(stops))
        if key not in self.graphs:
            while len(self.graphs) >= KEPT:
                self.graphs.pop(next(iter(self.graphs)))
            buffers = BookBuffers.of(book, model.device)
            self.graphs[key] = stepper(model, self.state, buffers, rule, self.graphs.values())
        return self.graphs[key]
