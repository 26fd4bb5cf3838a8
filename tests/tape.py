"""A stand-in for CUDA graphs where there is no GPU: records a step's operations and runs them again on the same memory.

As in a graph, a replay runs no Python of ours: what was a Python number at the capture stays that number, and every tensor
stays where it was. Reading a value on the host is refused, as a stream under capture does.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "_unique2", "unique_dim", "masked_select", "equal")


class NoHostReads(TorchDispatchMode):
    """Refuses operations whose result the host must wait for: a value, or a shape that depends on one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in READS:
            raise RuntimeError(f"called a synchronizing CUDA operation: {func}")
        return func(*args, **(kwargs or {}))


class Tape(NoHostReads):
    def __init__(self):
        super().__init__()
        self.record = []

    def pool(self):
        return id(self)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.record.append((func, args, kwargs or {}, result))
        return result

    @torch.inference_mode()
    def replay(self):
        for func, args, kwargs, result in self.record:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                    old.copy_(new)


def stand_in(monkeypatch) -> list[Tape]:
    """Put tapes in the place of CUDA graphs; returns those that were made, in order."""
    made: list[Tape] = []

    def new_graph():
        made.append(Tape())
        return made[-1]

    @contextmanager
    def capture(graph, pool=None, stream=None, capture_error_mode="global"):
        with graph:
            yield

    watching: list[NoHostReads] = []

    def set_sync_debug_mode(mode):
        if mode == "error":
            watching.append(NoHostReads())
            watching[-1].__enter__()
        elif watching:
            watching.pop().__exit__(None, None, None)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "device", lambda d: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_sync_debug_mode)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda s: nullcontext())
    return made
