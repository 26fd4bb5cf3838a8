"""Given answers: every form comes to the same tokens, following them is profiling them, and text of others is told."""

import json

import numpy as np
import pytest
from conftest import random_prompts, tiny_base, tiny_heads, tiny_model
from test_checkpoint import save_base
from test_run import ending_model, job_on, same

from medusa_runtime import InputError, MedusaModel, Sampling
from medusa_runtime.acceptance.rules import GREEDY
from medusa_runtime.heads.checkpoint import save_heads
from medusa_tree.profiling import follow
from medusa_tree.profiling.answers import kept, read_answers
from medusa_tree.profiling.follow import AGREE, judged, profile_answers
from medusa_tree.profiling.job import Asked, Profiling
from medusa_tree.profiling.profile import profile
from medusa_tree.profiling.prompt import Prompt
from medusa_tree.profiling.run import job_of, profile_run
from medusa_tree.profiling.shards import collect

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}3 {{ m.content }} 4{% else %} {{ m.content }} 2 {% endif %}{% endfor %}"
    "{% if add_generation_prompt %} {% endif %}"
)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    """A tiny model with a tokenizer whose words are numbers, and a chat template."""
    folder = tmp_path_factory.mktemp("chatting")
    save_base(tiny_base("llama"), folder, split=True)
    save_heads(tiny_heads(tiny_base("llama")), folder / "heads", base_model=str(folder))
    model = MedusaModel.from_pretrained(folder, folder / "heads", device="cpu")
    model.tokenizer.chat_template = TEMPLATE
    model.base.generation_config.eos_token_id = 2
    return model


def read(path, model, rows, **how):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = read_answers(path, model, 12, **how)
    return list(zip(given.rows, given.answers, strict=True))


PROMPT, ANSWER = [5, 6, 7], [8, 9, 11, 12, 13, 14]
SAID = "8 9 11 12 13 14"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt_ids": PROMPT, "response_ids": ANSWER},
        {"prompt_token_ids": PROMPT, "token_ids": ANSWER},
        {"prompt_token_ids": PROMPT, "outputs": [{"index": 0, "text": "unread", "token_ids": ANSWER}]},
        {"input_ids": PROMPT, "output_ids": ANSWER, "text": "unread", "meta_info": {}},
        {"prompt": "5 6 7", "response": f" {SAID}"},
        {"prompt": "5 6 7", "text": f" {SAID}", "meta_info": {"finish_reason": {"type": "length"}}},
        {"prompt": "5 6 7", "outputs": [{"text": f" {SAID}"}]},
        {"question": "5 6 7", "answer": f" {SAID}"},
        {"prompt": "5 6 7", "response": {"body": {"choices": [{"text": f" {SAID}"}]}}, "error": None},
    ],
    ids=lambda row: " ".join(row),
)
def test_every_form_comes_to_the_same_tokens(chatting, tmp_path, row):
    assert read(tmp_path / "a.jsonl", chatting, [row, row]) == [(PROMPT, ANSWER)] * 2


CHAT = [3, 5, 6, 7, 4], [*ANSWER, 2]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "5 6 7"}, {"role": "assistant", "content": SAID}]},
        {"conversations": [{"from": "human", "value": "5 6 7"}, {"from": "gpt", "value": SAID}]},
        {"prompt": [{"role": "user", "content": "5 6 7"}], "response": SAID},
        {"messages": [{"role": "user", "content": "5 6 7"}], "response": SAID},
        {"messages": [{"role": "user", "content": "5 6 7"}], "token_ids": [*ANSWER, 2, 9, 9]},
    ],
    ids=lambda row: " ".join(row),
)
def test_chats_go_through_the_template_and_end_with_the_end_token(chatting, tmp_path, row):
    assert read(tmp_path / "a.jsonl", chatting, [row]) == [CHAT]


