"""Read and write Medusa heads: which files a folder or Hub repository keeps them in.

Read are a heads repository with ``medusa_lm_head.safetensors`` or ``medusa_lm_head.pt`` (FasterDecoding, TGI), one with
vLLM's keys in ``model.safetensors``, and a full checkpoint that carries ``medusa_head.{k}...`` (ModelOpt: ``medusa_heads.``)
beside the backbone. Where the files are is the business of :mod:`medusa_runtime.hub`, what is inside them that of
:mod:`medusa_runtime.heads.headformats`.
"""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..files import write_beside
from ..hub import CONFIG, Source
from .config import HeadsConfig, ModelConfig, checked, is_heads_repository, read_config
from .headformats import (
    PREFIX,
    PREFIXES,
    heads_from_state,
    medusa_config,
    medusa_state,
    ties_blocks,
    vllm_config,
    vllm_state,
)
from .heads import MedusaHeads

SAFETENSORS, PICKLE = "medusa_lm_head.safetensors", "medusa_lm_head.pt"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FORMATS = ("medusa", "pt", "tgi-v2", "vllm")  # "pt" is medusa's as a pickle of plain tensors
DAMAGED = (  # what torch.load and safetensors raise at a file whose bytes have changed
    SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error,
)  # fmt: skip


def load_heads(where: str | Path | Source) -> MedusaHeads:
    """Medusa heads of a folder or Hub repository, on the CPU, in the dtype they were saved in.

    Safetensors are preferred; a ``.pt`` is read with ``weights_only=True``, so that nothing in it can run.

    Raises:
        InputError: no heads there, an unreadable file, or keys, shapes and numbers that are not Medusa heads.
    """
    source = where if isinstance(where, Source) else Source.of(where)
    heads = find_heads(source)
    if heads is None:
        raise InputError(
            f"{source.where}: no Medusa heads there ({SAFETENSORS}, {PICKLE} or {PREFIX}* weights); name them with --heads"
        )
    return heads


def find_heads(source: Source) -> MedusaHeads | None:
    """As :func:`load_heads`; None where no heads are. What is damaged or does not fit is an InputError here, too."""
    config_path = source.file(CONFIG)
    config = {} if config_path is None else read_config(source)
    path = source.file(SAFETENSORS) or source.file(PICKLE)
    if path is None and config.get("model_type") != "medusa":
        state = _from_shards(source, PREFIXES)
        if not state:
            return None
        return heads_from_state(state, source.where, checked(ModelConfig, config, str(config_path)))
    # Beside heads may stand their own config, or a model's.
    alone = is_heads_repository(config) or config.get("model_type") == "medusa"
    said = checked(HeadsConfig if alone else ModelConfig, config, str(config_path))
    if path is None:
        return heads_from_state(_from_shards(source, ("",)), source.where, said)
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: refused, it is damaged or holds more than plain tensors; save them as {SAFETENSORS}"
        ) from None
    except DAMAGED as error:
        raise InputError(f"{path}: cannot be read as tensors ({error}); download or save it again") from None
    return heads_from_state(state, str(path), said)


