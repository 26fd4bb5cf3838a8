"""The door: a model whose passes here give something else than transformers' is refused, and a good one is left as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from architectures import SAID, build
from conftest import FAMILIES, GROUPED, SMALL, tiny_base, tiny_heads
from torch import nn

from medusa_runtime import InputError, MedusaModel, proof
from medusa_runtime.attention import TreeMask, sdpa
from medusa_runtime.cache.cache import TreeCache
from medusa_runtime.miniature import POSITIONS, SWITCH, WINDOW, miniature
from medusa_runtime.proof import prove
from medusa_tree.bundled import resolve_model
from medusa_tree.training.backbone import load_backbone

Llama = transformers.LlamaForCausalLM


@pytest.fixture(autouse=True)
def _nothing_proven(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})


def llama(kind: type = Llama, **said) -> transformers.PreTrainedModel:
    torch.manual_seed(3)
    return kind(transformers.LlamaConfig(**{**SMALL, **GROUPED, **said})).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_good_model_is_left_as_it_was(family):
    base = tiny_base(family)
    base.set_attn_implementation("sdpa")
    base.train()
    frozen = next(base.parameters()).requires_grad_(False)
    prove(base, family)
    assert list(proof._PROVEN.values()) == [True]
    assert base.config._attn_implementation == "sdpa"
    assert base.training
    assert [w.requires_grad for w in base.parameters()] == [w is not frozen for w in base.parameters()]
    assert not base.get_output_embeddings()._forward_pre_hooks


def test_a_composite_models_parts_keep_their_own_attention():
    base = build("got_ocr2", {})
    before = [m.config._attn_implementation for m in base.modules() if isinstance(m, transformers.PreTrainedModel)]
    prove(base, "got")
    assert [
        m.config._attn_implementation for m in base.modules() if isinstance(m, transformers.PreTrainedModel)
    ] == before


def test_a_miniature_keeps_the_kinds_and_crosses_every_length():
    config = transformers.Gemma3TextConfig(num_hidden_layers=26, sliding_window=4096, max_position_embeddings=131072)
    with torch.device("meta"):
        small = miniature(transformers.Gemma3ForCausalLM(config)).config
    assert small.layer_types == config.layer_types[:6]
    assert {"sliding_attention", "full_attention"} == set(small.layer_types)
    assert (small.sliding_window, small.max_position_embeddings) == (WINDOW, POSITIONS)
    assert config.sliding_window == 4096
    (short, long), (first, last) = proof.BEFORE, proof.BEHIND
    texts = proof.Script.write(64, proof.BEFORE, proof.LONG).texts
    assert short < WINDOW < long
    assert max(map(len, texts)) < SWITCH < first < last
    assert max(map(len, proof.Script.write(64, proof.BEHIND, proof.LONG).texts)) == POSITIONS


class NoPositions(Llama):
    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class OneCacheForTwoLayers(Llama):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.layer_idx = 0


class KeepsAState(Llama):
    """What it says depends on its last pass, too."""

    def __init__(self, config):
        super().__init__(config)
        self.last = 0.0

    def forward(self, *args, use_cache=None, **kwargs):
        out = super().forward(*args, use_cache=use_cache, **kwargs)
        out.logits = out.logits + self.last
        self.last = out.logits[:1, -1:] if use_cache else 0.0
        return out


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (NoPositions, "NoPositions is not run as transformers runs it: in a step without a tree"),
        (OneCacheForTwoLayers, "OneCacheForTwoLayers (is not run as|does not run with)"),
        (KeepsAState, "KeepsAState is not run as transformers runs it: in a step without a tree"),
    ],
)
def test_a_class_that_does_something_else_is_refused_by_name(kind, words):
    base = llama(kind)
    with pytest.raises(InputError, match=f"odd: {words}"):
        MedusaModel(base, tiny_heads(base), name="odd")
    assert base.config._attn_implementation != "medusa_tree"


def siblings_are_seen(patch):
    of = TreeMask.of
    patch.setattr(
        TreeMask,
        "of",
        lambda tree, device: replace(m := of(tree, device), ancestors=m.ancestors.new_ones(m.ancestors.shape)),
    )


def paths_are_not_kept(patch):
    patch.setattr(TreeCache, "keep", lambda self, path, accepted: None)


def windows_are_not_looked_at(patch):
    attend = sdpa.attend
    patch.setattr(sdpa, "attend", lambda *args: attend(*args[:5]))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (siblings_are_seen, "in a pass over a tree"),
        (paths_are_not_kept, "in a pass over a tree"),
        (windows_are_not_looked_at, "in a pass over two prompts, .* from token 6 of the longer sequence on, behind the sliding_window of 6"),
    ],
)  # fmt: skip
def test_each_part_of_a_pass_is_proven(fault, words, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(InputError, match=words):
        prove(tiny_base("mistral"), "mistral")


class OnlyAsAWhole(Llama):
    """No miniature can be built of its config."""

    def __init__(self, config, whole=False):
        if not whole:
            raise TypeError("not in small")
        super().__init__(config)


class OnlyAsAWholeAndOdd(OnlyAsAWhole, NoPositions):
    pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_miniature_can_be_built_of_is_proven_on_its_own_weights(dtype):
    for kind in (OnlyAsAWhole, OnlyAsAWholeAndOdd):
        base = tiny_base("llama").to(dtype)
        own = kind(base.config, whole=True).eval().to(dtype)
        own.load_state_dict(base.state_dict())
        if kind is OnlyAsAWhole:
            prove(own, "whole")
            assert list(proof._PROVEN.values()) == [False]
        else:
            with pytest.raises(InputError, match=r"OnlyAsAWholeAndOdd is not run .* logits differ by"):
                prove(own, "whole")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "exaone_moe", "solar_open", "qwen2_moe"])
def test_rounding_refuses_no_model(name, dtype):
    """Among them those whose experts change with the order of additions."""
    prove(build(name, {}).to(dtype), name)


def test_logits_that_overflow_are_for_decoding_to_say():
    base = tiny_base("llama")
    nn.init.constant_(base.model.layers[0].self_attn.v_proj.weight, float("inf"))
    with pytest.raises(InputError, match="logits are NaN or infinite"):
        MedusaModel(base).generate([[3, 4]], max_new_tokens=2)


def test_a_model_that_transformers_itself_cannot_run_is_refused():
    base = build("gemma4_unified_assistant", SAID["gemma4_unified_assistant"])
    with pytest.raises(InputError, match="transformers' own forward of Gemma4UnifiedAssistantForCausalLM fails"):
        prove(base, "draft")


def test_a_large_model_is_proven_as_a_miniature_alone(monkeypatch):
    """On a CPU, a pass over a large model's weights would take too long, and an offloaded one's would all be fetched."""
    monkeypatch.setattr(proof, "AFFORDABLE", 0.0)
    base = tiny_base("llama")
    base.register_forward_pre_hook(lambda *args: pytest.fail("the model itself was run"))
    prove(base, "large")
    offloaded = llama().to("meta")
    prove(offloaded, "offloaded")


def test_a_config_is_proven_once(monkeypatch):
    prove(tiny_base("llama"), "first")
    monkeypatch.setattr(proof, "miniature", lambda base: pytest.fail("proven before"))
    prove(tiny_base("llama", seed=4), "second")


def test_training_stands_before_the_same_door(tmp_path):
    sizes = {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    window = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}
    config = transformers.Qwen2MoeConfig(**SMALL, **sizes, **window, shared_expert_intermediate_size=32)
    folder = Path(resolve_model("demo", None)[0])
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    transformers.Qwen2MoeForCausalLM(config).save_pretrained(tmp_path)
    words = f"{tmp_path}: Qwen2MoeForCausalLM is not run as transformers runs it"
    with pytest.raises(InputError, match=words):
        load_backbone(str(tmp_path), torch.device("cpu"), None, None, False)
    with pytest.raises(InputError, match=words):
        MedusaModel.from_pretrained(tmp_path, require_heads=False, device="cpu")
