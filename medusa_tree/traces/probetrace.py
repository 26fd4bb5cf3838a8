"""ProbeTrace: a rank trace that also says, at each position, which nodes of a probe tree a step would accept. NumPy only.

Under greedy acceptance and sampling the ranks of the text say what a tree accepts; under typical acceptance several siblings
may pass, and the text that is emitted is one of several that might have been.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree

from .table import RankTable
from .trace import RankTrace


@dataclass(frozen=True)
class ProbeTable(RankTable):
    """Distinct rows of ranks and accepted nodes together; ranks sorted as in a RankTable, where a row may come again.

    accepted_nodes: (U, N) bool, by the probe tree's node.
    """

    accepted_nodes: npt.NDArray[np.bool_]
    probe: CandidateTree

    def reach(self, tree: CandidateTree) -> npt.NDArray[np.int32]:
        """(U, D): the first of the tree's nodes accepted at each depth, N + 1 where none is: its first n nodes accept
        ``(reach <= n).sum(axis=1)`` deep, as in :meth:`RankTable.reach`. Nodes not probed count as rejected."""
        none = len(tree.paths) + 1
        nodes = np.full((len(self.rows), tree.heads), none, dtype=np.int32)
        for number, path in reversed(list(enumerate(tree.paths, start=1))):
            if path in self.probe.index:
                nodes[self.accepted_nodes[:, self.probe.index[path] - 1], len(path) - 1] = number
        return nodes


@dataclass(frozen=True, kw_only=True)
class ProbeTrace(RankTrace):
    """A rank trace of text made by typical acceptance, probed.

    accepted: (P, N) bool; whether a step that begins at p, with the text before it as it is, would accept each node of
        ``probe``. Closed under parents.

    Raises:
        InputError: shapes that do not fit together, or an accepted node under a rejected parent.
    """

    accepted: npt.NDArray[np.bool_]
    probe: CandidateTree

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accepted.dtype != np.bool_ or self.accepted.shape != (len(self.ranks), self.probe.nodes):
            raise InputError(
                f"probe trace: accepted must be true or false of shape {(len(self.ranks), self.probe.nodes)} (positions, "
                f"probe nodes), not {self.accepted.dtype} {self.accepted.shape}"
            )
        parents = self.probe.parents[1:] - 1
        inner = np.flatnonzero(parents >= 0)
        orphans = self.accepted[:, inner] & ~self.accepted[:, parents[inner]]
        if orphans.any():
            p, i = np.argwhere(orphans)[0]
            raise InputError(
                f"probe trace: position {p} accepts {list(self.probe.paths[inner[i]])} under a rejected parent"
            )

    @classmethod
    def merge(cls, traces: Sequence[RankTrace]) -> RankTrace:
        """One trace of several that were probed with the same tree.

        Raises:
            InputError: other probe trees, or what :meth:`RankTrace.merge` raises.
        """
        probed = [t for t in traces if isinstance(t, ProbeTrace)]
        if len(probed) < len(traces) or len({t.probe.paths for t in probed}) > 1:
            raise InputError(
                "traces of typical acceptance can be merged where they were probed with the same tree; these were not"
            )
        ranks = RankTrace.merge(traces)
        own = {f.name: getattr(ranks, f.name) for f in fields(RankTrace)}
        return cls(**own, accepted=np.concatenate([t.accepted for t in probed]), probe=probed[0].probe)

    @cached_property
    def table(self) -> ProbeTable:
        """The distinct rows, made once."""
        ranks = RankTable.of(self.ranks, self.candidates)
        packed = np.concatenate(
            [ranks.index[:, None].astype(">i4").view(np.uint8), np.packbits(self.accepted, axis=1)], axis=1
        )
        keys = np.ascontiguousarray(packed).view(f"V{packed.shape[1]}")[:, 0]
        _, first, index = np.unique(keys, return_index=True, return_inverse=True)
        return ProbeTable(ranks.rows[ranks.index[first]], index.astype(np.int32), self.accepted[first], self.probe)

    def per_position(self) -> dict[str, npt.NDArray[Any]]:
        return {**super().per_position(), "accepted": self.accepted}
