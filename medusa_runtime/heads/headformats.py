"""Head formats: the state dicts and configs that engines read, to and from MedusaHeads.

====================  =========================================================================================
medusa                FasterDecoding, TGI v1: ``{k}.{j}.linear.weight``, ``.bias`` for block j of head k, and
                      ``{k}.{J}.weight`` for its output layer
tgi-v2                the same without output layers: the model's own is shared; one block a head
vllm                  ``blocks.{k}.layers.{j}.weight`` (``.bias`` where the config says ``medusa_fc_bias``) and
                      ``lm_heads.{k}.weight``, or with ``original_lm_head`` one for all; ``token_map`` where the
                      config's ``truncated_vocab_size`` is below ``vocab_size``
====================  =========================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .heads import MedusaHeads

PREFIX = "medusa_head."  # of heads inside a full checkpoint
MEDUSA_KEY = re.compile(r"(?P<head>\d+)\.(?P<layer>\d+)\.(?P<name>linear\.weight|linear\.bias|weight)")
VLLM_KEY = re.compile(
    r"blocks\.(?P<head>\d+)\.layers\.(?P<layer>\d+)\.(weight|bias)|lm_heads?\.(\d+\.)?weight|token_map"
)


def heads_from_state(state: Mapping[str, Tensor], where: str, config: Mapping[str, Any] | None = None) -> MedusaHeads:
    """Stack a state dict of any of the formats into MedusaHeads; the numbers of heads and blocks are read off its keys.

    Args:
        where: what to call the source in an error.
        config: its config.json; needed for vLLM's, and for the vocabulary where heads have no output layer.

    Raises:
        InputError: names the key that is unknown, missing or of a wrong shape.
    """
    tensors = {key.removeprefix(PREFIX).removeprefix("medusa_heads."): value for key, value in state.items()}
    if any(key.startswith("blocks.") for key in tensors):
        return _from_vllm(tensors, where, config or {})
    return _from_medusa(tensors, where, config or {})


def _stack(
    heads: MedusaHeads,
    tensors: Mapping[str, Tensor],
    where: str,
    weight: str,
    bias: str,
    output: Callable[[int], str] | None,
    has_bias: bool,
) -> MedusaHeads:
    """Fill the heads; ``weight`` and ``bias`` are key patterns of head k and block j, ``output`` gives head k's key."""
    width = heads.hidden_size

    def take(key: str, shape: tuple[int, ...]) -> Tensor:
        if key not in tensors:
            raise InputError(
                f"{where}: {key} is missing, though there are {heads.num_heads} heads of {heads.num_blocks} block(s)"
            )
        if tuple(tensors[key].shape) != shape:
            raise InputError(f"{where}: {key} has shape {tuple(tensors[key].shape)}, expected {shape} as in head 0")
        return tensors[key]

    with torch.no_grad():
        for k in range(heads.num_heads):
            for j in range(heads.num_blocks):
                heads.block_weight[k, j] = take(weight.format(k=k, j=j), (width, width))
                if has_bias:
                    heads.block_bias[k, j] = take(bias.format(k=k, j=j), (width,))
            if heads.output_weight is not None and output is not None:
                heads.output_weight[k] = take(output(k), (heads.rows, width))
    return heads.requires_grad_(False)


def _from_medusa(tensors: Mapping[str, Tensor], where: str, config: Mapping[str, Any]) -> MedusaHeads:
    matches = {key: MEDUSA_KEY.fullmatch(key) for key in tensors}
    unknown = [key for key, match in matches.items() if match is None]
    if unknown or not matches:
        raise InputError(
            f"{where}: key {unknown[0] if unknown else '(none)'!r} is not of the form 0.0.linear.weight or 0.1.weight: not Medusa heads"
        )
    found = [m for m in matches.values() if m]
    num_heads = 1 + max(int(m["head"]) for m in found)
    outputs = [int(m["layer"]) for m in found if m["name"] == "weight"]
    blocks = [int(m["layer"]) for m in found if m["name"] != "weight"]
    num_blocks = max(outputs) if outputs else 1 + max(blocks)
    weight, bias = "{k}.{j}.linear.weight", "{k}.{j}.linear.bias"
    if not outputs:  # TGI v2
        vocab = config.get("vocab_size") or 0
        first = tensors["0.0.linear.weight"] if "0.0.linear.weight" in tensors else next(iter(tensors.values()))
        heads = MedusaHeads(first.shape[0], vocab, num_heads, num_blocks, first.dtype, own_output=False)
        return _stack(heads, tensors, where, weight, bias, None, has_bias=True)
    if f"0.{num_blocks}.weight" not in tensors:
        raise InputError(f"{where}: head 0 has no output layer 0.{num_blocks}.weight")
    output = tensors[f"0.{num_blocks}.weight"]
    heads = MedusaHeads(output.shape[1], output.shape[0], num_heads, num_blocks, output.dtype)
    return _stack(heads, tensors, where, weight, bias, lambda k: f"{k}.{num_blocks}.weight", has_bias=True)


