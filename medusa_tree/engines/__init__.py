"""Engines: what each accepts, the best trees within that, and how a tree is written there. NumPy only.

One engine a file, whose ``ENGINE`` says all there is to know of it; these are the two tables of them.
"""

from __future__ import annotations

from medusa_runtime.errors import InputError

from . import eagle, hydra, linear, medusa, plain_json, sglang, tensorrt_llm, vllm
from .engine import Engine, Family


def _by_name(*engines: Engine) -> dict[str, Engine]:
    return {e.name: e for e in engines}


FORMATS = _by_name(  # all of them: what export --format writes
    medusa.ENGINE,
    tensorrt_llm.ENGINE,
    vllm.ENGINE,
    sglang.ENGINE,
    linear.ENGINE,
    eagle.ENGINE,
    hydra.ENGINE,
    plain_json.ENGINE,
)

ENGINES = _by_name(  # those with a family: what plan --engine plans within
    vllm.ENGINE,
    tensorrt_llm.ENGINE,
    medusa.ENGINE,
    sglang.ENGINE,
    linear.ENGINE,
    eagle.ENGINE,
    hydra.ENGINE,
)


def find_format(name: str) -> Engine:
    """One of FORMATS, or an InputError that lists them."""
    if name not in FORMATS:
        raise InputError(f"--format {name!r} is not known; formats: {', '.join(FORMATS)}")
    return FORMATS[name]


def find_family(name: str) -> Family:
    """How the best trees within one of ENGINES are found, or an InputError that lists them."""
    engine = ENGINES.get(name)
    if engine is None or engine.trees is None:
        raise InputError(f"--engine {name!r} is not known; engines: {', '.join(ENGINES)}")
    return engine.trees
