"""ModelShape: what a decoding step of a model reads, computes and keeps, in parameters and bytes. NumPy only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, Field, Strict

from medusa_runtime.errors import InputError
from medusa_runtime.reading import Count, Flag, Text, Whole, read_as

if TYPE_CHECKING:
    from medusa_runtime.model import MedusaModel

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
Weights = Annotated[int, Strict(), Field(ge=0, le=10**40)]  # more than any product of a config's counts


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer with Medusa heads.

    layer_params: weights of all layers, read once a step (experts apart).
    output_params: weights of the output layer, V x d.
    head_params: weights of one Medusa head, or of what else drafts one more level.
    heads: H.
    expert_params, experts, experts_per_token: weights of all experts of all layers, how many a layer has and how
        many of them a token uses; 0 where there are none.
    input_params: weights of the input table where the output layer is not the same: held, but a step reads a few rows only.
    """

    layers: Whole
    hidden_size: Whole
    query_heads: Whole
    kv_heads: Whole
    head_dim: Whole
    vocab_size: Whole
    layer_params: Weights
    output_params: Weights
    head_params: Weights
    heads: Count
    expert_params: Weights = 0
    experts: Count = 0
    experts_per_token: Count = 0
    input_params: Weights = 0

    @property
    def parameters(self) -> int:
        """All weights that a device must hold, heads included."""
        tables = self.input_params + self.output_params
        return self.layer_params + self.expert_params + tables + self.heads * self.head_params

    @property
    def kv_values(self) -> int:
        """Numbers that one token keeps in the KV cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def expert_share(self, rows: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Share of the experts that ``rows`` tokens read, if they choose evenly and independently."""
        if not self.experts:
            return np.zeros(np.shape(rows))
        return 1 - (1 - self.experts_per_token / self.experts) ** np.asarray(rows, dtype=np.float64)

    def memory(
        self, nodes: npt.ArrayLike, batch: int, context: int, weight_bytes: float, kv_bytes: float
    ) -> npt.NDArray[np.float64]:
        """Bytes that decoding holds: weights and heads, the KV cache with the tree's slots, the tree's logits."""
        rows = batch * (np.asarray(nodes) + 1)
        cache = kv_bytes * self.kv_values * (batch * context + rows)
        return weight_bytes * self.parameters + cache + 2 * max(2.0, weight_bytes) * rows * self.vocab_size

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, where: str) -> ModelShape:
        """What :meth:`to_json` wrote; InputError where it is not."""
        return read_as(cls, data, where, "calibrate again")

    @classmethod
    def from_config(cls, config: Any, heads: int, where: str = "config.json") -> ModelShape:
        """The shape that a Hugging Face ``config.json`` describes, with ``heads`` Medusa heads of one residual block and an own
        output layer each.

        Biases and norms, a few thousandths of the weights, are left out.

        Raises:
            InputError: names the field that is missing, or that stands for a form of layer whose size is not worked out here.
        """
        if isinstance(config, dict):
            config = config.get("text_config") or config
        if not isinstance(config, dict):
            raise InputError(f"{where}: holds no object; give the config.json of a causal LM")
        for name in OTHER_FORMS:
            if config.get(name):
                raise InputError(
                    f'{where}: field "{name}" is of a layer whose size cannot be told from its config here; calibrate the model, '
                    "which counts its weights"
                )
        if isinstance(config.get("intermediate_size"), list):
            raise InputError(
                f'{where}: field "intermediate_size" is one a layer; calibrate the model, which counts its weights'
            )
        given = {name: value for name, value in config.items() if value is not None}  # null stands for the default
        c = read_as(_Config, given, where, "give the config.json of a causal LM")
        if c.experts and not 1 <= c.num_experts_per_tok <= c.experts:
            raise InputError(
                f'{where}: field "num_experts_per_tok" is {c.num_experts_per_tok} of {c.experts} experts; it must be 1 to all of them'
            )
        hidden, kv_heads = c.hidden_size, c.num_key_value_heads or c.num_attention_heads
        head_dim = c.head_dim or max(1, hidden // c.num_attention_heads)
        inner = c.intermediate_size or 4 * hidden
        matrices = 2 if c.model_type in TWO_MATRIX_MLPS else 3
        attention = 2 * hidden * head_dim * (c.num_attention_heads + kv_heads)
        mlp = 3 * hidden * (c.moe_intermediate_size or inner) * c.experts
        return cls(
            layers=c.num_hidden_layers, hidden_size=hidden, query_heads=c.num_attention_heads, kv_heads=kv_heads, head_dim=head_dim,
            vocab_size=c.vocab_size, layer_params=c.num_hidden_layers * (attention + (0 if c.experts else matrices * hidden * inner)),
            output_params=c.vocab_size * hidden, head_params=hidden * hidden + c.vocab_size * hidden, heads=heads,
            expert_params=c.num_hidden_layers * mlp, experts=c.experts, experts_per_token=c.num_experts_per_tok if c.experts else 0,
            input_params=0 if c.tie_word_embeddings else c.vocab_size * hidden,
        )  # fmt: skip


def shape_of(model: MedusaModel) -> ModelShape:
    """The shape of a loaded model and its heads, by counting its weights."""
    config = model.base.config.get_text_config()
    table, output = model.base.get_input_embeddings().weight, model.base.get_output_embeddings().weight
    layer_params = expert_params = 0
    for name, weight in model.base.named_parameters():
        if weight is table or weight is output:
            continue
        if ".experts." in name:
            expert_params += weight.numel()
        else:
            layer_params += weight.numel()
    query_heads = config.num_attention_heads
    experts = next(
        (int(n) for k in ("num_local_experts", "num_experts", "n_routed_experts") if (n := getattr(config, k, None))), 0
    )
    return ModelShape(
        layers=config.num_hidden_layers, hidden_size=config.hidden_size, query_heads=query_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or query_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // query_heads, vocab_size=output.shape[0],
        layer_params=layer_params, output_params=output.numel(),
        head_params=0 if model.heads is None else sum(p.numel() for p in model.heads.parameters()) // model.num_heads,
        heads=model.num_heads,
        expert_params=expert_params if experts else 0, experts=experts if expert_params else 0,
        experts_per_token=int(getattr(config, "num_experts_per_tok", 0) or 0) if experts and expert_params else 0,
        input_params=0 if table is output else table.numel(),
    )  # fmt: skip


def _named(*names: str) -> Any:
    """One size under the names that families of models give it."""
    return Field(validation_alias=AliasChoices(*names))


@dataclass(frozen=True)
class _Config:
    """What is read of a ``config.json``."""

    num_hidden_layers: Annotated[Whole, _named("num_hidden_layers", "n_layer")]
    hidden_size: Annotated[Whole, _named("hidden_size", "n_embd")]
    num_attention_heads: Annotated[Whole, _named("num_attention_heads", "n_head")]
    vocab_size: Whole
    num_key_value_heads: Whole | None = None
    head_dim: Whole | None = None
    intermediate_size: Annotated[Whole | None, _named("intermediate_size", "n_inner")] = None
    moe_intermediate_size: Whole | None = None
    experts: Annotated[Count, _named("num_local_experts", "num_experts", "n_routed_experts")] = 0
    num_experts_per_tok: Count = 0
    model_type: Text = ""
    tie_word_embeddings: Flag = True


# Latent KV caches, shared experts, one key-value head under another name.
OTHER_FORMS = ("kv_lora_rank", "n_shared_experts", "shared_expert_intermediate_size", "multi_query", "num_kv_heads")
TWO_MATRIX_MLPS = ("gpt2", "gpt_neox", "gptj", "opt", "phi", "falcon", "starcoder2", "bloom")  # no gate