def _from_vllm(tensors: Mapping[str, Tensor], where: str, config: Mapping[str, Any]) -> MedusaHeads:
    matches = {key: VLLM_KEY.fullmatch(key) for key in tensors}
    unknown = [key for key, match in matches.items() if match is None]
    if unknown:
        raise InputError(
            f"{where}: key {unknown[0]!r} is none of vLLM's Medusa keys (blocks.0.layers.0.weight, lm_heads.0.weight, token_map)"
        )
    found = [m for m in matches.values() if m and m["head"]]
    num_heads, num_blocks = 1 + max(int(m["head"]) for m in found), 1 + max(int(m["layer"]) for m in found)
    first = (
        tensors["blocks.0.layers.0.weight"] if "blocks.0.layers.0.weight" in tensors else next(iter(tensors.values()))
    )
    token_map = tensors.get("token_map")
    vocab = config.get("vocab_size")
    if not isinstance(vocab, int):
        raise InputError(f'{where}: field "vocab_size" is missing from its config.json; vLLM writes it')
    own = "lm_heads.0.weight" in tensors and not config.get("original_lm_head", False)
    if own and token_map is None and tensors["lm_heads.0.weight"].shape[0] != vocab:
        raise InputError(
            f"{where}: lm_heads.0.weight has {tensors['lm_heads.0.weight'].shape[0]} rows for {vocab} tokens, and there is no token_map"
        )
    token_map = None if token_map is None else token_map.to(torch.int64)
    heads = MedusaHeads(first.shape[0], vocab, num_heads, num_blocks, first.dtype, own_output=own, token_map=token_map)
    tensors = dict(tensors)
    if own and token_map is not None:  # vLLM takes whole output layers, too, and drops rows itself
        for k in range(num_heads):
            rows = tensors.get(f"lm_heads.{k}.weight")
            if rows is not None and rows.shape[0] > heads.rows:
                tensors[f"lm_heads.{k}.weight"] = rows[token_map]
    return _stack(
        heads, tensors, where, "blocks.{k}.layers.{j}.weight", "blocks.{k}.layers.{j}.bias", lambda k: f"lm_heads.{k}.weight",
        has_bias="blocks.0.layers.0.bias" in tensors,
    )  # fmt: skip


def medusa_state(heads: MedusaHeads) -> dict[str, Tensor]:
    """The state dict of ``medusa`` and, for heads that share the model's output layer, ``tgi-v2``.

    Raises:
        InputError: a token map, which neither format can carry.
    """
    if heads.token_map is not None:
        raise InputError("a reduced vocabulary cannot be written in this format; use vllm")
    state = {}
    for k in range(heads.num_heads):
        for j in range(heads.num_blocks):
            state[f"{k}.{j}.linear.weight"] = heads.block_weight[k, j].detach().clone()
            state[f"{k}.{j}.linear.bias"] = heads.block_bias[k, j].detach().clone()
        if heads.output_weight is not None:
            state[f"{k}.{heads.num_blocks}.weight"] = heads.output_weight[k].detach().clone()
    return state


def medusa_config(heads: MedusaHeads, base_model: str) -> dict[str, Any]:
    """The config beside it."""
    return {
        "medusa_num_heads": heads.num_heads, "medusa_num_layers": heads.num_blocks, "base_model_name_or_path": base_model,
        "hidden_size": heads.hidden_size, "vocab_size": heads.vocab_size, **({"version": 2} if heads.output_weight is None else {}),
    }  # fmt: skip


def vllm_state(heads: MedusaHeads, shared: Tensor | None = None) -> dict[str, Tensor]:
    """The state dict of ``vllm``. Where heads share the model's output layer, vLLM wants it in the file: ``shared`` (R, d)."""
    state = {}
    for k in range(heads.num_heads):
        for j in range(heads.num_blocks):
            state[f"blocks.{k}.layers.{j}.weight"] = heads.block_weight[k, j].detach().clone()
            state[f"blocks.{k}.layers.{j}.bias"] = heads.block_bias[k, j].detach().clone()
        if heads.output_weight is not None:
            state[f"lm_heads.{k}.weight"] = heads.output_weight[k].detach().clone()
    if heads.output_weight is None:
        if shared is None:
            raise InputError("vLLM wants the shared output layer in the heads' file; hand over the model's")
        state["lm_heads.0.weight"] = shared.detach().clone()
    if heads.token_map is not None:
        state["token_map"] = heads.token_map.clone()
    return state


def vllm_config(heads: MedusaHeads, base_model: str) -> dict[str, Any]:
    """The config beside it."""
    return {
        "architectures": ["MedusaModel"], "model_type": "medusa", "hidden_size": heads.hidden_size, "num_heads": heads.num_heads,
        "num_hidden_layers": heads.num_blocks, "vocab_size": heads.vocab_size, "truncated_vocab_size": heads.rows, "medusa_fc_bias": True,
        "original_lm_head": heads.output_weight is None, "base_model_name_or_path": base_model,
    }  # fmt: skip
