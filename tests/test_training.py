"""Training: the losses against plain ones, the stages, resuming, two processes, and answers that go on where they were."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import VOCAB, tiny_base
from test_checkpoint import save_base
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from medusa_runtime import InputError, MedusaHeads, MedusaModel
from medusa_tree.profiling.corpus import Prompt
from medusa_tree.training.data import Row, collate, cut, read_rows, split
from medusa_tree.training.distill import answer, is_answers, join_answers
from medusa_tree.training.evaluate import score
from medusa_tree.training.loss import IGNORE, base_loss, distillation_loss, head_losses, head_targets
from medusa_tree.training.model import TrainingModel, frequent_tokens, new_heads
from medusa_tree.training.recipe import Recipe, cosine
from medusa_tree.training.trainer import fit, newest_checkpoint


def some_rows(count=24, length=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, VOCAB, (length - i % 5,), generator=generator).tolist() for i in range(count)]
    return [Row(ids, [IGNORE] * (i % 4) + ids[i % 4 :], str(i)) for i, ids in enumerate(rows)]


def training_model(recipe, token_map=None, family="llama"):
    base = tiny_base(family)
    torch.manual_seed(3)
    heads = new_heads(base, recipe, token_map)
    with torch.no_grad():
        heads.block_weight.normal_(std=0.05)
    return TrainingModel(base, heads, recipe)


# --- losses


def test_a_head_is_asked_for_the_token_its_distance_ahead():
    labels = torch.tensor([[10, 11, 12, IGNORE, 14, 15]])
    targets = head_targets(labels, 3)
    assert targets[:, 0].tolist() == [
        [12, IGNORE, 14, 15, IGNORE, IGNORE],
        [IGNORE, 14, 15, IGNORE, IGNORE, IGNORE],
        [14, 15, IGNORE, IGNORE, IGNORE, IGNORE],
    ]
    assert (head_targets(labels[:, :2], 3) == IGNORE).all()


@pytest.mark.parametrize("kind", ["own", "shared", "reduced", "shared and reduced"])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_the_lean_loss_and_its_gradients_are_those_of_all_logits_at_once(kind, chunk):
    torch.manual_seed(0)
    output = torch.randn(VOCAB, 16, requires_grad=True)
    kept = torch.randperm(VOCAB)[:30] if "reduced" in kind else None
    heads = MedusaHeads(16, VOCAB, 3, own_output="shared" not in kind, token_map=kept)
    torch.nn.init.normal_(heads.block_weight, std=0.3)
    hidden = torch.randn(29, 16, requires_grad=True)
    targets = torch.randint(0, VOCAB, (3, 29))
    targets[:, ::5] = IGNORE
    rows = None
    if kept is not None:
        rows = torch.full((VOCAB,), IGNORE)
        rows[kept] = torch.arange(30)
    weights = [p for p in (*heads.parameters(), hidden, output) if p.requires_grad]

    heads.share_output(output)
    lean = head_losses(heads, hidden, targets, rows, chunk)
    lean_gradients = torch.autograd.grad((lean * torch.tensor([0.8, 0.64, 0.5])).sum(), weights, allow_unused=True)
    asked = targets if rows is None else torch.where(targets == IGNORE, IGNORE, rows[targets.clamp(min=0)])
    heads.share_output(output)
    logits = heads(hidden)
    plain = torch.stack([F.cross_entropy(logits[k], asked[k], ignore_index=IGNORE, reduction="sum") for k in range(3)])
    plain_gradients = torch.autograd.grad((plain * torch.tensor([0.8, 0.64, 0.5])).sum(), weights, allow_unused=True)
    torch.testing.assert_close(lean, plain)
    for ours, theirs in zip(lean_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class Casts(TorchDispatchMode):
    """Counts the casts of tensors of so many elements."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default and args[0].numel() == self.elements
        return function(*args, **(kwargs or {}))


