"""Every causal LM that transformers can build, tiny: either its greedy text is transformers', or it is refused by name.

``python tests/architectures.py`` walks all of them and brings the list in docs/runtime.md up to date.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import tiny_heads
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from medusa_runtime import CandidateTree, InputError, MedusaModel
from medusa_runtime.miniature import POSITIONS, SPREAD, SWITCH, VOCAB, WINDOW, shrunk
from medusa_runtime.proof import FAULTS, own_attention

DOCS, BEGIN, END = Path(__file__).parents[1] / "docs" / "runtime.md", "<!-- architectures -->\n", "<!-- end -->\n"
TREE = CandidateTree(((0,), (1,), (0, 0), (2,), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0, 0, 0, 0)))
NEAR_TIE = 1e-4  # of the logits' standard deviation: in float32 either of two tokens may then be the likelier
# Lengths of two prompts, and new tokens: across a window and before a RoPE switch; then behind it, up to the last position.
CASES = (((WINDOW - 3, WINDOW + 2), 8), ((SWITCH + 3, POSITIONS - 10), 10))

MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [22, 21, 21]}
DECODER = {"is_decoder": True}
# What a config's defaults leave open, and published models say.
SAID: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
         "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"), DECODER),
    "cohere_compass_text": {"rope_parameters": {"full_attention": MROPE, "sliding_attention": MROPE}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gemma4_unified_assistant": {"text_config": {"model_type": "gemma4_unified_text"}},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "reformer": {**DECODER, "axial_pos_embds_dim": [32, 32], "axial_pos_shape": [8, 8]},
    "xmod": {**DECODER, "default_language": "en_XX"},
}  # fmt: skip
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 4096,
        "short_factor": [1.0 + i / 48 for i in range(48)], "long_factor": [2.0 + i for i in range(48)],
        "factor": 32.0, "short_mscale": 1.1, "long_mscale": 1.3,
    },
    "original_max_position_embeddings": 4096,
}  # fmt: skip
WINDOWED = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 1}
# Other configs of the same classes: windows, RoPE whose frequencies depend on the length, shared caches.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama (dynamic RoPE)": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama (YaRN)": ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 2048}}),
    "llama (longrope)": ("llama", {"head_dim": 96, **LONGROPE}),
    "phi3 (longrope)": ("phi3", LONGROPE),
    "phimoe (longrope)": ("phimoe", {"head_dim": 96, **LONGROPE}),
    "minicpm3 (longrope)": ("minicpm3", LONGROPE),
    "phi3 (sliding window)": ("phi3", {"sliding_window": 2047}),
    "mixtral (sliding window)": ("mixtral", {"sliding_window": 4096}),
    "starcoder2 (sliding window)": ("starcoder2", {"sliding_window": 4096}),
    "qwen2 (sliding window)": ("qwen2", WINDOWED),
    "qwen2_moe (sliding window)": ("qwen2_moe", WINDOWED),
    "qwen3 (sliding window)": ("qwen3", WINDOWED),
    "qwen3_moe (sliding window)": ("qwen3_moe", WINDOWED),
    "doge (sliding window)": ("doge", {"sliding_window": 1024}),
    "bert (no decoder)": ("bert", {}),
    "minimax_m3_vl_text (sparse)": ("minimax_m3_vl_text", {"layer_types": ["full_attention", "minimax_m3_sparse"] * 30}),
    "gemma4_text (shared caches)": ("gemma4_text", {"num_kv_shared_layers": 10}),
    "gpt2 (scores scaled by layer)": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
}  # fmt: skip
# What cannot be built here, and why. A new one does not join them by itself: the test fails.
NOT_BUILT = {
    "dbrx": "transformers' config lacks its RoPE base",
    "gemma3n": "its vision tower needs the package timm",
    "musicgen": "its default config is not valid",
    "musicgen_melody": "its default config is not valid",
    "qwen4_exp": "its default config leaves sizes open",
    "qwen4_exp_text": "its default config leaves sizes open",
}


@dataclass(frozen=True)
class Outcome:
    """kind: equal, refused or not built; or different, which must not be. why: in words. distinct: of a text's tokens, the share
    that are not repeated."""

    label: str
    kind: str
    why: str = ""
    distinct: float = 0.0


def build(name: str, said: dict[str, Any]) -> PreTrainedModel:
    """A tiny random model, whose output layer is its own, so that texts do not repeat their last token; of a class that is
    refused at the first look, on no device."""
    config = shrunk(CONFIG_MAPPING[name](**said))
    config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]), torch.device("cpu" if routed(name) else "meta"):
        torch.manual_seed(5)
        base = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for weight in base.parameters():
                weight.normal_(std=SPREAD) if weight.ndim > 1 else weight.add_(torch.randn_like(weight), alpha=0.1)
    base.generation_config.eos_token_id = None
    return base


def routed(name: str) -> bool:
    kind = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])
    return getattr(kind, "_supports_attention_backend", False)


def references(base: PreTrainedModel, prompts: list[list[list[int]]]) -> list[list[list[int]]]:
    """transformers' own greedy text of each prompt alone, by attention as the class is written."""
    texts: list[list[list[int]]] = []
    with own_attention(base):
        base.set_attn_implementation("eager")
        for pair, (_, new) in zip(prompts, CASES, strict=True):
            texts.append([])
            for prompt in pair:
                ids = torch.tensor([prompt])
                mask = torch.ones_like(ids)
                out = base.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
                texts[-1].append(out[0, len(prompt) :].tolist())
    return texts


