"""The backbone that heads are trained on: the device it stands on, and how it is loaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from medusa_runtime.errors import InputError, out_of_memory
from medusa_runtime.heads.config import read_config
from medusa_runtime.hub import DEFAULT, Hub, Source
from medusa_runtime.model import DTYPES, load_base, pick_device
from medusa_runtime.proof import prove


def check_device(name: str | None, device: torch.device) -> None:
    """Whether this process can train as asked on ``device``, which is the one it was given.

    Raises:
        InputError: ``name`` is not there or another one, or the process would have several GPUs.
    """
    asked = device if name is None else pick_device(name)
    if device.type == "cuda" and (gpus := torch.cuda.device_count()) > 1 and not torch.distributed.is_initialized():
        raise InputError(
            f"{gpus} GPUs are visible to one process; start one each, torchrun --nproc-per-node {gpus} -m medusa_tree train ..., "
            f"or choose one of them by CUDA_VISIBLE_DEVICES={asked.index or 0}"
        )
    if asked.type != device.type or asked.index not in (None, device.index or 0):
        raise InputError(
            f"--device {name}: this process trains on {device}; leave it out, and choose GPUs by CUDA_VISIBLE_DEVICES"
        )


def load_backbone(
    model: str,
    device: torch.device,
    dtype: str | None,
    quantize: str | None,
    trust_remote_code: bool,
    hub: Hub = DEFAULT,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and backbone on ``device``, in the dtype it was saved in or ``dtype``, or in 4 or 8 bits.

    Raises:
        InputError: not there, no causal LM, one that the runtime could not run with its heads, or too large.
    """
    source = Source.of(model, hub)
    read_config(source)
    settings: dict[str, Any] = {
        "dtype": "auto" if dtype is None else DTYPES[dtype],
        "trust_remote_code": trust_remote_code,
    }
    if quantize:
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=quantize == "4bit",
            load_in_8bit=quantize == "8bit",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        settings["device_map"] = {"": device}
    base, tokenizer = load_base(source, **settings)
    if not quantize:
        takes = f"{model} takes {base.get_memory_footprint() / 2**30:.2f} GiB (--quantize for less)"
        with out_of_memory(takes, device):
            base = base.to(device)
    prove(base, model)
    return tokenizer, base
