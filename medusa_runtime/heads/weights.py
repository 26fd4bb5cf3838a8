"""What tensors that are to become heads must be: named, plain, floating, finite, of the right shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def state_dict(state: object, where: str) -> dict[str, Tensor]:
    """``state`` if it is a state dict of plain tensors.

    Raises:
        InputError: a file that holds anything else, named by what and under which key.
    """
    mend = "save the heads' state_dict() alone"
    if not isinstance(state, Mapping):
        raise InputError(f"{where}: holds {type(state).__name__}, not a state dict; {mend}")
    for key, value in state.items():
        if not isinstance(key, str):
            raise InputError(f"{where}: key {key!r} is no name of a tensor; {mend}")
        if not isinstance(value, Tensor):
            raise InputError(f"{where}: {key!r} holds {type(value).__name__}, not a tensor; {mend}")
    return dict(state)


def check_weights(tensors: Mapping[str, Tensor], where: str) -> None:
    """Every weight (rows, columns) and bias (columns,) that a head could compute with.

    Raises:
        InputError: names the key that is empty, of other dimensions, of a dtype without fractions, or not finite.
    """
    for key, value in tensors.items():
        axes = 1 if key.endswith("bias") else 2
        if value.dim() != axes or value.numel() == 0 or value.layout is not torch.strided or value.is_meta:
            told = (
                "is empty"
                if value.numel() == 0
                else f"has shape {tuple(value.shape)}, expected {axes} axes of plain numbers"
            )
            raise InputError(f"{where}: {key} {told}; download or save the heads again")
        if value.dtype not in DTYPES:
            raise InputError(
                f"{where}: {key} has dtype {_name(value.dtype)}; heads are read in {', '.join(map(_name, DTYPES))}: save them in one of these"
            )
        low, high = torch.aminmax(value)
        if not (low.isfinite() and high.isfinite()):
            raise InputError(
                f"{where}: {key} holds NaN or infinite numbers, so that its head could guess nothing; train or download the heads again"
            )


def check_token_map(token_map: Tensor, vocab: int, where: str) -> Tensor:
    """(R,) int64: the distinct tokens of a draft vocabulary.

    Raises:
        InputError: empty, not of whole numbers, outside of the vocabulary, or a token twice.
    """
    mend = "it lists the tokens that heads propose, each once"
    if token_map.dim() != 1 or token_map.numel() == 0:
        raise InputError(
            f"{where}: token_map has shape {tuple(token_map.shape)}, expected (tokens,), at least one; {mend}"
        )
    if token_map.dtype not in WHOLE or token_map.layout is not torch.strided:
        raise InputError(f"{where}: token_map has dtype {_name(token_map.dtype)}, expected whole numbers; {mend}")
    tokens = token_map.to(torch.int64)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab:
        raise InputError(f"{where}: token_map names token {low if low < 0 else high} of {vocab} (vocab_size); {mend}")
    if len(tokens.unique()) != len(tokens):
        raise InputError(
            f"{where}: token_map names {len(tokens)} tokens, only {len(tokens.unique())} of them distinct; {mend}"
        )
    return tokens


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
