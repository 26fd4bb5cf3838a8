"""The tokens that end a sequence, as a request or the model's generation config names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from .reading import Integer, read_as
from .tree_model import TreeModel

Tokens = list[Annotated[Integer, Field(ge=0)]]


def stop_tokens(model: TreeModel, eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
    """The token ids that end a sequence; None asks the model's generation config.

    Raises:
        InputError: ids that are no whole numbers from 0 on.
    """
    where = "eos_token_id"
    if eos_token_id is None:
        eos_token_id, where = (
            model.base.generation_config.eos_token_id,
            f"{model.name}: generation_config.json, eos_token_id",
        )
    if eos_token_id is None:
        return frozenset()
    ids = [eos_token_id] if isinstance(eos_token_id, int | str | float) else list(eos_token_id)
    return frozenset(read_as(Tokens, ids, where, "give token ids: whole numbers, 0 or more"))