def _from_shards(source: Source, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose keys begin so, read from its shards without loading the rest.

    Raises:
        InputError: an unreadable index or shard, or one that lacks what the index says.
    """
    index = source.file(INDEX)
    shards: dict[str, set[str]] = {WEIGHTS: set()}  # file: the keys it must hold
    if index is not None:
        shards = {}
        try:
            for key, file in json.loads(index.read_text("utf-8"))["weight_map"].items():
                if key.startswith(prefixes):
                    shards.setdefault(str(Path(file)), set()).add(key)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{index}: not an index of safetensors ({error}); download or save it again") from None
    state: dict[str, Tensor] = {}
    for name, keys in shards.items():
        path = source.file(name)
        if path is None and not keys:
            continue
        if path is None:
            raise InputError(f"{index}: names {name}, which is not there; download all of the checkpoint's files")
        try:
            with safe_open(path, "pt") as file:
                held = set(file.keys())
                state |= {key: file.get_tensor(key) for key in held if key.startswith(prefixes)}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read as safetensors ({error})") from None
        if keys - held:
            raise InputError(
                f"{path}: {min(keys - held)} is missing, though {INDEX} says it is there; download it again"
            )
    return state


def save_heads(
    heads: MedusaHeads, folder: Path, base_model: str, form: str = "medusa", shared: Tensor | None = None
) -> None:
    """Write the heads and their ``config.json``; each is written beside and renamed.

    Warns where FasterDecoding's own runtime would compute other heads from the file: see :mod:`medusa_runtime.heads.headformats`.

    Args:
        form: one of FORMATS.
        shared: the model's output layer (V, d), where the heads share it and ``form`` is "vllm".

    Raises:
        InputError: an unknown form, or one that cannot carry these heads.
    """
    if form not in FORMATS:
        raise InputError(f"--format {form!r} is not known; formats of heads: {', '.join(FORMATS)}")
    if form == "tgi-v2" and heads.output_weight is not None:
        raise InputError("tgi-v2 heads have no output layers, and these do; use medusa or vllm")
    if form in ("medusa", "pt") and heads.output_weight is None:
        raise InputError(f"{form} heads have their own output layers, and these do not; use tgi-v2 or vllm")
    if form == "tgi-v2" and heads.num_blocks != 1:
        raise InputError(f"tgi-v2 heads have one block, these have {heads.num_blocks}; use vllm")
    if form == "vllm":
        rows = shared if shared is None or heads.token_map is None else shared[heads.token_map]
        state, config = vllm_state(heads, rows), vllm_config(heads, base_model)
    else:
        state, config = medusa_state(heads), medusa_config(heads, base_model)
        _warn_of_blocks(heads)
    folder.mkdir(parents=True, exist_ok=True)
    name = {"vllm": WEIGHTS, "pt": PICKLE}.get(form, SAFETENSORS)
    with write_beside(folder / name) as beside:
        if form == "pt":
            torch.save(state, beside)
        else:
            save_file(state, beside, metadata={"format": "pt"})
    with write_beside(folder / CONFIG) as beside:
        beside.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def save_full(base: PreTrainedModel, heads: MedusaHeads, folder: Path) -> None:
    """Write the backbone with the heads beside it, as ``medusa_head.{k}...`` in a shard of their own.

    transformers reads the backbone from it, and :func:`load_heads` the heads. The heads' keys are those of ``medusa``
    (without output layers, where the model's own is shared), or of ``vllm`` where they have a token map.
    """
    if heads.token_map is None:
        state, said = medusa_state(heads), medusa_config(heads, "")
        _warn_of_blocks(heads)
        base.config.update({k: said[k] for k in ("medusa_num_heads", "medusa_num_layers")})
    else:
        output = base.get_output_embeddings().weight
        state, said = vllm_state(heads, output[heads.token_map]), vllm_config(heads, "")
        base.config.update({k: said[k] for k in ("truncated_vocab_size", "medusa_fc_bias", "original_lm_head")})
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / INDEX
    index.unlink(missing_ok=True)  # of an earlier save, with other shards
    base.save_pretrained(folder)
    if index.is_file():
        table = json.loads(index.read_text("utf-8"))
    else:  # one shard: give it the name of a first one, since transformers would not look for a second
        first = "model-backbone.safetensors"
        (folder / WEIGHTS).rename(folder / first)
        with safe_open(folder / first, "pt") as file:
            table = {"metadata": {}, "weight_map": dict.fromkeys(file.keys(), first)}
    with write_beside(folder / "model-heads.safetensors") as beside:
        save_file({PREFIX + key: value for key, value in state.items()}, beside, metadata={"format": "pt"})
    table["weight_map"] |= {PREFIX + key: "model-heads.safetensors" for key in state}
    with write_beside(index) as beside:
        beside.write_text(json.dumps(table, indent=2) + "\n", "utf-8")


def _warn_of_blocks(heads: MedusaHeads) -> None:
    if not ties_blocks(heads):
        warnings.warn(
            f"FasterDecoding's own runtime ties the {heads.num_blocks} blocks of a head: it would run the last one over and over. TGI, "
            "TensorRT-LLM and medusa-tree run them as they are, and so does vLLM from the vllm format",
            stacklevel=3,
        )
