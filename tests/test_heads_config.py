"""config.json of heads and of models: what is read of it is checked, and named where it is wrong; all else is let be."""

import json

import pytest
from conftest import tiny_base, tiny_heads
from safetensors.torch import save_file
from test_checkpoint import same, save_base

from medusa_runtime import InputError, MedusaModel
from medusa_runtime.heads.checkpoint import load_heads, save_heads
from medusa_runtime.heads.headformats import medusa_state


@pytest.fixture
def base():
    return tiny_base("llama")


ODD = ["four", None, float("nan"), 4.5, True, [4], {"is": 4}, -1]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("field", ["medusa_num_heads", "medusa_num_layers", "hidden_size", "vocab_size", "version"])
def test_numbers_in_a_heads_config_are_checked_by_name(tmp_path, base, field, value):
    save_heads(tiny_heads(base), tmp_path, base_model="somewhere")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    for read in (load_heads, MedusaModel.from_pretrained):
        with pytest.raises(InputError, match=rf'config\.json: field "{field}" (is|must be) .*correct it'):
            read(str(tmp_path))


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("field", ["num_heads", "num_hidden_layers", "truncated_vocab_size"])
def test_numbers_in_a_vllm_config_are_checked_by_name(tmp_path, base, field, value):
    heads = tiny_heads(base)
    save_heads(heads, tmp_path, base_model="somewhere", form="vllm")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    if (field, value) == ("truncated_vocab_size", None):  # vLLM's own default
        assert same(load_heads(str(tmp_path)), heads)
        return
    with pytest.raises(InputError, match=rf'config\.json: field "{field}" (is|must be) '):
        load_heads(str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("medusa_fc_bias", 1), ("medusa_fc_bias", None), ("original_lm_head", "false"), ("original_lm_head", []),
        ("num_heads", 0),
        ("vocab_size", 0),
        ("base_model_name_or_path", None), ("base_model_name_or_path", 7), ("base_model_name_or_path", ""), ("base_model_name_or_path", ["a"]),
    ],
)  # fmt: skip
def test_other_fields_of_a_heads_config_are_checked_by_name(tmp_path, base, field, value):
    save_heads(tiny_heads(base), tmp_path, base_model="somewhere", form="vllm")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(InputError, match=rf'config\.json: field "{field}" (is|must be) '):
        MedusaModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"medusa_num_heads": 5}, "says medusa_num_heads 5, but the weights are of 4"),
        ({"medusa_num_layers": 2}, "says medusa_num_layers 2, but the weights are of 1"),
        ({"hidden_size": 64}, "says hidden_size 64, but the weights are of 32"),
        ({"hidden_size": 16}, "says hidden_size 16, but the weights are of 32"),
    ],
)
def test_heads_of_which_a_part_is_missing_are_told_by_their_config(tmp_path, base, said, words):
    save_heads(tiny_heads(base), tmp_path, base_model="somewhere")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    with pytest.raises(InputError, match=words):
        load_heads(str(tmp_path))
    path.write_text(json.dumps({"medusa_num_heads": 2, "base_model_name_or_path": "b", "anything": {"else": None}}))
    assert load_heads(str(tmp_path)).num_heads == 4, "more than said is what there is"


def test_a_models_own_fields_beside_heads_are_let_be(tmp_path, base):
    """num_hidden_layers is blocks a head for vLLM, and layers for a model."""
    heads = tiny_heads(base)
    save_base(base, tmp_path)
    save_file(medusa_state(heads), tmp_path / "medusa_lm_head.safetensors")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_heads": [4, 4], "version": "1.0"}))
    model = MedusaModel.from_pretrained(tmp_path, device="cpu")
    assert same(model.heads, heads)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", "wide"), ("num_hidden_layers", None), ("num_attention_heads", 0), ("model_type", ["llama"]), ("dtype", "float3")],
)  # fmt: skip
def test_a_models_config_that_transformers_cannot_read_is_told(tmp_path, base, field, value):
    save_base(base, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(InputError, match="cannot be loaded as a causal LM with its tokenizer"):
        MedusaModel.from_pretrained(tmp_path, require_heads=False)


def test_a_config_that_is_nested_beyond_reason_is_told(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"config\.json: not JSON"):
        MedusaModel.from_pretrained(tmp_path)