def test_each_turn_of_the_assistant_is_an_answer_behind_those_before(chatting, tmp_path):
    turns = [("user", "5 6 7"), ("assistant", SAID), ("user", "9"), ("assistant", "21 22 23 24 25 26")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns], "group": 4, "category": "code"}
    first, second = read(tmp_path / "a.jsonl", chatting, [row])
    assert first == CHAT
    assert second == ([*first[0], *first[1], 3, 9, 4], [21, 22, 23, 24, 25, 26, 2])
    given = read_answers(tmp_path / "a.jsonl", chatting, 12)
    assert {(p.group, p.category) for p in given.prompts} == {("4", "code")}


def test_a_batch_service_s_answers_find_their_prompts(chatting, tmp_path):
    def line(name, content, error=None):
        body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
        return {"custom_id": name, "response": {"status_code": 200, "body": body}, "error": error}

    asked = [
        Prompt("5 6 7", "g0", chat=True, name="a"),
        Prompt("9 9", "g1", chat=True, name="b", before=(("user", "5"), ("assistant", "6"))),
    ]
    rows = [
        line("b", SAID),
        line("a", SAID),
        {"custom_id": "a", "response": None, "error": {"code": 500}},
        line("a", "5"),
    ]
    with pytest.warns(UserWarning, match="1 rows are skipped: failed requests, nothing asked, or answers"):
        found = read(tmp_path / "a.jsonl", chatting, rows, asked=asked)
    assert found[1] == CHAT
    assert found[0] == ([3, 5, 4, 6, 2, 3, 9, 9, 4], CHAT[1])
    with pytest.raises(InputError, match=r"line 1: belongs to 'c', which no prompt of --corpus is named"):
        read(tmp_path / "a.jsonl", chatting, [line("c", SAID)], asked=asked)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "5 6"}, "no answer in it; give"),
        ({"response_ids": ANSWER}, "has no prompt; give"),
        ({"prompt_ids": PROMPT, "response_ids": [1.5]}, "line 1: the answer's token ids"),
        ({"prompt_ids": PROMPT, "response_ids": [5, 48, 5, 5, 5, 5]}, "has token 48"),
        ({"prompt_ids": [], "response_ids": ANSWER}, "holds no answer to judge heads by"),
        ({"prompt": 3, "response": SAID}, 'line 1: "prompt"'),
        ({"prompt_ids": PROMPT, "response_ids": [5, 6]}, "holds no answer to judge heads by"),
        ([1], "not an object"),
    ],
)
def test_what_is_no_answer_is_named(chatting, tmp_path, row, said):
    with pytest.raises(InputError, match=said):
        read(tmp_path / "a.jsonl", chatting, [row])


def test_positions_that_heads_cannot_be_judged_at_are_left_out():
    stops = frozenset({2})
    assert kept([5, 6, 7, 8, 9], stops, 4, 100) == 1
    assert kept([5, 6, 2], stops, 4, 100) == 3
    assert kept([5] * 50, stops, 4, 10) == 10
    assert kept([5, 6], stops, 4, 10) < 1


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("chunked", [False, True])
def test_following_the_model_s_own_text_is_profiling_it(family, chunked, monkeypatch):
    if chunked:
        monkeypatch.setattr(follow, "WHOLE", 20)
        monkeypatch.setattr(follow, "CHUNK", 16)
        monkeypatch.setattr(follow, "CHUNK_TOKENS", 48)
    model, prompts = tiny_model(family), random_prompts(9, seed=2)
    endless = model.generate(prompts, max_new_tokens=30, eos_token_id=[]).tokens
    model.base.generation_config.eos_token_id = endless[0][20]
    held = [i % 2 == 0 for i in range(9)]
    wanted = profile(model, prompts, held, max_new_tokens=40)
    assert wanted.lengths.min() < 40
    answers = [row.tolist() for row in wanted.text.outputs]
    order = sorted(range(9), key=lambda i: -len(prompts[i]) - len(answers[i]))
    found = profile_answers(
        model,
        [prompts[i] for i in order],
        [answers[i] for i in order],
        [held[i] for i in order],
        order,
        40,
        10,
        GREEDY,
        3,
    )
    same(found.take(np.argsort(order)), wanted)