def test_mixed_precision_casts_the_heads_once_and_not_for_every_chunk():
    torch.manual_seed(0)
    heads = MedusaHeads(16, VOCAB, 3)
    torch.nn.init.normal_(heads.block_weight, std=0.3)
    hidden, targets = torch.randn(29, 16), torch.randint(0, VOCAB, (3, 29))
    whole = torch.autograd.grad(head_losses(heads, hidden, targets).sum(), list(heads.parameters()))
    with Casts(heads.output_weight.numel()) as casts:
        with torch.autocast("cpu", torch.bfloat16):
            lean = head_losses(heads, hidden, targets, chunk=6)
        ours = torch.autograd.grad(lean.sum(), list(heads.parameters()))
    assert casts.count == 1 + 2, "of the weights, and of the gradients of TOGETHER chunks; there are 15"
    for our, their in zip(ours, whole, strict=True):
        assert our.dtype == torch.float32
        assert (our - their).norm() < 0.02 * their.norm()


def test_the_distillation_loss_is_kl_where_labels_count_and_nothing_against_itself():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 2, 6, VOCAB).double()
    labels = torch.randint(0, VOCAB, (2, 6))
    labels[:, :3] = IGNORE
    p, q = theirs[:, 2:5].softmax(-1), ours[:, 2:5].softmax(-1)
    wanted = (p * (p.log() - q.log())).sum()
    assert distillation_loss(ours, theirs, labels).double() == pytest.approx(float(wanted), rel=1e-4)
    assert distillation_loss(ours, ours, labels) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", ["medusa-1", "medusa-2"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_loss_of_a_batch_is_the_papers(name, family):
    recipe = Recipe(name=name, heads=2, lora_rank=0, heads_weight=0.2)
    model = training_model(recipe, family=family)
    batch = collate([r.example for r in some_rows(3)], pad=0)
    out = model(**batch)
    hidden_out = model.base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    rows, length = batch["input_ids"].shape
    logits = model.heads(model._take_hidden().flatten(0, 1)).unflatten(1, (rows, length))
    wanted = F.cross_entropy(
        hidden_out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
    ) * (name == "medusa-2")
    for k in (1, 2):
        per_head = F.cross_entropy(
            logits[k - 1][:, : -1 - k].flatten(0, 1), batch["labels"][:, 1 + k :].flatten(), ignore_index=IGNORE, reduction="sum"
        )  # fmt: skip
        wanted = wanted + 0.8**k * (0.2 if name == "medusa-2" else 1.0) * per_head
    tokens = (batch["labels"][:, 1:] != IGNORE).sum()
    torch.testing.assert_close(out["loss"], wanted / tokens, rtol=1e-4, atol=1e-5)


def test_what_is_frozen_gets_no_gradient_and_stays_out_of_checkpoints():
    for recipe, learns in (
        (Recipe(), {"heads"}),
        (Recipe(name="medusa-2", lora_rank=0), {"heads", "base"}),
        (Recipe(name="medusa-2", lora_rank=2), {"heads", "base"}),
    ):
        model = training_model(recipe)
        model(**collate([r.example for r in some_rows(2)], pad=0))["loss"].backward()
        with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
        assert {n.split(".")[0] for n in with_gradient} == learns
        assert set(model.state_dict()) == {n for n, p in model.named_parameters() if p.requires_grad}
        if recipe.joint and recipe.lora_rank:
            assert all("lora" in n for n in with_gradient if n.startswith("base"))


def test_a_resting_backbone_learns_nothing():
    model = training_model(Recipe(name="medusa-2", lora_rank=0))
    model.resting = True
    out = model(**collate([r.example for r in some_rows(2)], pad=0))
    out["loss"].backward()
    assert out["base_sum"] == 0
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"heads"}


@pytest.mark.parametrize("name", ["medusa-1", "medusa-2"])
def test_a_batch_that_asks_nothing_of_the_heads_has_a_loss_with_a_graph(name):
    model = training_model(Recipe(name=name, lora_rank=0))
    out = model(**collate([{"input_ids": [5, 6], "labels": [5, 6]}], pad=0))
    out["loss"].backward()
    assert out["head_sums"].tolist() == [0.0] * 4
    assert (out["loss"] > 0) == (name == "medusa-2")


