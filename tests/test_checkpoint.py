"""Head formats: each written and read back bit for bit, and what is not heads refused by name."""

import json

import pytest
import torch
from conftest import tiny_base, tiny_heads
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from medusa_runtime import CandidateTree, InputError, MedusaHeads, MedusaModel
from medusa_runtime.heads.checkpoint import FORMATS, load_heads, save_heads
from medusa_runtime.heads.headformats import medusa_state, vllm_state
from medusa_runtime.step import propose
from medusa_tree.profiling.profile import profile
from medusa_tree.traces.replay import replay


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def save_base(base, folder, split=False):
    """A model with a tokenizer of numbers; ``split`` makes each word one of its own, else a text is one token."""
    base.save_pretrained(folder)
    words = Tokenizer(WordLevel({str(i): i for i in range(base.config.vocab_size)}, unk_token="0"))
    if split:
        words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0").save_pretrained(folder)


@pytest.fixture
def base():
    return tiny_base("llama")


@pytest.mark.filterwarnings("ignore:FasterDecoding")
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_heads_repository_round_trips(tmp_path, base, blocks, kind):
    heads = tiny_heads(base, blocks=blocks).bfloat16()
    save_heads(heads, tmp_path, base_model="somewhere")
    if kind == "pt":
        (tmp_path / "medusa_lm_head.safetensors").unlink()
        torch.save(medusa_state(heads), tmp_path / "medusa_lm_head.pt")
    read = load_heads(str(tmp_path))
    assert (read.num_heads, read.num_blocks) == (4, blocks)
    assert same(read, heads)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["medusa_num_heads"], config["medusa_num_layers"], config["base_model_name_or_path"]) == (
        4,
        blocks,
        "somewhere",
    )


def shared_heads(base, blocks=1, token_map=None):
    """Heads without output layers, disturbed in their blocks."""
    weight = base.get_output_embeddings().weight
    heads = MedusaHeads(weight.shape[1], weight.shape[0], 4, blocks, own_output=False, token_map=token_map)
    torch.manual_seed(2)
    with torch.no_grad():
        heads.block_weight.normal_(std=0.1)
        heads.block_bias.normal_(std=0.1)
    heads.share_output(weight)
    return heads


def reduced_heads(base):
    """Heads with output layers of their own over half of the vocabulary."""
    weight = base.get_output_embeddings().weight
    keep = torch.randperm(weight.shape[0], generator=torch.Generator().manual_seed(0))[: weight.shape[0] // 2]
    heads = MedusaHeads(weight.shape[1], weight.shape[0], 3, token_map=keep)
    heads.init_from_output_layer(weight)
    return heads


KINDS = {
    "own": lambda base: tiny_heads(base, blocks=2), "shared": shared_heads, "shared, two blocks": lambda base: shared_heads(base, 2),
    "reduced": reduced_heads, "shared and reduced": lambda base: shared_heads(base, 1, torch.tensor([5, 3, 9, 1, 30, 7, 40, 41, 2, 0])),
}  # fmt: skip
CARRIES = {"medusa": {"own"}, "pt": {"own"}, "tgi-v2": {"shared"}, "vllm": set(KINDS)}


@pytest.mark.filterwarnings("ignore:FasterDecoding")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_round_trips_bit_for_bit_or_says_what_it_cannot_carry(tmp_path, base, form, kind):
    heads, output = KINDS[kind](base).bfloat16(), base.get_output_embeddings().weight.bfloat16()
    if kind not in CARRIES[form]:
        with pytest.raises(InputError, match=r"use vllm|use (medusa|tgi-v2) or vllm"):
            save_heads(heads, tmp_path, base_model="somewhere", form=form, shared=output)
        assert list(tmp_path.iterdir()) == []
        return
    save_heads(heads, tmp_path, base_model="somewhere", form=form, shared=output)
    read = load_heads(str(tmp_path))
    assert same(read, heads)
    assert read.vocab_size == heads.vocab_size
    model = MedusaModel(base, read)
    assert model.medusa_heads(torch.randn(2, heads.hidden_size)).shape == (heads.num_heads, 2, heads.rows)


def test_vllm_gets_the_keys_and_settings_it_reads(tmp_path, base):
    output = base.get_output_embeddings().weight
    assert set(vllm_state(tiny_heads(base, heads=1))) == {
        "blocks.0.layers.0.weight",
        "blocks.0.layers.0.bias",
        "lm_heads.0.weight",
    }
    mapped = torch.tensor([4, 2, 11])
    heads = shared_heads(base, token_map=mapped)
    save_heads(heads, tmp_path, base_model="b", form="vllm", shared=output)
    config = json.loads((tmp_path / "config.json").read_text())
    wanted = {
        "model_type": "medusa",
        "num_heads": 4,
        "num_hidden_layers": 1,
        "vocab_size": 48,
        "truncated_vocab_size": 3,
        "medusa_fc_bias": True,
        "original_lm_head": True,
    }
    assert wanted.items() <= config.items()
    state = load_file(tmp_path / "model.safetensors")
    assert torch.equal(state["token_map"], mapped)
    assert torch.equal(state["lm_heads.0.weight"], output[mapped]), (
        "rows for the draft vocabulary, as vLLM would cut them"
    )


def test_vllm_heads_with_whole_output_layers_beside_a_token_map_are_cut(tmp_path, base):
    heads, mapped = tiny_heads(base, heads=2), torch.tensor([4, 2, 11])
    save_heads(heads, tmp_path, base_model="b", form="vllm")
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "token_map": mapped}, tmp_path / "model.safetensors")
    read = load_heads(str(tmp_path))
    assert torch.equal(read.output_weight, heads.output_weight[:, mapped])
    x = torch.randn(3, heads.hidden_size)
    assert torch.allclose(read(x), heads(x)[:, :, mapped])


