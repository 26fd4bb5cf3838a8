"""config.json as far as heads need it: whether it describes heads alone, and its fields, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from ..hub import CONFIG, Source

Count = Annotated[int, Field(ge=1)]
Blocks = Annotated[int, Field(ge=0)]  # a head may be an output layer alone
Text = Annotated[str, Field(min_length=1)]
Read = TypeVar("Read", bound=BaseModel)


class ModelConfig(BaseModel):
    """What is read of a model's config.json where its checkpoint carries heads; all other fields are let be.

    0 stands for a number that the file does not say. ``medusa_num_heads`` and ``medusa_num_layers`` (blocks a head) are
    FasterDecoding's; the next three are vLLM's: rows of a draft vocabulary, whether blocks have biases, and whether all heads use
    the model's output layer.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    vocab_size: Count = 0
    medusa_num_heads: Count = 0
    medusa_num_layers: Blocks = 0
    truncated_vocab_size: Count | None = None  # vLLM takes null for the whole vocabulary
    medusa_fc_bias: bool = False
    original_lm_head: bool = False


class HeadsConfig(ModelConfig):
    """What is read of the config.json beside heads alone; ``num_heads`` and ``num_hidden_layers`` (blocks a head) are vLLM's."""

    base_model_name_or_path: Text = ""
    hidden_size: Count = 0
    num_heads: Count = 0
    num_hidden_layers: Blocks = 0
    version: Count = 1  # 2: TGI's, without output layers


def read_config(where: str | Path | Source) -> dict[str, Any]:
    """``config.json`` of a folder or Hub repository, as it stands.

    Raises:
        InputError: it is missing or not a JSON object.
    """
    source = where if isinstance(where, Source) else Source.of(where)
    path = source.file(CONFIG)
    if path is None:
        raise InputError(f"{source.where}: no config.json there; give the folder (or Hub id) of a saved model")
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError) as error:
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


def checked(kind: type[Read], config: Mapping[str, Any], where: str) -> Read:
    """The fields of a config.json that ``kind`` names.

    Args:
        where: what to call the file in an error.

    Raises:
        InputError: names the first field that is of another type or out of range.
    """
    try:
        return kind.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        told, value = first["msg"], repr(first["input"])
        raise InputError(
            f'{where}: field "{first["loc"][0]}" is {value[:60]}; {told[0].lower()}{told[1:]}: correct it, or take the file as it was published'
        ) from None
