"""Beside: a text of the user's own that is looked up in besides prompt and output, as token ids. NumPy only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from medusa_runtime.reading import Text, Whole

from .text import Ids


def digest_of(ids: Ids) -> str:
    """SHA-256 over token ids as little-endian int32."""
    return f"sha256:{hashlib.sha256(np.ascontiguousarray(ids, dtype='<i4').tobytes()).hexdigest()}"


@dataclass(frozen=True)
class Beside:
    """The text's token ids, (F,) int32, and the file that it was read from."""

    ids: Ids
    file: str

    @property
    def digest(self) -> str:
        """Of the token ids."""
        return digest_of(self.ids)

    @property
    def tokens(self) -> tuple[int, ...]:
        """As :class:`medusa_runtime.book.TreeBook` takes them."""
        return tuple(self.ids.tolist())

    def to_json(self) -> dict[str, Any]:
        """As provenance has it, which :class:`Named` reads."""
        return {"file": self.file, "digest": self.digest, "tokens": len(self.ids)}


@dataclass(frozen=True)
class Named:
    """What provenance says of such a text."""

    file: Text
    digest: Text
    tokens: Whole