def test_heads_that_share_the_output_layer_compute_with_it(base):
    heads, x = shared_heads(base, blocks=2), torch.randn(5, 32)
    own = MedusaHeads(32, 48, 4, 2)
    own.init_from_output_layer(base.get_output_embeddings().weight)
    with torch.no_grad():
        own.block_weight.copy_(heads.block_weight)
        own.block_bias.copy_(heads.block_bias)
    assert torch.allclose(heads(x), own(x), atol=1e-6)
    assert torch.allclose(heads(x, 2), own(x, 2), atol=1e-6)
    with pytest.raises(RuntimeError, match="share_output"):
        MedusaHeads(32, 48, 1, own_output=False)(x)


@pytest.mark.parametrize("kind", ["shared", "reduced", "shared and reduced"])
def test_cheaper_heads_decode_the_plain_text(base, kind):
    """Whatever the heads guess from, the text is the model's; a reduced vocabulary proposes only its own tokens."""
    heads = KINDS[kind](base)
    model = MedusaModel(base, heads)
    tree = CandidateTree(((0,), (1,), (0, 0), (2,), (0, 1), (0, 0, 0)))
    prompts = [[5, 6, 7], [9, 8, 30, 4]]
    plain = model.generate(prompts, max_new_tokens=40, eos_token_id=[])
    with_tree = model.generate(prompts, tree=tree, max_new_tokens=40, eos_token_id=[])
    assert with_tree.tokens == plain.tokens
    proposed = propose(heads, torch.randn(6, 32), 2, 4)
    if heads.token_map is not None:
        assert set(proposed.flatten().tolist()) <= set(heads.token_map.tolist())
    ranks = profile(model, prompts, [True, False], max_new_tokens=40, candidates=4)
    assert replay(tree, ranks).acceptance_length == pytest.approx(with_tree.acceptance_length)


def test_bad_token_maps_and_formats_are_named(tmp_path, base):
    output = base.get_output_embeddings().weight
    with pytest.raises(InputError, match="token_map names tokens outside of the 48"):
        MedusaModel(
            base,
            shared_heads(base, token_map=torch.tensor([1, 2, 3])).__class__(32, 48, 1, token_map=torch.tensor([1, 48])),
        )
    with pytest.raises(InputError, match="formats of heads: medusa, pt, tgi-v2, vllm"):
        save_heads(tiny_heads(base), tmp_path, "b", form="onnx")
    with pytest.raises(InputError, match="hand over the model's"):
        save_heads(shared_heads(base), tmp_path, "b", form="vllm")
    save_heads(shared_heads(base), tmp_path / "v", "b", form="vllm", shared=output)
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    del config["vocab_size"]
    (tmp_path / "v" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match='field "vocab_size" is missing'):
        load_heads(str(tmp_path / "v"))


