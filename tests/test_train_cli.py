"""medusa-tree train on a tiny saved model: every recipe to heads that load, decode and are reported; what is wrong, named."""

import gzip
import json
import random
import shutil

import pytest
import torch
import transformers
from click.testing import CliRunner
from conftest import tiny_base
from safetensors import safe_open
from test_checkpoint import save_base

from medusa_runtime import CandidateTree, InputError, MedusaModel
from medusa_tree.cli import main
from medusa_tree.training.backbone import check_device

FAST = ("--max-steps", 6, "--batch-size", 4, "--max-length", 24, "--eval-prompts", 4, "--heads", 2, "--device", "cpu")


def run(*args, code=0):
    result = CliRunner().invoke(main, ["train", *(str(a) for a in args)])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A saved tiny Llama that splits its numbers, and training text beside it."""
    folder = tmp_path_factory.mktemp("base")
    save_base(tiny_base("llama"), folder, split=True)
    draw = random.Random(0)
    rows = [{"text": " ".join(str(draw.randrange(3, 40)) for _ in range(30))} for _ in range(24)]
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    prompts = [{"prompt": " ".join(str(draw.randrange(3, 40)) for _ in range(5 + i % 4))} for i in range(16)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    return folder


def decodes_as_its_base(folder):
    """The trained model loads as a user would load it, and its tree text is its plain text."""
    model = MedusaModel.from_pretrained(folder)
    tree = CandidateTree(((0,), (1,), (0, 0), (0, 1)))
    with_tree = model.generate([[5, 6, 7]], tree=tree, max_new_tokens=12).tokens
    assert with_tree == model.generate([[5, 6, 7]], max_new_tokens=12).tokens
    return model


def test_medusa_1_leaves_a_heads_repository_with_card_curves_and_figures(tmp_path, base):
    out = tmp_path / "heads"
    result = run("--model", base, "--data", base / "data.jsonl", *FAST, "-o", out)
    assert "Head accuracy on held-out text" in result.output
    assert "Acceptance length by replay" in result.output
    assert "Next: medusa-tree calibrate" in result.output
    model = decodes_as_its_base(out)
    assert (model.num_heads, model.name) == (2, str(base))
    original = transformers.AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert all(torch.equal(original[k], v) for k, v in model.base.state_dict().items())
    figures = json.loads((out / "training.json").read_text())
    assert figures["after"]["base_loss"] == figures["before"]["base_loss"]
    assert [a["nodes"] for a in figures["acceptance_length"]] == [16, 32, 64]
    assert all(1 <= a["low"] <= a["value"] <= a["high"] <= 3 for a in figures["acceptance_length"])
    assert len(figures["after"]["head_top_k"]) == 2
    assert any("head_1" in e for e in figures["log"])
    card = (out / "README.md").read_text()
    assert "2 Medusa heads" in card
    assert f"| 16 | {figures['acceptance_length'][0]['value']:.3f} |" in card
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rank", [0, 2])
def test_medusa_2_leaves_a_full_model_that_carries_its_heads(tmp_path, base, rank):
    out = tmp_path / "full"
    how = (
        "--recipe",
        "medusa-2",
        "--lora-rank",
        rank,
        "--heads-first",
        0.2,
        "--learning-rate",
        0.01,
        "--backbone-rate",
        1,
    )
    if rank:
        how += ("--gradient-checkpointing",)
    result = run("--model", base, "--data", base / "data.jsonl", *FAST, *how, "--format", "vllm", "--json", "-o", out)
    figures = json.loads(result.stdout)
    assert "log" not in figures
    assert figures["recipe"]["lora_rank"] == rank
    model = decodes_as_its_base(out)
    again = transformers.AutoModelForCausalLM.from_pretrained(out)  # transformers itself reads the backbone
    original = transformers.AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert not torch.allclose(again(ids).logits, original(ids).logits, atol=1e-3), "the backbone has learnt"
    assert all(torch.equal(v, model.base.state_dict()[k]) for k, v in again.state_dict().items())
    with safe_open(out / "model-heads.safetensors", "pt") as file:
        assert "medusa_head.0.0.linear.weight" in file.keys()  # noqa: SIM118
    alone = MedusaModel.from_pretrained(out, out / "heads")
    assert all(torch.equal(v, alone.medusa_heads.state_dict()[k]) for k, v in model.medusa_heads.state_dict().items())


def test_a_model_trained_in_full_keeps_its_dtype(tmp_path, base):
    how = ("--recipe", "medusa-2", "--lora-rank", 0, "--dtype", "bfloat16", "--max-steps", 1)
    run("--model", base, "--data", base / "data.jsonl", *FAST, *how, "-o", tmp_path / "full")
    trained = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype="auto")
    assert {p.dtype for p in trained.parameters()} == {torch.bfloat16}


def test_self_distillation_answers_trains_and_resumes_from_what_stands(tmp_path, base):
    out = tmp_path / "own"
    how = ("--self-distill", "--max-new-tokens", 12, "--answer-batch", 8, "--shared-output", "--held-out", 0.3)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text((base / "prompts.jsonl").read_text())
    options = ("--model", base, "--data", prompts, *FAST, *how)
    refused = run(*options, "--held-out", 0.01, "-o", out, code=2)
    assert "raise --held-out" in " ".join(refused.output.replace("│", " ").split())
    run(*options, "--resume", "-o", out)  # as told: the answers serve any split
    answers = out / "work" / "answers" / "answers.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 16
    assert all(len(r["response_ids"]) == 12 for r in rows)
    assert decodes_as_its_base(out).medusa_heads.output_weight is None
    refused = run(*options, "-o", out, code=2)
    assert "go on with it by --resume" in refused.output
    other = run(*options, "--blocks", 2, "--resume", "-o", out, code=2)
    assert "its run has blocks 1, not 2" in other.output
    split = run(*options, "--held-out", 0.4, "--resume", "-o", out, code=2)
    assert "its run has held_out 0.3, not 0.4" in split.output
    prompts.write_text(prompts.read_text() + '{"prompt": "3 4 5"}\n')
    assert "its run has data_sha256" in run(*options, "--resume", "-o", out, code=2).output
    prompts.write_text((base / "prompts.jsonl").read_text())
    before = answers.read_bytes()
    run(*options, "--resume", "-o", out)
    assert answers.read_bytes() == before
    long = tmp_path / "long.jsonl"  # prompts that leave no room for an answer: their ends are taken
    long.write_text(2 * (json.dumps({"prompt_ids": list(range(3, 43)) * 11, "response_ids": [5, 6, 7]}) + "\n"))
    half = ("--shared-output", "--draft-vocab", 20, "--dtype", "bfloat16", "--max-length", 512, "--eval", long)
    taken = run("--model", base, "--data", answers, *FAST, "--self-distill", *half, "-o", tmp_path / "again")
    assert "Answering" not in taken.output
    assert len(decodes_as_its_base(tmp_path / "again").medusa_heads.token_map) == 20


def test_a_model_that_the_runtime_cannot_run_is_refused_before_the_work(base, tmp_path):
    config = transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=48)
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "bloom")
    refused = run(
        "--model", tmp_path / "bloom", "--data", base / "prompts.jsonl", *FAST, "-o", tmp_path / "out", code=2
    )
    assert "does not route its attention" in " ".join(refused.output.split())
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "nowhere.jsonl"), r"nowhere.jsonl: cannot be read"),
        (("--heads", "0"), "--heads 0: must be from 1 to 64"),
        (("--draft-vocab", "48"), "--draft-vocab 48: the vocabulary has 48 tokens"),
        (("--shared-output", "--format", "medusa"), "--format medusa: cannot carry these heads; use tgi-v2 or vllm"),
        (("--model", "no/such/folder"), "no such folder here"),
        (("--held-out", "0"), "--held-out 0.0"),
        (("--held-out", "0.04", "--max-length", "64"), "needs at least two held-out rows"),
        (("--device", "nonsense"), "--device nonsense: not usable here"),
        (("--device", "meta"), "--device meta: this process trains on"),
        (("--recipe", "medusa-2", "--lora-rank", "0", "--quantize", "4bit"), "a quantised backbone cannot be trained in full"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_work(tmp_path, base, options, words):
    given = {"--model": base, "--data": base / "data.jsonl"}
    rest = [x for pair in given.items() if pair[0] not in options for x in pair]
    result = run(*rest, *FAST[:-4], "--device", "cpu", *options, "-o", tmp_path / "out", code=2)
    assert words in " ".join(result.output.replace("│", " ").split())
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_held_out_rows_with_tokens_that_the_model_lacks_are_refused(tmp_path, base):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(folder)
    (folder / "eval.jsonl").write_text(2 * '{"text": "3 4 5 new 6"}\n')
    data = ("--data", folder / "data.jsonl", "--eval", folder / "eval.jsonl")
    refused = run("--model", folder, *data, *FAST, "-o", tmp_path / "out", code=2)
    assert "eval.jsonl: has tokens beyond the 48" in " ".join(refused.output.replace("│", " ").split())


CHAT = {"messages": [{"role": "user", "content": "3 4"}, {"role": "assistant", "content": "5 6 7"}]}


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({"eval.jsonl": '{"text": "3 4 5 6"}\n{"nothing": 1}'}, (), "eval.jsonl, line 2: no text in it"),
        ({"eval.jsonl": ""}, (), "eval.jsonl: no training rows in it"),
        ({"eval.jsonl": '{"text": "3 4 5 6"}'}, (), "needs at least two held-out rows"),
        ({"eval.jsonl": 2 * (json.dumps(CHAT) + "\n")}, (), "eval.jsonl, line 1: is a conversation, but the tokenizer has no chat template"),
        ({"eval.jsonl": 2 * '{"prompt_ids": [3], "response_ids": [99, 3]}\n'}, (), 'line 1: "response_ids" must be a list of token ids'),
        ({"eval.txt.gz": "no gzip"}, (), "is no whole gzip file"),
        ({"prompts.jsonl": '{"prompt": "3 4"}\n' + json.dumps(CHAT)}, (), "prompts.jsonl, line 2: is a conversation, but the tokenizer has no"),
        ({"prompts.jsonl": '{"prompt": "3 4"}\n{"prompt": "5 new"}'}, (), "prompts.jsonl, line 2: has token 48"),
        ({"prompts.jsonl": 8 * '{"prompt": "3 4"}\n'}, (), "all is of one document, prompt or group"),
        ({"prompts.txt": "3 4\n5 6"}, (), "needs at least two held-out rows"),
        ({}, ("--draft-vocab", 48), "--draft-vocab 48: the vocabulary has 48 tokens"),
        ({}, ("--max-new-tokens", 510), "exceeds the model's 512 positions"),
    ],
)  # fmt: skip
def test_every_file_is_judged_before_the_model_answers_anything(tmp_path, base, monkeypatch, files, options, words):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr("medusa_tree.training.distill._texts", lambda *args: pytest.fail("it answers already"))
    given = {"--data": folder / "prompts.jsonl"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        given["--eval" if name.startswith("eval") else "--data"] = tmp_path / name
    named = [x for pair in given.items() for x in pair]
    how = ("--self-distill", "--max-new-tokens", 8, *options)
    refused = run("--model", folder, *named, *FAST, *how, "-o", tmp_path / "out", code=2)
    assert words in " ".join(refused.output.replace("│", " ").split())


def test_packed_data_trains_and_its_answers_serve_again(tmp_path, base):
    packed = tmp_path / "prompts.NDJSON.gz"
    packed.write_bytes(gzip.compress((base / "prompts.jsonl").read_bytes()))
    how = ("--self-distill", "--max-new-tokens", 8, "--held-out", 0.3)
    run("--model", base, "--data", packed, *FAST, *how, "-o", tmp_path / "out")
    answers = tmp_path / "answers.jsonl.gz"
    answers.write_bytes(gzip.compress((tmp_path / "out" / "work" / "answers" / "answers.jsonl").read_bytes()))
    again = run("--model", base, "--data", answers, *FAST, *how, "-o", tmp_path / "again")
    assert "Answering" not in again.output


@pytest.mark.parametrize(
    ("where", "words"), [("transformers.PreTrainedModel.to", "--quantize"), ("medusa_tree.training.run.fit", "--batch-size")]
)  # fmt: skip
def test_running_out_of_memory_is_told_without_a_traceback(tmp_path, base, monkeypatch, where, words):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(where, full)
    told = run("--model", base, "--data", base / "data.jsonl", *FAST, "-o", tmp_path / "out", code=2).output
    assert "out of memory" in told
    assert words in told


def test_a_folder_that_cannot_be_made_is_refused(base):
    data = base / "data.jsonl"
    assert "cannot be made" in run("--model", base, "--data", data, *FAST, "-o", data / "out", code=2).output


def test_a_process_trains_on_the_device_it_was_given(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cpu", torch.device("cpu"))
    with pytest.raises(
        InputError, match=r"2 GPUs are visible.*torchrun --nproc-per-node 2 .*one of them by CUDA_VISIBLE_DEVICES=0"
    ):
        check_device(None, torch.device("cuda"))
    with pytest.raises(InputError, match="--device cpu: this process trains on mps"):
        check_device("cpu", torch.device("mps"))
