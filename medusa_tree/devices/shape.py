"""ModelShape: what a decoding step of a model reads, computes and keeps, in parameters and bytes. NumPy only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}


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

    layers: int
    hidden_size: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    layer_params: int
    output_params: int
    head_params: int
    heads: int
    expert_params: int = 0
    experts: int = 0
    experts_per_token: int = 0
    input_params: int = 0

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
        try:
            return cls(**{k: int(v) for k, v in data.items()})
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{where}: the model's shape cannot be read ({error}); calibrate again") from None

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

        def get(*names: str) -> int:
            for name in names:
                if isinstance(config.get(name), int):
                    return int(config[name])
            raise InputError(f'{where}: field "{names[0]}" is missing; give the config.json of a causal LM')

        for name in OTHER_FORMS:
            if config.get(name):
                raise InputError(
                    f'{where}: field "{name}" is of a layer whose size cannot be told from its config here; calibrate the model, '
                    "which counts its weights"
                )
        if not isinstance(config.get("intermediate_size") or 0, int):
            raise InputError(
                f'{where}: field "intermediate_size" is one a layer; calibrate the model, which counts its weights'
            )

        layers, hidden = get("num_hidden_layers", "n_layer"), get("hidden_size", "n_embd")
        query_heads, vocab = get("num_attention_heads", "n_head"), get("vocab_size")
        kv_heads = config.get("num_key_value_heads") or query_heads
        head_dim = config.get("head_dim") or hidden // query_heads
        inner = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
        matrices = 2 if config.get("model_type") in TWO_MATRIX_MLPS else 3
        attention = 2 * hidden * head_dim * (query_heads + kv_heads)
        experts = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts") or 0
        mlp = 3 * hidden * (config.get("moe_intermediate_size") or inner) * experts if experts else 0
        return cls(
            layers=layers, hidden_size=hidden, query_heads=query_heads, kv_heads=kv_heads, head_dim=head_dim, vocab_size=vocab,
            layer_params=layers * (attention + (0 if experts else matrices * hidden * inner)),
            output_params=vocab * hidden, head_params=hidden * hidden + vocab * hidden, heads=heads,
            expert_params=layers * mlp, experts=experts, experts_per_token=get("num_experts_per_tok") if experts else 0,
            input_params=0 if config.get("tie_word_embeddings", True) else vocab * hidden,
        )  # fmt: skip


# Latent KV caches, shared experts, one key-value head under another name.
OTHER_FORMS = ("kv_lora_rank", "n_shared_experts", "shared_expert_intermediate_size", "multi_query", "num_kv_heads")
TWO_MATRIX_MLPS = ("gpt2", "gpt_neox", "gptj", "opt", "phi", "falcon", "starcoder2", "bloom")  # no gate