@pytest.mark.parametrize("rank", [0, 2])
def test_the_teacher_is_the_model_as_it_was(rank):
    model = training_model(Recipe(name="medusa-2", lora_rank=rank, distill=True))
    batch = collate([r.example for r in some_rows(2)], pad=0)
    assert model(**batch)["base_sum"] == pytest.approx(0.0, abs=1e-3)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.requires_grad and n.startswith("base"):
                p.add_(0.05 * torch.randn_like(p))
    assert model(**batch)["base_sum"] > 0.1
    before = tiny_base("llama")(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(model._teacher_logits(batch["input_ids"], batch["attention_mask"]), before)


@pytest.mark.parametrize("rank", [0, 2])
def test_only_a_backbone_that_learns_drops_out(rank):
    batch = collate([r.example for r in some_rows(2)], pad=0)

    def twice(name, resting=False):
        model = training_model(Recipe(name=name, lora_rank=rank, distill=True), family="gpt_neox")
        for layer in model.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.5
        model.train()
        model.resting = resting
        return [model(**batch)["loss"].item() for _ in range(2)], model

    for first, second in (twice("medusa-1")[0], twice("medusa-2", resting=True)[0]):
        assert first == second
    (first, second), model = twice("medusa-2")
    assert first != second
    teacher = [model._teacher_logits(batch["input_ids"], batch["attention_mask"]) for _ in range(2)]
    assert torch.equal(*teacher)
    assert model.base.training, "it learns on"


def test_the_learning_rate_rests_rises_and_falls():
    share = cosine(100, warmup=0.1, rest=0.3)
    values = [share(i) for i in range(101)]
    assert values[:30] == [0.0] * 30
    assert values[30] > 0
    assert max(values) == values[37] == 1.0
    assert values[37:] == sorted(values[37:], reverse=True)
    assert values[100] == pytest.approx(0.0, abs=1e-9)


def test_scores_count_what_the_heads_and_the_backbone_say():
    recipe = Recipe(heads=2)
    model = training_model(recipe, token_map=torch.arange(0, VOCAB, 2))
    rows = some_rows(5)
    scores = score(model, rows, batch_size=2)
    hits, asked, loss, tokens = torch.zeros(2), torch.zeros(2), 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.ids])
            logits = model.base(input_ids=ids).logits
            guesses = model.heads.tokens(model.heads(model._take_hidden()[0]).argmax(-1))
            labels = torch.tensor([row.labels])
            loss += float(base_loss(logits, labels))
            tokens += sum(x != IGNORE for x in row.labels[1:])
            for k in (1, 2):
                for s in range(len(row.ids) - 1 - k):
                    if row.labels[s + 1 + k] != IGNORE:
                        asked[k - 1] += 1
                        hits[k - 1] += int(guesses[k - 1, s]) == row.labels[s + 1 + k]
    assert scores.top_k()[:, 0].tolist() == pytest.approx((hits / asked).tolist())
    assert scores.base_loss == pytest.approx(loss / tokens, rel=1e-5)
    assert (scores.top_k().diff(dim=1) >= 0).all()


# --- running


class Killed(Exception):
    pass


def losses(log):
    return [(e["step"], e["loss"], e["head_1"], e["grad_norm"]) for e in log if "loss" in e]


@pytest.mark.parametrize(
    "recipe", [Recipe(max_steps=12, batch_size=4), Recipe(name="medusa-2", max_steps=12, batch_size=4, lora_rank=2)]
)
def test_a_killed_run_goes_on_along_the_same_loss_curve(tmp_path, recipe):
    def train(folder, until=None):
        def progress(done, total):
            if done == until:
                raise Killed

        torch.manual_seed(0)
        model = training_model(recipe)
        log = fit(
            model,
            recipe,
            some_rows(),
            some_rows(4, seed=1),
            folder,
            0,
            progress,
            use_cpu=True,
            save_steps=3,
            logging_steps=3,
        )
        return model, log

    whole, log = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", until=8)
    assert newest_checkpoint(tmp_path / "cut").name == "checkpoint-6"
    half = tmp_path / "cut" / "checkpoint-8"  # killed while it was being written: no state yet
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    again, log_again = train(tmp_path / "cut")
    assert losses(log_again) == losses(log)
    assert len({loss for _, loss, _, _ in losses(log)}) == 4, "training changes the loss"
    ours, theirs = whole.state_dict(), again.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from accelerate import PartialState
