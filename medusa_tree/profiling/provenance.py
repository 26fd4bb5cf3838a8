"""Provenance: what a calibration was made from, so that it can be made again."""

from __future__ import annotations

import hashlib
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from medusa_runtime.model import MedusaModel

from .. import __version__
from ..devices.measure import place_name
from .corpus import corpus_digest
from .job import Profiling
from .tokens import Fitted

SAMPLE = 4096  # values hashed of each tensor: telling two checkpoints apart should not take minutes


def weight_digest(module: nn.Module) -> str:
    """SHA-256 over each weight's name, shape, dtype and up to SAMPLE evenly spaced values. Weights that are split over processes are
    put together, by all of them. Where some are kept on disk, values are left out, and the digest is one of its own kind."""
    weights = sorted(module.state_dict().items())
    kind = "named" if any(tensor.is_meta for _, tensor in weights) else "sampled"
    digest = hashlib.sha256()
    for name, tensor in weights:
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        digest.update(f"{name} {tuple(whole.shape)} {whole.dtype}".encode())
        if kind == "named":
            continue
        flat = whole.detach().reshape(-1)
        digest.update(flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].double().cpu().numpy().tobytes())
    return f"{kind}-sha256:{digest.hexdigest()}"


def versions() -> dict[str, str]:
    """Of everything that can change a figure."""
    return {
        "medusa-tree": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "transformers": version("transformers"), "numpy": version("numpy"),
    }  # fmt: skip


def provenance(
    model: MedusaModel,
    names: tuple[str, str | None],
    profiling: Profiling,
    prompts: Fitted,
    weights: tuple[str, str | None],
    text: str | None = None,
) -> dict[str, Any]:
    """The provenance of tree.json; ``names`` of model and heads as the user gave them, the digests of their ``weights`` (heads: null where there are none), and what
    ``text`` it is, where that is not the model's own."""
    name, heads = names
    source = "prompts" if profiling.answers is None else "reference text" if profiling.reference else "answers"
    return {
        "model": {
            "name": name, "commit": model.commit, "architecture": type(model.base).__name__, "weights": weights[0],
            "dtype": model.dtype_name,
        },
        "heads": None
        if model.heads is None
        else {"name": heads, "commit": model.heads_commit, "count": model.num_heads, "weights": weights[1]},
        "corpus": {
            "name": profiling.corpus, "source": source, "prompts": len(prompts.rows), "of_each": profiling.prompts, "cut": prompts.cut,
            "digest": corpus_digest(prompts.prompts), "held_out": profiling.held_out, "seed": profiling.seed,
            "max_new_tokens": profiling.max_new_tokens, "tokens": text or f"the model's own output: {profiling.rule}",
        },
        "device": place_name(model),
        "dtype": model.dtype_name,
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