def walk(name: str, said: dict[str, Any], label: str) -> Outcome:
    """Build it, and compare: plain and with a tree, alone and with another prompt of another length."""
    try:
        base = build(name, said)
    except FAULTS as error:
        return Outcome(label, "not built", f"{type(error).__name__}: {error}")
    try:
        model = MedusaModel(base, tiny_heads(base) if routed(name) else None, name=name)
    except InputError as error:
        return Outcome(label, "refused", str(error).removeprefix(f"{name}: "))
    generator = torch.Generator().manual_seed(7)
    prompts = [
        [torch.randint(4, VOCAB - 1, (n,), generator=generator).tolist() for n in lengths] for lengths, _ in CASES
    ]
    want = references(base, prompts)
    for pair, (_, new), texts in zip(prompts, CASES, want, strict=True):
        for tree in (CandidateTree(), TREE):
            for rows, right in ((pair, texts), (pair[1:], texts[1:])):
                got = model.generate(rows, tree=tree, max_new_tokens=new, eos_token_id=[]).tokens
                for prompt, a, b in zip(rows, right, got, strict=True):
                    if a != b and not near_tie(base, prompt, a, b):
                        batch = f"batch {len(rows)}, {tree.nodes} nodes, prompt of {len(prompt)}"
                        return Outcome(label, "different", f"{batch}: {b}, not {a}")
    flat = [t for texts in want for t in texts]
    return Outcome(label, "equal", distinct=sum(len(set(t)) / len(t) for t in flat) / len(flat))


def near_tie(base: PreTrainedModel, prompt: list[int], right: list[int], got: list[int]) -> bool:
    """Whether texts part where two tokens are so near that the order of additions may decide."""
    at = next(i for i, (a, b) in enumerate(zip(right, got, strict=True)) if a != b)
    with own_attention(base), torch.no_grad():
        base.set_attn_implementation("eager")
        logits = base(input_ids=torch.tensor([[*prompt, *right[:at]]]), use_cache=False).logits[0, -1]
    return float(logits[right[at]] - logits[got[at]]) < NEAR_TIE * float(logits.std())


@cache
def outcome(label: str) -> Outcome:
    """Of an architecture, or a variant of one."""
    name, said = VARIANTS[label] if label in VARIANTS else (label, SAID.get(label, {}))
    return walk(name, said, label)


LABELS = [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]
REASONS = {  # what an error's words come to
    "attention interface": "their attention does not go through transformers' attention interface",
    "layers, which": "layers of other kinds",
    "attention sinks": "attention sinks",
    "own forward": "draft models, which cannot run without another model's cache",
    "called without tree_context": "layers that do not hand on what their attention is told",
    "does not run with": "layers that share caches, or are more than the config says",
    "is not run as": "what they give here is not what they give in transformers (a window or a mask only in transformers' mask, "
    "positions that do not count from 0, a state beside the KV cache)",
}


def summary() -> str:
    """The section of docs/runtime.md that this file writes."""
    seen = [outcome(label) for label in LABELS]
    kinds = defaultdict(list)
    for o in seen:
        kinds[o.label in VARIANTS, o.kind].append(o)
    counts = ", ".join(f"**{len(kinds[False, kind])} {kind}**" for kind in ("equal", "refused", "not built"))
    lines = [
        f"transformers {transformers.__version__}, {len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)} architectures: {counts}.",
        "",
    ]
    lines += ["Equal: " + ", ".join(f"`{o.label}`" for o in kinds[False, "equal"]) + ".", "", "Refused:", ""]
    by_reason = defaultdict(list)
    for o in kinds[False, "refused"]:
        by_reason[next(words for part, words in REASONS.items() if part in o.why)].append(f"`{o.label}`")
    lines += [f"- {reason} ({len(names)}): {', '.join(names)}." for reason, names in by_reason.items()]
    lines += [
        "",
        "Not built: " + "; ".join(f"`{o.label}` ({NOT_BUILT[o.label]})" for o in kinds[False, "not built"]) + ".",
        "",
    ]
    lines += [
        f"Other configs, {kind}: " + ", ".join(o.label for o in kinds[True, kind]) + "."
        for kind in ("equal", "refused")
    ]
    return "\n".join(lines) + "\n"


def in_docs(text: str) -> tuple[str, str, str]:
    """What stands before the section, in it, and behind it."""
    before, rest = text.split(BEGIN)
    held, behind = rest.split(END)
    return before + BEGIN, held, END + behind


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    before, _, behind = in_docs(DOCS.read_text())
    DOCS.write_text(before + summary() + behind)
