"""Miniature: a small copy of a model's architecture with random weights, made from its own config.

Same class, kinds of layers, attention, position encoding and masks; fewer and narrower layers, and windows, and lengths at which
something changes, so short that a few tokens cross them. So what a class does with its tokens shows in float32 on the CPU
within a fraction of a second, however large the model is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

# Tokens: the context; where RoPE changes its frequencies; how far a sliding window, or a chunk, reaches.
POSITIONS, SWITCH, WINDOW = 64, 28, 6
VOCAB, WIDTH, INNER, HEADS, HEAD, RANK, EXPERTS = 64, 64, 32, 4, 16, 8, 4
MOST_LAYERS = 8
SPREAD = 0.25  # standard deviation of the random weights: large enough for every token to move the logits

# By what configs call them: lengths, and below them sizes, which are made no larger than they are. What a config does not have,
# or has as None or 0, stays so.
LENGTHS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (POSITIONS, (
        "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions", "max_source_positions",
    )),
    (SWITCH, ("original_max_position_embeddings",)),
    (WINDOW, (
        "sliding_window", "attention_chunk_size", "attention_window_size", "window_size", "local_attention", "keep_window_size",
        "index_topk", "floor_scale",
    )),
)  # fmt: skip
SIZES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (VOCAB, ("vocab_size", "vocab_size_per_layer_input")),
    (WIDTH, (
        "hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim", "lru_width", "dim_model_base",
        "hidden_size_per_layer_input", "backbone_hidden_size", "input_embedding_size", "output_embedding_size",
    )),
    (INNER, (
        "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "dff", "intermediate_size_mlp", "dense_intermediate_size",
        "moe_intermediate_size", "shared_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size",
    )),
    (HEAD, ("head_dim", "global_head_dim", "kv_channels", "query_pre_attn_scalar")),
    (RANK, ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rotary_dim", "laurel_rank", "index_head_dim")),
    (EXPERTS, ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "index_n_heads", "index_block_size")),
    (2, (
        "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk", "n_group", "zero_expert_num",
        "index_topk_blocks",
    )),
    (1, ("num_layers_per_stack", "topk_group", "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")),
)  # fmt: skip
QUERY_HEADS = (
    "num_attention_heads", "n_head", "n_heads", "num_attention_heads_per_layer", "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
LAYER_NUMBERS = ("moe_layers", "mlp_only_layers", "full_attn_idxs", "cross_attention_layers")


def miniature(base: PreTrainedModel) -> PreTrainedModel:
    """A random float32 copy in small, on the CPU.

    Raises:
        Exception: of any kind, where none can be built by changing sizes in the config; the class itself raises it.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        model = type(base)(shrunk(base.config)).float().eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(std=SPREAD) if weight.ndim > 1 else weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of a small copy; sub-configs are shrunk likewise."""
    layers, kept = _layers(config)
    said = {k: v for k, v in config.to_dict().items() if v and not k.startswith("_")}
    small = {key: type(said[key])(length) for length, keys in LENGTHS for key in keys if said.get(key)}
    small |= {key: _sized(said[key], size) for size, keys in SIZES for key in keys if said.get(key)}
    small |= {key: _sized(said[key], HEADS) for key in QUERY_HEADS if said.get(key)}
    queries = next((said[k] for k in QUERY_HEADS if said.get(k)), None)
    small |= {key: min(said[key], HEADS if said[key] == queries else 2) for key in KEY_HEADS if said.get(key)}
    if "qk_rope_head_dim" in said:
        small |= {k: s for k, s in (("qk_head_dim", 2 * RANK), ("head_dim", RANK)) if k in said}
    width = small.get("head_dim") or small.get("hidden_size", WIDTH) // small.get("num_attention_heads", HEADS)
    for key, value in said.items():
        if key in LAYERS:
            small[key] = kept
        elif key in LAYER_NUMBERS:
            small[key] = [i for i in value if i < kept]
        elif isinstance(value, (list, tuple)) and len(value) == layers:
            small[key] = small.get(key, value)[:kept]
        elif key == "rope_parameters":
            small[key] = _shrunk_rope(value, width)
        elif key.endswith(("_token_id", "_index", "_token_ids")):  # within the vocabulary
            small[key] = [min(i, VOCAB - 1) for i in value] if isinstance(value, list) else min(value, VOCAB - 1)
    if "num_kv_shared_layers" in said:
        small["num_kv_shared_layers"] = kept // 2
    if "max_window_layers" in said:
        small["max_window_layers"] = kept if said["max_window_layers"] >= layers else 1
    if getattr(config, "is_heterogeneous", False):  # layers differ in size
        own = {int(i): layer for i, layer in said.get("per_layer_config", {}).items()}
        small["per_layer_config"] = {
            i: {k: small.get(k, v) for k, v in layer.items()} for i, layer in own.items() if i < kept
        }
        made = type(config).from_dict({**config.to_dict(), **small})
    else:
        made = copy.deepcopy(config)
        for key, value in small.items():
            setattr(made, key, value)
    for key in config.sub_configs:
        if isinstance(part := getattr(config, key, None), PreTrainedConfig):
            setattr(made, key, shrunk(part))
    made._attn_implementation = "eager"
    return made


def _sized(was: Any, size: int) -> Any:
    """A size, or one for each layer, no larger than it was."""
    return [_sized(w, size) for w in was] if isinstance(was, (list, tuple)) else type(was)(min(was, size))


def _layers(config: PreTrainedConfig) -> tuple[int, int]:
    """How many layers there are, and how many of the first ones the copy keeps: until every kind has been, at least two."""
    layers = next((n for k in LAYERS if (n := getattr(config, k, None))), 0)
    lists = [v for v in config.to_dict().values() if isinstance(v, (list, tuple))]
    kinds = [str(kind) for kind in zip(*(v for v in lists if len(v) == layers), strict=True)]
    kept = 1 + max(map(kinds.index, kinds), default=0)
    repeated = [v for v in lists if len(v) < layers and all(isinstance(k, str) for k in v)]
    cycle = max(map(len, repeated), default=0)
    kept = min(max(2, kept, cycle), MOST_LAYERS, layers)
    shared = bool(getattr(config, "num_kv_shared_layers", None))
    return layers, min(2 * kept, layers) if shared else kept


def _shrunk_rope(rope: dict[str, Any], width: int) -> dict[str, Any]:
    """RoPE's parameters, for all layers or by their kind, of heads ``width`` wide."""
    small, frequencies = dict(rope), int(width * rope.get("partial_rotary_factor", 1.0)) // 2
    for key, value in rope.items():
        if isinstance(value, dict):
            small[key] = _shrunk_rope(value, width)
        elif key in ("short_factor", "long_factor"):  # one for each frequency
            small[key] = value[:frequencies]
        elif key == "mrope_section":  # they sum to the frequencies
            third = frequencies // 3
            small[key] = [frequencies - 2 * third, third, third]
        elif key == "original_max_position_embeddings":
            small[key] = SWITCH
    return small