from test_training import some_rows, training_model
from medusa_runtime.processes import process_group
from medusa_tree.training.recipe import Recipe
from medusa_tree.training.trainer import fit

def main():
    state = PartialState(cpu=True)
    recipe = Recipe(name="medusa-2", heads_first=0.0, lora_rank=0, max_steps=2, batch_size=8 // state.num_processes, learning_rate=0.01)
    torch.manual_seed(0)
    model = training_model(recipe)
    log = fit(model, recipe, some_rows(16), some_rows(5, seed=1), Path({out!r}), 0, use_cpu=True, logging_steps=1,
              train_sampling_strategy="sequential", eval_strategy="no", save_strategy="no")
    if state.is_main_process:
        torch.save({{"log": [e for e in log if "loss" in e], "state": dict(model.state_dict())}}, {out!r} + "/result.pt")

with process_group():
    main()
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Rows of different lengths, so that a mean of the processes' means would be another gradient."""
    results = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        script = out / "train.py"
        script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(out)))
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            str(script),
        ]
        done = subprocess.run(
            command if processes > 1 else [sys.executable, str(script)], capture_output=True, text=True, timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-6000:]
        results[processes] = torch.load(out / "result.pt", weights_only=True)
    one, two = results[1], results[2]
    for a, b in zip(one["log"], two["log"], strict=True):
        assert {k: a[k] for k in ("loss", "grad_norm", "head_1", "head_4", "backbone")} == pytest.approx(
            {k: b[k] for k in ("loss", "grad_norm", "head_1", "head_4", "backbone")}, rel=1e-3
        )
    for name, weight in one["state"].items():
        torch.testing.assert_close(weight, two["state"][name], rtol=1e-3, atol=1e-4)


# --- data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_base(tiny_base("llama"), folder, split=True)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


CHAT = "{% for m in messages %}{{ '1 ' if m.role == 'user' else '2 ' }}{{ m.content }} {{ '3 ' }}{% endfor %}{{ '2 ' if add_generation_prompt else '' }}"


def test_of_a_conversation_the_assistants_turns_count(tmp_path, tiny):
    _, tokenizer = tiny
    tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    tokenizer.chat_template = CHAT
    path = tmp_path / "chat.jsonl"
    turns = [
        {"from": "human", "value": "7 8"},
        {"from": "gpt", "value": "9 10"},
        {"from": "human", "value": "11"},
        {"from": "gpt", "value": "12"},
    ]
    path.write_text(json.dumps({"conversations": turns}))
    (row,) = read_rows(path, tokenizer, 100)
    counted = [t for t in row.labels if t != IGNORE]
    assert 9 in counted
    assert 12 in counted
    assert not {7, 8, 11} & set(counted)
    assert row.ids[: len(row.prompt)] == row.prompt
    assert 9 not in row.prompt