def given_job(model, prompts, answers, tmp_path, rule=GREEDY, **how):
    path = tmp_path / "answers.jsonl"
    rows = [{"prompt_ids": p, "response_ids": a} for p, a in zip(prompts, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    profiling = Profiling(("demo",), max_new_tokens=24, rule=rule, answers=path, tokens=400, **how)
    return job_of(model, Asked([], np.zeros(0, dtype=np.bool_)), profiling, ("tiny", "heads"))


def test_a_run_on_answers_is_the_run_that_made_them(tmp_path):
    model, prompts = ending_model(), random_prompts(30, seed=5)
    profile_run(job_on(model, prompts), tmp_path / "made")
    made = collect(tmp_path / "made")
    job = given_job(model, prompts, [row.tolist() for row in made.text.outputs], tmp_path)
    assert job.text.startswith("answers made elsewhere: greedy; at 100.0% of ")
    profile_run(job, tmp_path / "given")
    found = collect(tmp_path / "given")
    assert np.array_equal(found.ranks, made.ranks)
    assert [row.tolist() for row in found.text.prompts] == prompts


def test_a_run_goes_on_with_the_same_answers_only(tmp_path):
    model, prompts = ending_model(), random_prompts(12, seed=5)
    answers = model.generate(prompts, max_new_tokens=28).tokens
    profile_run(given_job(model, prompts, answers, tmp_path), tmp_path / "run")
    answers[0] = answers[0][:-1]
    other = given_job(model, prompts, answers, tmp_path)
    with pytest.raises(InputError, match="run: was begun with other prompts or answers"):
        profile_run(other, tmp_path / "run")


def test_an_answer_is_of_its_prompt_s_group_and_category(chatting, tmp_path):
    asked = [Prompt("5 6 7", "g0", chat=True, name="a", category="code"), Prompt("9 9", "g1", chat=True, name="b")]
    rows = [{"custom_id": "b", "token_ids": ANSWER, "category": "own"}, {"custom_id": "a", "token_ids": ANSWER}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = read_answers(tmp_path / "a.jsonl", chatting, 12, asked)
    assert [(p.group, p.category) for p in given.prompts] == [("g1", "own"), ("g0", "code")]
    with pytest.raises(InputError, match="belongs to 'a', which 2 prompts of --corpus are named"):
        read_answers(tmp_path / "a.jsonl", chatting, 12, [*asked, asked[0]])


def test_answers_across_a_rope_switch_are_refused(tmp_path):
    from test_context import longrope as make

    model = make.__wrapped__()
    across, apart, beside = (
        ([[5] * 30], [[7] * 20]),
        ([[5] * 30, [6] * 50], [[7] * 9] * 2),
        ([[5] * 30, [6] * 8], [[7] * 9] * 2),
    )
    for prompts, answers in (across, apart):
        with pytest.raises(InputError, match="both sides of 40 tokens"):
            given_job(model, prompts, answers, tmp_path)
    assert given_job(model, *beside, tmp_path, reference=True).text


def test_text_that_is_not_the_model_s_is_refused_unless_it_is_said(tmp_path):
    model, prompts = tiny_model(), random_prompts(12, seed=5)
    answers = [row[:20] for row in random_prompts(12, seed=9) if len(row) >= 6] or None
    prompts = prompts[: len(answers)]
    with pytest.raises(
        InputError, match=r"at \d\.\d% of \d+ tokens looked at .* --acceptance sample .* --reference-text"
    ):
        given_job(model, prompts, answers, tmp_path)
    assert given_job(model, prompts, answers, tmp_path, reference=True).text.startswith("reference text; at ")
    assert "sampling" in given_job(model, prompts, answers, tmp_path, rule=Sampling(seed=0)).text


def test_a_tie_that_another_engine_flips_is_no_other_text(tmp_path):
    model, prompts = tiny_model(), random_prompts(40, seed=5)
    answers = model.generate(prompts, max_new_tokens=28, eos_token_id=[]).tokens
    answers[3][10] = (answers[3][10] + 1) % 40
    job = given_job(model, prompts, answers, tmp_path)
    share, count = follow.agreement(model, job.prompts, 400, 0)
    assert count == 16 * 28
    assert AGREE < share <= 1
    assert judged(model, job.prompts, job.profiling) == job.text
