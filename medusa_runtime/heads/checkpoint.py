"""Read and write Medusa heads: which files a folder or Hub repository keeps them in.

Read are a heads repository with ``medusa_lm_head.safetensors`` or ``medusa_lm_head.pt`` (FasterDecoding, TGI), one with
vLLM's keys in ``model.safetensors``, and a full checkpoint that carries ``medusa_head.{k}...`` beside the backbone.
What is inside them is the business of :mod:`medusa_runtime.heads.headformats`.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..files import write_beside
from .headformats import PREFIX, heads_from_state, medusa_config, medusa_state, vllm_config, vllm_state
from .heads import MedusaHeads

SAFETENSORS, PICKLE = "medusa_lm_head.safetensors", "medusa_lm_head.pt"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
FORMATS = ("medusa", "pt", "tgi-v2", "vllm")  # "pt" is medusa's as a pickle of plain tensors


def fetch(where: str, name: str) -> Path | None:
    """The file ``name`` of a local folder or a Hub repository, downloaded if need be; None if it has none.

    Raises:
        InputError: ``where`` is neither a folder here nor a repository that the Hub could give.
    """
    if Path(where).is_dir():
        path = Path(where) / name
        return path if path.is_file() else None
    if not REPOSITORY.fullmatch(where):
        raise InputError(f"{where}: no such folder here, and no Hugging Face Hub id (owner/name); check the spelling")
    cached = try_to_load_from_cache(where, name)
    if isinstance(cached, str):
        return Path(cached)
    try:
        get_hf_file_metadata(hf_hub_url(where, name))  # one question, no retries: a wrong name should not cost a minute
        return Path(hf_hub_download(where, name))
    except EntryNotFoundError:
        return None
    except (OSError, ValueError, httpx.HTTPError) as error:
        if isinstance(try_to_load_from_cache(where, "config.json"), str):
            return None  # offline, with the repository cached: what is not in the cache is not there
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{where}: no such folder here, and the Hugging Face Hub did not give it ({reason}); check the spelling, the network and your access"
        ) from None


def read_config(where: str) -> dict[str, Any]:
    """``config.json`` of a folder or Hub repository.

    Raises:
        InputError: it is missing or not a JSON object.
    """
    path = fetch(where, "config.json")
    if path is None:
        raise InputError(f"{where}: no config.json there; give the folder (or Hub id) of a saved model")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds {type(config).__name__}, not an object of settings")
    return config


def is_heads_repository(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes heads alone, with the base model elsewhere."""
    vllm = config.get("model_type") == "medusa"
    return "base_model_name_or_path" in config and (
        vllm or ("medusa_num_heads" in config and "num_hidden_layers" not in config)
    )


def load_heads(where: str) -> MedusaHeads:
    """Medusa heads of a folder or Hub repository, on the CPU, in the dtype they were saved in.

    Safetensors are preferred; a ``.pt`` is read with ``weights_only=True``, so that nothing in it can run.

    Raises:
        InputError: no heads there, an unreadable file, or keys and shapes that are not Medusa heads.
    """
    path = fetch(where, SAFETENSORS) or fetch(where, PICKLE)
    config_path = fetch(where, "config.json")
    config = {} if config_path is None else read_config(where)
    if path is None and config.get("model_type") == "medusa":
        path = fetch(where, WEIGHTS)
    if path is None:
        return heads_from_state(_full_checkpoint_heads(where), where, config)
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as tensors ({error}); download or save it again") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: refused, it is damaged or holds more than plain tensors; save them as {SAFETENSORS}"
        ) from None
    return heads_from_state(state, str(path), config)


def _full_checkpoint_heads(where: str) -> dict[str, Tensor]:
    """The ``medusa_head.`` tensors of a full checkpoint, read from its shards without loading the rest."""
    index = fetch(where, INDEX)
    if index is not None:
        try:
            weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
            names = sorted({file for key, file in weight_map.items() if key.startswith(PREFIX)})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index}: not an index of safetensors ({error}); download or save it again") from None
    else:
        names = [WEIGHTS]
    state = {}
    for name in names:
        path = fetch(where, name)
        if path is None:
            continue
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    if key.startswith(PREFIX):
                        state[key.removeprefix(PREFIX)] = file.get_tensor(key)
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be read as safetensors ({error})") from None
    if not state:
        raise InputError(
            f"{where}: no Medusa heads there ({SAFETENSORS}, {PICKLE} or {PREFIX}* weights); name them with --heads"
        )
    return state


def save_heads(
    heads: MedusaHeads, folder: Path, base_model: str, form: str = "medusa", shared: Tensor | None = None
) -> None:
    """Write the heads and their ``config.json``; each is written beside and renamed.

    Args:
        form: one of FORMATS.
        shared: the model's output layer (V, d), where the heads share it and ``form`` is "vllm".

    Raises:
        InputError: an unknown form, or one that cannot carry these heads.
    """
    if form not in FORMATS:
        raise InputError(f"--format {form!r} is not known; formats of heads: {', '.join(FORMATS)}")
    if (form == "tgi-v2") != (heads.output_weight is None) and form != "vllm":
        raise InputError(
            f"{form} heads have {'no' if form == 'tgi-v2' else 'their own'} output layers, and these do{' not' if form != 'tgi-v2' else ''}; use {'tgi-v2 or vllm' if form != 'tgi-v2' else 'medusa or vllm'}"
        )
    if form == "tgi-v2" and heads.num_blocks != 1:
        raise InputError(f"tgi-v2 heads have one block, these have {heads.num_blocks}; use vllm")
    if form == "vllm":
        rows = shared if shared is None or heads.token_map is None else shared[heads.token_map]
        state, config = vllm_state(heads, rows), vllm_config(heads, base_model)
    else:
        state, config = medusa_state(heads), medusa_config(heads, base_model)
    folder.mkdir(parents=True, exist_ok=True)
    name = {"vllm": WEIGHTS, "pt": PICKLE}.get(form, SAFETENSORS)
    with write_beside(folder / name) as beside:
        if form == "pt":
            torch.save(state, beside)
        else:
            save_file(state, beside, metadata={"format": "pt"})
    with write_beside(folder / "config.json") as beside:
        beside.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def save_full(base: PreTrainedModel, heads: MedusaHeads, folder: Path) -> None:
    """Write the backbone with the heads beside it, as ``medusa_head.{k}...`` in a shard of their own.

    transformers reads the backbone from it, and :func:`load_heads` the heads. The heads' keys are those of ``medusa``
    (without output layers, where the model's own is shared), or of ``vllm`` where they have a token map.
    """
    if heads.token_map is None:
        state, said = medusa_state(heads), medusa_config(heads, "")
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
