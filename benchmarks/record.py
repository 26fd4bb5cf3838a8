"""What every benchmark's result carries: date, device, dtype, versions; printed, and kept with -o."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import logging

from medusa_runtime import MedusaModel
from medusa_tree.bundled import DEMO, resolve_model
from medusa_tree.devices.measure import device_name
from medusa_tree.profiling.provenance import versions


def demo(device: str | None, dtype: str) -> MedusaModel:
    """The bundled model with its heads, transformers kept quiet."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where, heads = resolve_model(DEMO, None)
    return MedusaModel.from_pretrained(where, heads, dtype=dtype, device=device)


def keep(name: str, out: Path | None, figures: dict[str, Any]) -> None:
    """Print one JSON object, and write it to ``out`` where given."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"benchmark": name, "date": date, **figures, "versions": versions()}, indent=2) + "\n"
    print(text, end="")
    if out:
        out.write_text(text)


def record(name: str, model: MedusaModel, out: Path | None, **figures: Any) -> None:
    """The same for figures taken with a model on a device."""
    place = {"device": device_name(model.device), "dtype": model.dtype_name}
    keep(name, out, {**place, **figures})
