"""Where the bundled demo model, prompts, trees and schema lie, from a checkout or an installed wheel."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DEMO = "demo"


def data_path(*parts: str) -> Path:
    """A file or folder of ``data/``, which is installed as the package ``medusa_tree_data``."""
    return Path(str(files("medusa_tree_data").joinpath(*parts)))


def resolve_model(model: str, heads: str | None) -> tuple[str, str | None]:
    """``demo`` -> the bundled model and heads; anything else stays as it is."""
    if model == DEMO:
        return str(data_path("demo", "model")), heads or str(data_path("demo", "heads"))
    return model, heads


def resolve_corpus(corpus: str) -> Path | str:
    """``demo`` -> the bundled prompts; anything else stays as it is."""
    return data_path("prompts", "demo.jsonl") if corpus == DEMO else corpus
