"""CUDA graphs of the step, and the state they are captured on, kept from one request to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import out_of_memory
from .rules import Rule
from .step import State, TreeBuffers, device_step, expected, step
from .tree import CandidateTree

if TYPE_CHECKING:
    from .model import MedusaModel

WARM_UP = 2  # steps before the capture: kernels are compiled and chosen, workspaces allocated
ROUND = 256  # cache slots are rounded up to so many, that requests of like length share a workspace
KEPT = 8  # graphs of a workspace; a seed is part of a sampling rule, so vary the streams and not the seed


class StepGraph:
    """One step captured as a CUDA graph for a batch, a tree and a rule. Calling it replays the step.

    All that the graph reads and writes stays where it was at the capture: the state, the cache, the tree's arrays and the
    result, which the next replay overwrites. Lengths are read on the device, so one graph serves all of them.
    """

    def __init__(self, model: MedusaModel, state: State, tree: TreeBuffers, rule: Rule) -> None:
        self.state, self.tree = state, tree
        self.stops = state.stops  # the graph reads this tensor: it must live as long
        batch, device = len(state.root), state.root.device
        before = [t.clone() for t in state.tensors()]
        with out_of_memory(f"a step of {batch} sequence(s) x {tree.nodes + 1} tokens", device), torch.inference_mode():
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._restore(before)
                    device_step(model, state, tree, rule)
                self._restore(before)
            torch.cuda.current_stream(device).wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=model.graph_pool):
                self.result = device_step(model, state, tree, rule)
            self._restore(before)

    def _restore(self, before: list[Tensor]) -> None:
        for tensor, value in zip(self.state.tensors(), before, strict=True):
            tensor.copy_(value)

    def __call__(self) -> tuple[Tensor, Tensor]:
        with expected(self.state, self.tree):
            self.graph.replay()
            return self.result


Step = Callable[[], tuple[Tensor, Tensor]]


def stepper(model: MedusaModel, state: State, tree: TreeBuffers, rule: Rule) -> Step:
    """:func:`step` for this batch, tree and rule: captured where the model's passes can be, else run as it stands."""
    return StepGraph(model, state, tree, rule) if model.graphs else partial(step, model, state, tree, rule)


def whole_slots(model: MedusaModel, capacity: int) -> int:
    """The slots to allocate for a request that needs so many."""
    return -(-capacity // ROUND) * ROUND if model.fixed else capacity


@dataclass
class Workspace:
    """A batch's state with its cache, and the graphs captured on it, by the tree, rule and end tokens they are for.

    The model keeps the last one between requests, so that the next of as many sequences and like length allocates and
    captures nothing. While a request holds it, another one gets its own.
    """

    state: State | None = None
    graphs: dict[tuple, Step] = field(default_factory=dict)

    @classmethod
    def take(cls, model: MedusaModel, batch: int, capacity: int) -> Workspace:
        """The model's, if it has as many sequences and neither too few slots nor four times too many; else an empty one."""
        kept, model.workspace = model.workspace, None
        if kept is None or kept.state is None or len(kept.state.root) != batch:
            return cls()
        return kept if capacity <= kept.state.cache.slots.capacity <= 4 * max(capacity, ROUND) else cls()

    def stepper(self, model: MedusaModel, tree: CandidateTree, rule: Rule, stops: Sequence[int]) -> Step:
        """The step on this state; captured once for each tree, rule and set of end tokens, the last few of them kept."""
        if self.state is None:
            raise ValueError("a workspace has no state before its first prefill")
        key = (tree.paths, rule, tuple(stops))
        if key not in self.graphs:
            while len(self.graphs) >= KEPT:
                self.graphs.pop(next(iter(self.graphs)))
            self.graphs[key] = stepper(model, self.state, TreeBuffers.of(tree, model.device), rule)
        return self.graphs[key]
