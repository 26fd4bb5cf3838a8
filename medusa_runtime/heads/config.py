"""config.json as far as heads need it: whether it describes heads alone, and its fields, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from ..errors import InputError
from ..hub import CONFIG, Source
from ..reading import Count, Flag, Text, Whole, read_as, read_json

MEND = "correct it, or take the file as it was published"


@dataclass(frozen=True)
class ModelConfig:
    """What is read of a model's config.json where its checkpoint carries heads; all other fields are let be.

    0 stands for a number that the file does not say. ``medusa_num_heads`` and ``medusa_num_layers`` (blocks a head) are
    FasterDecoding's; the next three are vLLM's: rows of a draft vocabulary, whether blocks have biases, and whether all heads use
    the model's output layer.
    """

    vocab_size: Whole = 0
    medusa_num_heads: Whole = 0
    medusa_num_layers: Count = 0  # a head may be an output layer alone
    truncated_vocab_size: Whole | None = None  # vLLM takes null for the whole vocabulary
    medusa_fc_bias: Flag = False
    original_lm_head: Flag = False


@dataclass(frozen=True)
class HeadsConfig(ModelConfig):
    """What is read of the config.json beside heads alone; ``num_heads`` and ``num_hidden_layers`` (blocks a head) are vLLM's."""

    base_model_name_or_path: Annotated[Text, Field(min_length=1)] = ""
    hidden_size: Whole = 0
    num_heads: Whole = 0
    num_hidden_layers: Count = 0
    version: Whole = 1  # 2: TGI's, without output layers


Read = TypeVar("Read", bound=ModelConfig)


def read_config(where: str | Path | Source) -> dict[str, Any]:
    """``config.json`` of a folder or Hub repository, as it stands.

    Raises:
        InputError: it is missing or not a JSON object.
    """
    source = where if isinstance(where, Source) else Source.of(where)
    path = source.file(CONFIG)
    if path is None:
        raise InputError(f"{source.where}: no config.json there; give the folder (or Hub id) of a saved model")
    config = read_json(path, "correct what is not valid JSON, or take the file as it was published")
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds {type(config).__name__}, not an object of settings")
    return config


def is_heads_repository(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes heads alone, with the base model elsewhere."""
    vllm = config.get("model_type") == "medusa"
    return "base_model_name_or_path" in config and (
        vllm or ("medusa_num_heads" in config and "num_hidden_layers" not in config)
    )


def checked(kind: type[Read], config: Mapping[str, Any], where: str) -> Read:
    """The fields of a config.json that ``kind`` names; InputError, which calls the file ``where``, for the first that is wrong."""
    return read_as(kind, dict(config), where, MEND)