def test_the_published_keys_are_the_ones_written(base):
    keys = medusa_state(tiny_heads(base, heads=1, blocks=2))
    assert list(keys) == ["0.0.linear.weight", "0.0.linear.bias", "0.1.linear.weight", "0.1.linear.bias", "0.2.weight"]


def test_the_batched_heads_compute_what_separate_modules_would(base):
    heads = tiny_heads(base, blocks=2)
    state, x = medusa_state(heads), torch.randn(5, heads.hidden_size)
    for k in range(heads.num_heads):
        y = x
        for j in range(2):
            y = y + torch.nn.functional.silu(y @ state[f"{k}.{j}.linear.weight"].T + state[f"{k}.{j}.linear.bias"])
        torch.testing.assert_close(heads(x)[k], y @ state[f"{k}.2.weight"].T)
    torch.testing.assert_close(heads(x, 2), heads(x)[:2])


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_full_checkpoint_carries_its_heads(tmp_path, base, shard):
    heads = tiny_heads(base)
    save_base(base, tmp_path)
    full = {
        **{k: v.clone() for k, v in base.state_dict().items()},
        **{f"medusa_head.{k}": v for k, v in medusa_state(heads).items()},
    }
    base.save_pretrained(tmp_path, state_dict=full, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    model = MedusaModel.from_pretrained(tmp_path, device="cpu")
    assert same(model.heads, heads)
    assert (
        model.generate([[3, 4, 5]], max_new_tokens=8).tokens
        == MedusaModel(base).generate([[3, 4, 5]], max_new_tokens=8).tokens
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": ["a"]}', "{}"])
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json: not an index"):
        load_heads(str(tmp_path))


def test_a_heads_repository_names_its_base(tmp_path, base):
    save_base(base, tmp_path / "base")
    save_heads(tiny_heads(base), tmp_path / "heads", base_model=str(tmp_path / "base"))
    model = MedusaModel.from_pretrained(tmp_path / "heads", device="cpu", dtype="float32")
    assert model.name == str(tmp_path / "base")
    assert model.num_heads == 4


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_that_could_run_code_is_refused(tmp_path, capsys):
    torch.save({"0.0.linear.weight": Evil()}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(InputError, match="holds more than plain tensors"):
        load_heads(str(tmp_path))
    assert "never run" not in capsys.readouterr().out


def drop(key):
    return lambda s: s.pop(key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("1.0.linear.bias"), "1.0.linear.bias is missing"),
        (drop("0.1.weight"), "head 0 has no output layer"),
        (
            lambda s: s.update({"2.1.weight": torch.zeros(7, 32)}),
            "2.1.weight has shape \\(7, 32\\), expected \\(48, 32\\)",
        ),
        (lambda s: s.update({"lm_head.weight": torch.zeros(1)}), "'lm_head.weight' is not of the form"),
        (lambda s: s.clear(), "not Medusa heads"),
    ],
)
def test_states_that_are_not_heads_are_named(tmp_path, base, change, words):
    state = medusa_state(tiny_heads(base))
    change(state)
    save_file(state, tmp_path / "medusa_lm_head.safetensors")
    with pytest.raises(InputError, match=words):
        load_heads(str(tmp_path))


@pytest.mark.parametrize("name", ["medusa_lm_head.safetensors", "medusa_lm_head.pt"])
def test_unreadable_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not tensors")
    with pytest.raises(InputError, match=name):
        load_heads(str(tmp_path))


def test_missing_models_and_heads_are_named(tmp_path, base):
    with pytest.raises(InputError, match="no such folder"):
        MedusaModel.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        MedusaModel.from_pretrained(tmp_path / "empty")
    save_base(base, tmp_path / "base")
    with pytest.raises(InputError, match="no Medusa heads there"):
        MedusaModel.from_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        MedusaModel.from_pretrained(tmp_path / "base")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [({"dtype": "int3"}, "int3"), ({"device": "cuda:99"}, "cuda:99"), ({"device": "nonsense"}, "nonsense")],
)
def test_devices_and_dtypes_that_are_not_there_are_named(tmp_path, base, kwargs, words):
    save_base(base, tmp_path)
    with pytest.raises(InputError, match=words):
        MedusaModel.from_pretrained(tmp_path, require_heads=False, **kwargs)