def test_a_chat_template_is_asked_only_for_whole_exchanges_and_its_refusal_names_the_line(tmp_path, tiny):
    """As those that want a user's turn in what they are given, and one that comes first."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[1].name_or_path)
    wants = "{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}{{ raise_exception('no user') }}{% endif %}"
    tokenizer.chat_template = wants + CHAT
    path = tmp_path / "chat.jsonl"
    system, user, reply = (
        {"role": r, "content": c} for r, c in (("system", "7"), ("user", "8"), ("assistant", "9 11"))
    )
    path.write_text(json.dumps({"messages": [system, user, reply, user]}))
    (row,) = read_rows(path, tokenizer, 100)
    assert [label for label in row.labels if label != IGNORE][:2] == [9, 11]
    path.write_text(path.read_text() + "\n" + json.dumps({"messages": [reply, user, reply]}))
    with pytest.raises(InputError, match=r"chat\.jsonl, line 2: the tokenizer's chat template refuses .*no user"):
        read_rows(path, tokenizer, 100)


def test_a_turn_counts_from_where_it_parts_from_the_prompt_for_it(tmp_path, tiny):
    """The prompt opens thoughts, which the template leaves out of turns that are over."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[1].name_or_path)
    tokenizer.chat_template = CHAT.replace("{{ '2 ' if add", "{{ '2 4 4 4 ' if add")
    path = tmp_path / "chat.jsonl"
    turns = [
        {"role": r, "content": c} for r, c in (("user", "8"), ("assistant", "9"), ("user", "7"), ("assistant", "6"))
    ]
    path.write_text(json.dumps({"messages": turns}))
    (row,) = read_rows(path, tokenizer, 100)
    assert row.ids == [1, 8, 3, 2, 9, 3, 1, 7, 3, 2, 6, 3]
    assert row.labels == [*[IGNORE] * 4, 9, 3, *[IGNORE] * 4, 6, 3]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"text": "3 4"}\n{"text": 5}', r"a\.jsonl, line 2: no text"),
        ("a.jsonl", '{"text": "3 4"}\n{"text": ', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", '\n["x"]', r"a\.jsonl, line 2: not an object"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "3"}]}', r"line 1: is a conversation, but the tokenizer has no chat template"),
        ("a.jsonl", '{"prompt_ids": [3], "response_ids": [4, 99]}', r'line 1: "response_ids" must be a list of token ids below 48'),
        ("a.json", '{"text": "3"}', r"holds no list"),
        ("a.json", '[{"text": "3 4"}, 7]', r"entry 2: not an object"),
        ("a.txt", " \n", "no training rows"),
        ("none.txt", None, "cannot be read"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_by_file_and_line(tmp_path, tiny, name, text, words):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_rows(path, tiny[1], 16)


def test_long_rows_are_cut_and_documents_are_held_out_whole():
    row = Row(list(range(25)), [IGNORE] * 12 + list(range(12, 25)), "a")
    pieces = cut(row, 10)
    assert [p.ids[0] for p in pieces] == [10, 20]
    assert [len(p.ids) for p in cut(Row(list(range(22)), list(range(22)), "a"), 10)] == [10, 10], "two ask no head"
    rows = [Row([i] * 4, [i] * 4, str(i // 3)) for i in range(30)]
    train, held = split(rows, 0.2, seed=0)
    assert not {r.group for r in train} & {r.group for r in held}
    assert len(train) + len(held) == 30
    assert len(held) == 6
    with pytest.raises(InputError, match=r"all is of one document.*--eval FILE"):
        split(rows[:3], 0.2, seed=0)


def test_the_same_prompt_or_text_is_never_on_both_sides_of_the_split():
    answered = [Row([i % 5, 9, 20 + i, 7], [IGNORE, IGNORE, 20 + i, 7], f"line {i}") for i in range(20)]
    plain = [Row([i % 6] * 4, [i % 6] * 4, f"text {i}") for i in range(20)]
    for seed in range(10):
        train, held = split([*answered, *plain], 0.3, seed)
        assert train
        assert held
        assert not {r.asked for r in train} & {r.asked for r in held}
    assert len({r.asked for r in [*answered, *plain]}) == 11, "whatever was answered"


def test_the_draft_vocabulary_is_the_most_frequent_tokens():
    assert frequent_tokens([[5, 5, 7], [7, 5, 2, 9]], 12, 3).tolist() == [2, 5, 7]
    with pytest.raises(InputError, match="keep fewer"):
        frequent_tokens([[1]], 12, 12)


@pytest.mark.parametrize(
    "setting", [{"name": "medusa-3"}, {"heads": 0}, {"decay": 1.5}, {"draft_vocab": 0}, {"learning_rate": 0.0}]
)
def test_a_recipe_out_of_range_is_refused_by_name(setting):
    (name,) = setting
    with pytest.raises(InputError, match="recipe" if name == "name" else name.replace("_", "-")):
        Recipe(**setting)


# --- self-distillation


def prompts(count=10):
    return [Prompt(" ".join(str(3 + (i * 7 + j) % 40) for j in range(2 + i % 5)), f"g{i}") for i in range(count)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_go_on_where_they_were_killed_and_come_out_the_same(tmp_path, tiny, temperature):
    how = {"max_new_tokens": 6, "batch_size": 3, "temperature": temperature, "top_p": 0.9}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    answer(*tiny, prompts(), whole, **how)

    def kill(done):
        if done == 3 and list(parts.glob("answers-*.npz")):
            raise Killed

    with pytest.raises(Killed):
        answer(*tiny, prompts(), parts, progress=kill, **how)
    (parts / ".answers-00002.npz.x.tmp").mkdir()  # killed while it wrote
    told = []
    answer(*tiny, prompts(), parts, progress=told.append, process=(0, 2), **how)
    assert told[0] == 3
    assert sum(told) == 10, "who is alone does it all"
    answer(*tiny, prompts(), parts, progress=told.append, process=(1, 2), **how)
    for folder in (whole, parts):
        join_answers(folder, prompts(), folder / "answers.jsonl")
    assert (whole / "answers.jsonl").read_text() == (parts / "answers.jsonl").read_text()
    assert is_answers(whole / "answers.jsonl")
    rows = read_rows(whole / "answers.jsonl", tiny[1], 100)
    assert [r.group for r in rows] == [p.group for p in prompts()]
    if temperature == 0:
        base = tiny[0]
        for row in rows[:3]:
            ids = torch.tensor([row.prompt])
            alone = base.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
            )
            assert row.ids == alone[0].tolist()
    with pytest.raises(InputError, match="was begun with --max-new-tokens 6, not 7"):
        answer(*tiny, prompts(), parts, **{**how, "max_new_tokens": 7})


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_are_the_text_that_decoding_verifies_whatever_the_model_says(tmp_path, tiny, temperature):
    base, own = tiny_base("llama"), {"repetition_penalty": 5.0, "top_k": 1, "min_p": 0.9}
    base.generation_config.update(**own)
    base.train()
    frozen = next(base.parameters()).requires_grad_(False)
    folder, attention = tmp_path / "made" / "here", base.config._attn_implementation
    answer(base, tiny[1], prompts(), folder, max_new_tokens=12, temperature=temperature, process=(1, 2), batch_size=4)
    assert {k: getattr(base.generation_config, k) for k in own} == own
    assert base.config._attn_implementation == attention
    assert base.training
    assert [p.requires_grad for p in base.parameters()] == [p is not frozen for p in base.parameters()]
    assert not base.get_output_embeddings()._forward_pre_hooks
    join_answers(folder, prompts(), folder / "answers.jsonl")
    made = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    plain = MedusaModel(base).generate([m["prompt_ids"] for m in made], max_new_tokens=12).tokens
    assert ([m["response_ids"] for m in made] == plain) == (temperature == 0)


def test_what_the_user_says_next_stands_behind_the_model_s_answer(tmp_path, tiny):
    base, tokenizer = tiny
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    asked = [Prompt("5 6", "a", chat=True, later=("7 8", "9")), Prompt("11 12", "b", chat=True)]
    answer(base, tokenizer, asked, tmp_path, max_new_tokens=5)
    join_answers(tmp_path, asked, tmp_path / "answers.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(row["row"], row["group"]) for row in rows] == [(0, "a"), (0, "a"), (0, "a"), (1, "b")]
    first, second, third = rows[:3]

    def said(row):
        return tokenizer(tokenizer.decode(row["response_ids"], skip_special_tokens=True))["input_ids"]

    assert second["prompt_ids"] == [*first["prompt_ids"], *said(first), 7, 8]
    assert third["prompt_ids"] == [*second["prompt_ids"], *said(second), 9]


def test_prompts_that_cannot_be_answered_are_refused(tmp_path, tiny):
    with pytest.raises(InputError, match=r"prompt 1 .* has 509 tokens; with 6 new ones that exceeds the model's 512"):
        answer(*tiny, [Prompt("5 " * 509, "a")], tmp_path, max_new_tokens=6)
    with pytest.raises(InputError, match="no chat template"):
        answer(*tiny, [Prompt("5 6", "a", chat=True)], tmp_path, max_new_tokens=6)
    with pytest.raises(InputError, match="--temperature -1"):
        answer(*tiny, prompts(), tmp_path, temperature=-1.0)
