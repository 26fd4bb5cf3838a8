"""medusa_runtime: decode any Hugging Face causal LM with Medusa heads and a candidate tree.

Names are handed on lazily, so that ``medusa_runtime.tree`` can be used where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .acceptance.rules import Greedy, Sampling, Typical
    from .book import Lookup, TreeBook
    from .decode import Generation, generate, stream
    from .errors import InputError
    from .heads.heads import MedusaHeads
    from .model import MedusaModel
    from .tree import CandidateTree

__all__ = [
    "CandidateTree", "Generation", "Greedy", "InputError", "Lookup", "MedusaHeads", "MedusaModel", "Sampling", "TreeBook", "Typical",
    "generate", "stream",
]  # fmt: skip

_HOME = {
    "CandidateTree": "tree", "Lookup": "book", "TreeBook": "book", "Generation": "decode", "InputError": "errors", "MedusaHeads": "heads.heads",
    "MedusaModel": "model", "generate": "decode", "stream": "decode", "Greedy": "acceptance.rules", "Sampling": "acceptance.rules", "Typical": "acceptance.rules",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
