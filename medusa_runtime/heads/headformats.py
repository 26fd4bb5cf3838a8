"""Head formats: the state dicts and configs that engines read, to and from MedusaHeads.

====================  =========================================================================================
medusa                FasterDecoding, TGI v1: ``{k}.{j}.linear.weight``, ``.bias`` for block j of head k, and
                      ``{k}.{J}.weight`` for its output layer
tgi-v2                the same without output layers: the model's own is shared; one block a head
vllm                  ``blocks.{k}.layers.{j}.weight`` (``.bias`` where the config says ``medusa_fc_bias``) and
                      ``lm_heads.{k}.weight``, or with ``original_lm_head`` one for all; ``token_map`` where the
                      config's ``truncated_vocab_size`` is below ``vocab_size``
====================  =========================================================================================

A head's blocks are taken as they stand under their keys, as TGI and TensorRT-LLM do. FasterDecoding builds a head as
``[ResBlock(d)] * J``: one block, run J times. So the checkpoints it trains hold J equal blocks, which compute the same here; but of
J different ones it would run the last, J times (:func:`ties_blocks`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .config import HeadsConfig, ModelConfig
from .heads import MedusaHeads
from .weights import check_token_map, check_weights, state_dict

PREFIX = "medusa_head."  # of heads inside a full checkpoint
PREFIXES = (PREFIX, "medusa_heads.")  # the second is ModelOpt's
MEDUSA_KEY = re.compile(r"(?P<head>\d{1,4})\.(?P<layer>\d{1,4})\.(?P<name>linear\.weight|linear\.bias|weight)")
VLLM_KEY = re.compile(
    r"blocks\.(?P<head>\d{1,4})\.layers\.(?P<layer>\d{1,4})\.(weight|bias)|lm_heads?\.(\d{1,4}\.)?weight|token_map"
)


@dataclass(frozen=True)
class Layout:
    """Where a state dict keeps H heads of J blocks: patterns of keys for head ``{k}`` and block ``{j}``; None: not there."""

    num_heads: int
    num_blocks: int
    weight: str
    bias: str | None
    output: str | None

    def names(self) -> Iterator[str]:
        for k in range(self.num_heads):
            for j in range(self.num_blocks):
                yield self.weight.format(k=k, j=j)
                if self.bias is not None:
                    yield self.bias.format(k=k, j=j)
            if self.output is not None:
                yield self.output.format(k=k)


def heads_from_state(state: object, where: str, config: ModelConfig | None = None) -> MedusaHeads:
    """Stack a state dict of any of the formats into MedusaHeads; the numbers of heads and blocks are read off its keys.

    Args:
        where: what to call the source in an error.
        config: its config.json; needed for vLLM's, and for the vocabulary where heads have no output layer.

    Raises:
        InputError: names the key that is unknown, missing, of a wrong shape or dtype, or not finite.
    """
    found, said = state_dict(state, where), config or ModelConfig()
    tensors = {key.removeprefix(PREFIXES[0]).removeprefix(PREFIXES[1]): value for key, value in found.items()}
    if any(key.startswith("blocks.") for key in tensors):
        return _from_vllm(tensors, where, said)
    return _from_medusa(tensors, where, said)


def _stack(
    layout: Layout, tensors: Mapping[str, Tensor], where: str, config: ModelConfig, vocab: int, token_map: Tensor | None = None
) -> MedusaHeads:  # fmt: skip
    """The heads whose tensors ``layout`` names: all of these, and no others. Their dtype is the widest of them."""
    what = f"{layout.num_heads} heads of {layout.num_blocks} block(s)"
    for key in layout.names():
        if key not in tensors:
            raise InputError(f"{where}: {key} is missing, though there are {what}")
    spare = tensors.keys() - set(layout.names())
    if spare:
        raise InputError(f"{where}: {min(spare)} is none of the keys of {what}")
    width = tensors[next(layout.names())].shape[-1]
    _check_said(layout, width, where, config)
    dtype = reduce(torch.promote_types, {value.dtype for value in tensors.values()})
    own = layout.output is not None
    heads = MedusaHeads(width, vocab, layout.num_heads, layout.num_blocks, dtype, own_output=own, token_map=token_map)

    def take(key: str, *shape: int) -> Tensor:
        if tuple(tensors[key].shape) != shape:
            raise InputError(f"{where}: {key} has shape {tuple(tensors[key].shape)}, expected {shape} as in head 0")
        return tensors[key]

    with torch.no_grad():
        for k in range(layout.num_heads):
            for j in range(layout.num_blocks):
                heads.block_weight[k, j] = take(layout.weight.format(k=k, j=j), width, width)
                if layout.bias is not None:
                    heads.block_bias[k, j] = take(layout.bias.format(k=k, j=j), width)
            if heads.output_weight is not None and layout.output is not None:
                heads.output_weight[k] = take(layout.output.format(k=k), heads.rows, width)
    return heads.requires_grad_(False)


def _check_said(layout: Layout, width: int, where: str, config: ModelConfig) -> None:
    """InputError where config.json says more heads or blocks than were found, so that a part is not here, or another width."""
    heads, blocks = layout.num_heads, layout.num_blocks
    found = {"medusa_num_heads": heads, "medusa_num_layers": blocks}
    if isinstance(config, HeadsConfig):
        found |= {"num_heads": heads, "num_hidden_layers": blocks, "hidden_size": width}
    for name, number in found.items():
        said = getattr(config, name)
        if said > number or (name == "hidden_size" and 0 < said < number):
            raise InputError(
                f"{where}: its config.json says {name} {said}, but the weights are of {number}; download all of the heads' files"
            )


def _from_medusa(tensors: Mapping[str, Tensor], where: str, config: ModelConfig) -> MedusaHeads:
    matches = {key: MEDUSA_KEY.fullmatch(key) for key in tensors}
    unknown = [key for key, match in matches.items() if match is None]
    if unknown or not matches:
        raise InputError(
            f"{where}: key {unknown[0] if unknown else '(none)'!r} is not of the form 0.0.linear.weight or 0.1.weight: not Medusa heads"
        )
    check_weights(tensors, where)
    found = [m for m in matches.values() if m]
    num_heads = 1 + max(int(m["head"]) for m in found)
    outputs = [int(m["layer"]) for m in found if m["name"] == "weight"]
    blocks = [int(m["layer"]) for m in found if m["name"] != "weight"]
    weight, bias = "{k}.{j}.linear.weight", "{k}.{j}.linear.bias"
    if not outputs:  # TGI v2
        layout = Layout(num_heads, 1 + max(blocks), weight, bias, None)
        return _stack(layout, tensors, where, config, config.vocab_size)
    num_blocks = max(outputs)
    if f"0.{num_blocks}.weight" not in tensors:
        raise InputError(f"{where}: head 0 has no output layer 0.{num_blocks}.weight")
    layout = Layout(num_heads, num_blocks, weight, bias, f"{{k}}.{num_blocks}.weight")
    return _stack(layout, tensors, where, config, len(tensors[f"0.{num_blocks}.weight"]))


def _from_vllm(tensors: dict[str, Tensor], where: str, config: ModelConfig) -> MedusaHeads:
    matches = {key: VLLM_KEY.fullmatch(key) for key in tensors}
    unknown = [key for key, match in matches.items() if match is None]
    if unknown:
        raise InputError(
            f"{where}: key {unknown[0]!r} is none of vLLM's Medusa keys (blocks.0.layers.0.weight, lm_heads.0.weight, token_map)"
        )
    vocab, listed = config.vocab_size, tensors.pop("token_map", None)
    if not vocab:
        raise InputError(f'{where}: field "vocab_size" is missing from its config.json; vLLM writes it')
    check_weights(tensors, where)
    token_map = None if listed is None else check_token_map(listed, vocab, where)
    rows, drafted = vocab if token_map is None else len(token_map), config.truncated_vocab_size or vocab
    if drafted < vocab and drafted != rows:
        raise InputError(
            f"{where}: its config.json says truncated_vocab_size {drafted} of {vocab}, but token_map {'is missing' if token_map is None else f'names {rows}'}"
        )
    found = [m for m in matches.values() if m and m["head"]]
    num_heads, num_blocks = 1 + max(int(m["head"]) for m in found), 1 + max(int(m["layer"]) for m in found)
    weight, bias = "blocks.{k}.layers.{j}.weight", "blocks.{k}.layers.{j}.bias"
    biased = config.medusa_fc_bias or any(key.endswith(".bias") for key in tensors)
    output = None if config.original_lm_head else "lm_heads.{k}.weight"
    if output is None:  # the file's copy of it is not read
        tensors = {key: value for key, value in tensors.items() if not key.startswith("lm_head")}
    else:
        tensors |= _output_layers(tensors, where, num_heads, vocab, token_map)
    layout = Layout(num_heads, num_blocks, weight, bias if biased else None, output)
    return _stack(layout, tensors, where, config, vocab, token_map)


def _output_layers(
    tensors: Mapping[str, Tensor], where: str, num_heads: int, vocab: int, token_map: Tensor | None
) -> dict[str, Tensor]:
    """vLLM's output layer of every head; whole ones beside a token map are cut to its rows, as vLLM does."""
    layers = {}
    for key in (f"lm_heads.{k}.weight" for k in range(num_heads)):
        if key not in tensors:
            raise InputError(
                f'{where}: {key} is missing, though there are {num_heads} heads; heads that share the model\'s output layer say "original_lm_head": true in config.json'
            )
        layers[key] = tensors[key]
        if token_map is None and len(layers[key]) != vocab:
            raise InputError(
                f"{where}: {key} has {len(layers[key])} rows for {vocab} tokens, and there is no token_map"
            )
        if token_map is not None and len(layers[key]) == vocab:
            layers[key] = layers[key][token_map]
    return layers


def ties_blocks(heads: MedusaHeads) -> bool:
    """Whether FasterDecoding, which runs one block J times, would compute these heads as they are."""
    weight, bias = heads.block_weight.detach(), heads.block_bias.detach()
    return bool((weight == weight[:, :1]).all() and (bias == bias[:, :1]).all())


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