def put(state, folder, config=None, name="medusa_lm_head.safetensors"):
    """A file of heads as somebody else may have written it; the folder."""
    folder.mkdir(exist_ok=True)
    (torch.save if name.endswith(".pt") else save_file)(state, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


VLLM = {"model_type": "medusa", "vocab_size": 48}


def with_one(key, value):
    """A change that puts one odd number into one weight."""

    def change(state):
        state[key] = state[key].clone()
        state[key].view(-1)[7] = value

    return change


@pytest.mark.parametrize("key", ["1.0.linear.weight", "0.0.linear.bias", "3.1.weight"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_named(tmp_path, base, key, number, dtype):
    state = {k: v.to(dtype) for k, v in medusa_state(tiny_heads(base)).items()}
    with_one(key, number)(state)
    with pytest.raises(InputError, match=f"safetensors: {key} holds NaN or infinite numbers"):
        load_heads(put(state, tmp_path))


def test_a_vllm_file_that_is_not_finite_is_named(tmp_path, base):
    state = vllm_state(tiny_heads(base))
    with_one("lm_heads.2.weight", float("nan"))(state)
    with pytest.raises(InputError, match=r"lm_heads\.2\.weight holds NaN"):
        load_heads(put(state, tmp_path, VLLM, "model.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_heads_of_any_floating_dtype_are_read_as_they_are(tmp_path, base, dtype):
    heads = tiny_heads(base).to(dtype)
    save_heads(heads, tmp_path, "b")
    assert same(load_heads(str(tmp_path)), heads)
    assert MedusaModel(base, load_heads(str(tmp_path))).heads.block_weight.dtype == torch.float32


def test_heads_of_several_dtypes_are_read_in_the_widest(tmp_path, base):
    heads = tiny_heads(base).bfloat16()
    state = medusa_state(heads)
    exact = torch.full((32,), 1 + 2**-20)
    state["1.0.linear.bias"] = exact
    read = load_heads(put(state, tmp_path))
    assert torch.equal(read.block_bias[1, 0], exact)
    assert torch.equal(read.output_weight, heads.output_weight.float())


@pytest.mark.parametrize("name", ["medusa_lm_head.safetensors", "medusa_lm_head.pt"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            torch.zeros(32, 32, dtype=torch.float8_e4m3fn),
            "has dtype float8_e4m3fn; heads are read in float16, bfloat16",
        ),
        (torch.zeros(32, 32, dtype=torch.int8), "has dtype int8; heads are read in"),
        (torch.zeros(0, 32), "is empty"),
        (torch.zeros(32, 0), "is empty"),
        (torch.zeros(()), r"has shape \(\), expected 2 axes"),
        (torch.zeros(32), r"has shape \(32,\), expected 2 axes"),
        (torch.zeros(1, 32, 32), r"has shape \(1, 32, 32\), expected 2 axes"),
    ],
)
@pytest.mark.parametrize("key", ["0.0.linear.weight", "2.0.linear.weight"])
def test_tensors_that_heads_cannot_compute_with_are_named(tmp_path, base, name, key, value, words):
    state = {**medusa_state(tiny_heads(base)), key: value}
    with pytest.raises(InputError, match=f"{name}: {key} {words}"):
        load_heads(put(state, tmp_path, name=name))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], "holds list, not a state dict"),
        (torch.zeros(2), "holds Tensor, not a state dict"),
        ({"state_dict": {"0.0.linear.weight": torch.zeros(2, 2)}}, "'state_dict' holds dict, not a tensor"),
        ({"0.0.linear.weight": [1.0, 2.0]}, "'0.0.linear.weight' holds list, not a tensor"),
        ({"epoch": 3, "0.0.linear.weight": torch.zeros(2, 2)}, "'epoch' holds int, not a tensor"),
        ({0: torch.zeros(2, 2)}, "key 0 is no name"),
        ({}, "not Medusa heads"),
        ({"0.0.linear.weight": torch.zeros(2, 2).to_sparse()}, "expected 2 axes of plain numbers"),
        ({"0.0.linear.weight": torch.empty(2, 2, device="meta")}, "expected 2 axes of plain numbers"),
    ],
)
def test_pickles_of_other_things_are_named(tmp_path, content, words):
    with pytest.raises(InputError, match=rf"medusa_lm_head\.pt: .*({words})"):
        load_heads(put(content, tmp_path, name="medusa_lm_head.pt"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_pickle_never_ends_in_a_traceback(tmp_path, base):
    path = tmp_path / "medusa_lm_head.pt"
    torch.save(medusa_state(tiny_heads(base, heads=1)), path, _use_new_zipfile_serialization=False)
    whole, refused = path.read_bytes(), 0
    for at in range(0, 1200, 3):  # the part that says what is where
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        try:
            load_heads(str(tmp_path))
        except InputError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("missing", ["lm_heads.0.weight", "lm_heads.2.weight"])
def test_a_vllm_file_without_one_output_layer_names_it(tmp_path, base, missing):
    state = vllm_state(tiny_heads(base))
    state.pop(missing)
    with pytest.raises(InputError, match=f'{missing} is missing, though there are 4 heads; .*"original_lm_head": true'):
        load_heads(put(state, tmp_path, VLLM, "model.safetensors"))


@pytest.mark.parametrize("missing", ["blocks.0.layers.0.bias", "blocks.3.layers.0.bias", "blocks.1.layers.0.weight"])
def test_a_vllm_file_without_one_block_names_it(tmp_path, base, missing):
    state = vllm_state(tiny_heads(base))
    state.pop(missing)
    with pytest.raises(InputError, match=f"{missing} is missing, though there are 4 heads of 1 block"):
        load_heads(put(state, tmp_path, VLLM, "model.safetensors"))


def test_biases_that_the_config_promises_must_be_there(tmp_path, base):
    state = {key: value for key, value in vllm_state(tiny_heads(base)).items() if "bias" not in key}
    assert not load_heads(put(state, tmp_path, VLLM, "model.safetensors")).block_bias.any()
    with pytest.raises(InputError, match=r"blocks\.0\.layers\.0\.bias is missing"):
        load_heads(put(state, tmp_path, {**VLLM, "medusa_fc_bias": True}, "model.safetensors"))


@pytest.mark.parametrize(
    ("token_map", "words"),
    [
        (torch.tensor([], dtype=torch.int64), r"token_map has shape \(0,\), expected \(tokens,\), at least one"),
        (torch.tensor([[1, 2]]), r"token_map has shape \(1, 2\)"),
        (torch.tensor([1, 48]), r"token_map names token 48 of 48 \(vocab_size\)"),
        (torch.tensor([-1, 4]), "token_map names token -1 of 48"),
        (torch.tensor([4, 2, 4]), "token_map names 3 tokens, only 2 of them distinct"),
        (torch.tensor([4.0, 2.0]), "token_map has dtype float32, expected whole numbers"),
        (torch.ones(48, dtype=torch.bool), "token_map has dtype bool, expected whole numbers"),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_token_maps_that_are_none_are_named(tmp_path, base, token_map, words, shared):
    state = {**vllm_state(tiny_heads(base)), "token_map": token_map}
    with pytest.raises(InputError, match=words):
        load_heads(put(state, tmp_path, {**VLLM, "original_lm_head": shared}, "model.safetensors"))


def test_a_token_map_of_any_whole_dtype_is_read_and_one_that_the_config_promises_must_be_there(tmp_path, base):
    heads = reduced_heads(base)
    config = {**VLLM, "truncated_vocab_size": 24}
    for dtype in (torch.int32, torch.uint8):
        state = {**vllm_state(heads), "token_map": heads.token_map.to(dtype)}
        assert same(load_heads(put(state, tmp_path, config, "model.safetensors")), heads)
    for other, words in (
        ({**state, "token_map": state["token_map"][:20]}, "truncated_vocab_size 24 of 48, but token_map names 20"),
        (
            {k: v for k, v in state.items() if k != "token_map"},
            "truncated_vocab_size 24 of 48, but token_map is missing",
        ),
    ):
        with pytest.raises(InputError, match=words):
            load_heads(put(other, tmp_path, config, "model.safetensors"))


@pytest.mark.parametrize(
    ("add", "words"),
    [
        ("0.3.linear.weight", "0.3.linear.weight is none of the keys of 4 heads of 1 block"),
        ("9999.0.linear.weight", "4.0.linear.weight is missing, though there are 10000 heads"),
        ("123456.0.linear.weight", "'123456.0.linear.weight' is not of the form"),
    ],
)
def test_keys_that_belong_to_no_head_are_named(tmp_path, base, add, words):
    state = {**medusa_state(tiny_heads(base)), add: torch.zeros(32, 32)}
    with pytest.raises(InputError, match=words):
        load_heads(put(state, tmp_path))


def full_checkpoint(folder, base, heads, prefix):
    """The backbone with its heads in shards of 20 kB; the index of what is where."""
    save_base(base, folder)
    own = {f"{prefix}{k}": v for k, v in medusa_state(heads).items()}
    base.save_pretrained(
        folder, state_dict={**{k: v.clone() for k, v in base.state_dict().items()}, **own}, max_shard_size="20KB"
    )
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


@pytest.mark.parametrize("split", [True, False])
def test_a_full_checkpoint_by_modelopt_carries_its_heads(tmp_path, base, split):
    heads = tiny_heads(base, heads=3)
    full_checkpoint(tmp_path, base, heads, "medusa_heads.")
    if not split:
        base.save_pretrained(tmp_path / "whole")
        state = load_file(tmp_path / "whole" / "model.safetensors")
        state |= {f"medusa_heads.{k}": v for k, v in medusa_state(heads).items()}
        save_file(state, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    assert same(load_heads(str(tmp_path if split else tmp_path / "whole")), heads)
    model = MedusaModel.from_pretrained(tmp_path, device="cpu")
    assert same(model.heads, heads)


def test_a_heads_file_by_modelopt_is_read(tmp_path, base):
    heads = tiny_heads(base)
    state = {f"medusa_heads.{k}": v for k, v in medusa_state(heads).items()}
    assert same(load_heads(put(state, tmp_path)), heads)


@pytest.mark.parametrize("prefix", ["medusa_head.", "medusa_heads."])
def test_a_shard_that_the_index_names_must_be_there_and_hold_what_it_says(tmp_path, base, prefix):
    where = full_checkpoint(tmp_path, base, tiny_heads(base, heads=3), prefix)
    shard = where[f"{prefix}2.1.weight"]
    content = load_file(tmp_path / shard)
    save_file({k: v for k, v in content.items() if k != f"{prefix}2.1.weight"}, tmp_path / shard)
    with pytest.raises(
        InputError, match=rf"{shard}: {prefix}2\.1\.weight is missing, though model.safetensors.index.json"
    ):
        load_heads(str(tmp_path))
    (tmp_path / shard).unlink()
    with pytest.raises(InputError, match=rf"model\.safetensors\.index\.json: names {shard}, which is not there"):
        load_heads(str(tmp_path))


def test_vllm_heads_in_shards_are_read_whole(tmp_path, base):
    heads = tiny_heads(base)
    save_heads(heads, tmp_path, "b", form="vllm")
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    parts = {"one.safetensors": sorted(state)[:5], "two.safetensors": sorted(state)[5:]}
    for name, keys in parts.items():
        save_file({k: state[k] for k in keys}, tmp_path / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load_heads(str(tmp_path)), heads)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(InputError, match=r"names two\.safetensors, which is not there"):
        load_heads(str(tmp_path))


def test_two_blocks_are_run_as_they_stand_and_whoever_ties_them_is_told_of(tmp_path, base, recwarn):
    """FasterDecoding's ``[ResBlock(d)] * 2`` is one block twice; its checkpoints hold it under both keys."""
    torch.manual_seed(0)
    block = torch.nn.Linear(32, 32)
    theirs = torch.nn.Sequential(*[block] * 2, torch.nn.Linear(32, 48, bias=False))
    state = {
        f"0.{k.replace('.', '.linear.') if not k.startswith('2') else k}": v for k, v in theirs.state_dict().items()
    }
    assert list(state) == ["0.0.linear.weight", "0.0.linear.bias", "0.1.linear.weight", "0.1.linear.bias", "0.2.weight"]
    tied = load_heads(put(state, tmp_path, name="medusa_lm_head.pt"))
    x = torch.randn(3, 32)
    y = x
    for _ in range(2):
        y = y + torch.nn.functional.silu(block(y))
    torch.testing.assert_close(tied(x)[0], theirs[2](y))
    save_heads(tied, tmp_path / "tied", "b")
    assert len(recwarn) == 0, "they are the same there"
    for form in ("medusa", "pt"):
        with pytest.warns(UserWarning, match="FasterDecoding's own runtime ties the 2 blocks"):
            save_heads(tiny_heads(base, blocks=2), tmp_path / form, "b", form=form)
    save_heads(tiny_heads(base, blocks=2), tmp_path / "vllm", "b", form="vllm")
    save_heads(tiny_heads(base), tmp_path / "one", "b")
    assert not [w for w in recwarn if "FasterDecoding" in str(w.message)]
