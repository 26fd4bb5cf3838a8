"""CandidateTree: the paths of a speculation tree, a chain of looked-up tokens beside them, and the index and mask arrays made of both.

NumPy only, so that trees can be planned where torch is not installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .errors import InputError

Path = tuple[int, ...]
LARGEST_RANK = 2**31 - 1
LONGEST_CHAIN = 128  # looked-up tokens


def check_paths(paths: Iterable[Sequence[int]]) -> tuple[Path, ...]:
    """The paths as tuples, each parent before its children.

    Args:
        paths: sequences of ranks (0 is a head's first guess), in any order that puts parents first.

    Raises:
        InputError: a path that is not a list of whole numbers, is empty, has a negative or far too large rank, stands
            twice, or comes without or before its parent.
    """
    seen: set[Path] = set()
    result: list[Path] = []
    for i, raw in enumerate(paths):
        here = f"path {i}, {raw!r},"
        if not isinstance(raw, (list, tuple)) or any(
            isinstance(r, bool) or not isinstance(r, (int, np.integer)) for r in raw
        ):
            raise InputError(f"{here} is not a list of whole numbers; write it like [0, 1]")
        path = tuple(int(r) for r in raw)
        if not path:
            raise InputError(f"{here} is empty; the root is implied, leave it out")
        if min(path) < 0:
            raise InputError(f"{here} has a negative rank; ranks count from 0")
        if max(path) > LARGEST_RANK:
            raise InputError(f"{here} has a rank above {LARGEST_RANK}; no head has as many candidates")
        if path in seen:
            raise InputError(f"{here} stands twice; remove one of the two")
        if len(path) > 1 and path[:-1] not in seen:
            raise InputError(
                f"{here} comes without its parent {list(path[:-1])} before it; add the parent, or drop the path"
            )
        seen.add(path)
        result.append(path)
    return tuple(result)


@dataclass(frozen=True)
class CandidateTree:
    """A set of paths of the heads' guesses, closed under prefixes, and ``lookup`` nodes behind one another that carry what the
    text itself proposes (:mod:`medusa_runtime.lookup`); the root (the model's own next token) is implied.

    ``paths[i]`` is node i + 1, the chain's nodes come behind them; node 0 is the root. The arrays below have one row a node, root
    included: M = N + 1 rows for N nodes. An empty tree (N = 0) is plain autoregressive decoding.

    Raises:
        InputError: see :func:`check_paths`.
    """

    paths: tuple[Path, ...] = ()
    lookup: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", check_paths(self.paths))
        if not 0 <= self.lookup <= LONGEST_CHAIN:
            raise InputError(f"a chain of {self.lookup} looked-up tokens; it may have 0 to {LONGEST_CHAIN}")

    @classmethod
    def chain(cls, length: int) -> CandidateTree:
        """Every head's first guess and nothing else: [0], [0, 0], ..."""
        return cls(tuple((0,) * d for d in range(1, length + 1)))

    @classmethod
    def by_depth(cls, paths: Iterable[Sequence[int]]) -> CandidateTree:
        """A tree from paths in any order (published lists are not always parents first)."""
        return cls(tuple(sorted((tuple(p) for p in paths), key=lambda p: (len(p), p))))

    def cut(self, nodes: int, depth: int | None = None) -> CandidateTree:
        """The first ``nodes`` paths among those no deeper than ``depth``, in the order kept here, without a chain.

        In greedy order this is the best tree of that size and depth (design: greedy is exact).
        """
        kept = [p for p in self.paths if depth is None or len(p) <= depth]
        return CandidateTree(tuple(kept[:nodes]))

    @property
    def nodes(self) -> int:
        """N, paths and chain; the root is not counted."""
        return len(self.paths) + self.lookup

    @property
    def heads(self) -> int:
        """The longest path: how many heads the tree reads."""
        return max(map(len, self.paths), default=0)

    @property
    def depth(self) -> int:
        """D, how many tokens behind the root a step can accept; without a chain, the heads read."""
        return max(self.heads, self.lookup)

    @property
    def width(self) -> int:
        """Candidates needed of each head: the largest rank plus one."""
        return 1 + max((max(p) for p in self.paths), default=-1)

    @cached_property
    def index(self) -> dict[Path, int]:
        """Path -> node number; the root is ``()`` -> 0. The chain's nodes are no paths."""
        return {(): 0, **{p: i for i, p in enumerate(self.paths, start=1)}}

    @cached_property
    def parents(self) -> npt.NDArray[np.int64]:
        """(M,) the parent's node number; the root is its own."""
        chain = range(len(self.paths) + 1, self.nodes + 1)
        above = [0, *chain][: self.lookup]
        return np.array([0, *(self.index[p[:-1]] for p in self.paths), *above], dtype=np.int64)

    @cached_property
    def depths(self) -> npt.NDArray[np.int64]:
        """(M,) distance from the root: a node's position is the root's plus this."""
        return np.array([0, *map(len, self.paths), *range(1, self.lookup + 1)], dtype=np.int64)

    @cached_property
    def chain_nodes(self) -> npt.NDArray[np.bool_]:
        """(M,) whether a node is the chain's."""
        return np.arange(self.nodes + 1) > len(self.paths)

    @cached_property
    def ranks(self) -> npt.NDArray[np.int64]:
        """(M,) which of its head's candidates a node carries; 0 at the root and along the chain, where it means nothing."""
        return np.array([0, *(p[-1] for p in self.paths), *[0] * self.lookup], dtype=np.int64)

    @cached_property
    def retrieval(self) -> npt.NDArray[np.int64]:
        """(M, D + 1) row i: the nodes from the root to node i, by depth, then i itself repeated."""
        rows = np.zeros((self.nodes + 1, self.depth + 1), dtype=np.int64)
        for i in range(1, self.nodes + 1):
            rows[i] = rows[self.parents[i]]
            rows[i, self.depths[i] :] = i
        return rows

    @cached_property
    def ancestors(self) -> npt.NDArray[np.bool_]:
        """(M, M) the tree attention mask: row i may look at column j, i itself or one of its ancestors."""
        mask = np.zeros((self.nodes + 1, self.nodes + 1), dtype=np.bool_)
        np.put_along_axis(mask, self.retrieval, True, axis=1)
        return mask

    @cached_property
    def ancestor_bits(self) -> npt.NDArray[np.int32]:
        """(M, ceil(M / 32)) the same, packed: bit j % 32 of word j // 32 in row i."""
        rows = self.nodes + 1
        padded = np.zeros((rows, -(-rows // 32) * 32), dtype=np.bool_)
        padded[:, :rows] = self.ancestors
        return np.packbits(padded, axis=1, bitorder="little").view("<i4").astype(np.int32)
