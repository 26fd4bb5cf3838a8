"""Corpora as they are found: benchmarks, conversations, requests, datasets and tables; several of them by name, and their split.
A dataset is here a folder of data files, which the library reads like one of the Hub's."""

import gzip
import json
import sys
from collections import Counter

import numpy as np
import pytest

from medusa_runtime import InputError
from medusa_tree.bundled import resolve_corpus
from medusa_tree.profiling.corpus import Prompt, Read, hold_out, read_corpus, read_prompts
from medusa_tree.profiling.holdout import hold_out_groups

ROWS = [
    {"prompt_id": 7, "prompt": ["First turn", "and a second"]},
    {"prompt_id": 8, "prompt": ["Another"]},
    {"prompt_id": 9, "prompt": ["A third"]},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "bench").mkdir()
    for split in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
        (tmp_path / "bench" / f"{split}.jsonl").write_text(text)
    return tmp_path / "bench"


def test_rows_of_a_split_are_prompts(folder):
    name = f"hf:{folder}:test"
    turns = [r["prompt"] for r in ROWS]
    assert read_corpus(name) == [
        Prompt(t[0], f"{name}, row {i}", True, later=tuple(t[1:])) for i, t in enumerate(turns)
    ]
    assert [p.text for p in read_corpus(f"hf:{folder}:train[1:]")] == ["Another", "A third"]


def test_the_only_split_need_not_be_named(folder):
    (folder / "test.jsonl").unlink()
    assert len(read_corpus(f"hf:{folder}")) == 3


def test_what_is_no_dataset_is_named(folder, monkeypatch):
    with pytest.raises(InputError, match=r"has the splits train, test; name one, as in hf:.*:train"):
        read_corpus(f"hf:{folder}")
    with pytest.raises(InputError, match=r"hf:.*:dev: cannot be loaded \("):
        read_corpus(f"hf:{folder}:dev")
    with pytest.raises(InputError, match=r"hf:nobody/nothing: cannot be loaded \("):
        read_corpus("hf:nobody/nothing")
    with pytest.raises(InputError, match="is no hf:OWNER/NAME"):
        read_corpus("hf:")
    (folder / "train.jsonl").unlink()
    (folder / "test.jsonl").write_text('{"answer": 1}\n')
    with pytest.raises(InputError, match=r"row 0: no prompt in it"):
        read_corpus(f"hf:{folder}:test")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'medusa-tree\[datasets\]'"):
        read_corpus(f"hf:{folder}:test")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(tmp_path, row):
    """The only prompt of a file of this row."""
    (prompt,) = read_corpus(lines(tmp_path / "one.jsonl", [row]))
    return prompt


def turns(*said, role="role", content="content"):
    """ "u: hello" -> a turn of the user."""
    roles = {"u": "user", "a": "assistant", "s": "system", "d": "developer", "t": "tool", "h": "human", "g": "gpt"}
    return [{role: roles[turn[0]], content: turn[3:]} for turn in said]


def share(*said):
    return turns(*said, role="from", content="value")


# --- forms


@pytest.mark.parametrize("field", ["turns", "prompt"])
def test_all_turns_of_a_benchmarks_question_are_the_conversation(tmp_path, field):
    prompt = one(tmp_path, {"question_id": 81, "category": "writing", field: ["First", " ", "then", "and then"]})
    assert (prompt.text, prompt.later, prompt.chat) == ("First", ("then", "and then"), True)
    assert (prompt.category, prompt.name) == ("writing", "81")


@pytest.mark.parametrize(
    ("row", "before", "text"),
    [
        ({"conversations": share("s: be brief", "h: hello", "g: hi", "h: more")}, [("system", "be brief")], "hello"),
        ({"conversation": turns("d: one", "s: two", "u: hello")}, [("system", "one"), ("system", "two")], "hello"),
        ({"messages": turns("s: s", "u: q", "a: r", "u: now")}, [("system", "s"), ("user", "q"), ("assistant", "r")], "now"),
        ({"messages": turns("d: s", "u: q", "a: r", "u: p", "a: r")}, [("system", "s")], "q"),
        ({"messages": turns("a: welcome", "u: q")}, [("assistant", "welcome")], "q"),
        ({"messages": turns("u: q", "t: 5 degrees", "a:  ", "u: now")}, [("user", "q")], "now"),
        ({"custom_id": "r", "method": "POST", "body": {"model": "m", "messages": turns("s: s", "u: q")}}, [("system", "s")], "q"),
        ({"custom_id": "r", "body": {"messages": []}, "messages": turns("u: q")}, [], "q"),
    ],
)  # fmt: skip
def test_what_stands_before_the_users_turn_is_kept(tmp_path, row, before, text):
    prompt = one(tmp_path, row)
    assert (list(prompt.before), prompt.text, prompt.later, prompt.chat) == (before, text, (), True)
    assert prompt.messages == [*({"role": r, "content": c} for r, c in before), {"role": "user", "content": text}]


def test_a_row_is_named_by_what_its_corpus_calls_it(tmp_path):
    rows = [{"custom_id": "r-1", "body": {"messages": turns("u: q")}}, {"task_id": "HumanEval/0", "prompt": "def f"}]
    rows += [{"question_id": 81, "turns": ["q"]}, {"question_id": None, "task_id": [], "text": "q"}]
    prompts = read_corpus(lines(tmp_path / "c.jsonl", rows))
    assert [p.name for p in prompts] == ["r-1", "HumanEval/0", "81", None]


def test_human_eval_and_gsm8k_are_read_as_published(tmp_path):
    row = {"task_id": "HumanEval/0", "prompt": "def f(x):\n", "entry_point": "f", "test": "assert f(1)"}
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert [(p.text, p.chat) for p in read_corpus(path)] == [("def f(x):\n", False)]
    prompt = one(tmp_path, {"question": "How many clips?", "answer": "#### 72"})
    assert (prompt.text, prompt.chat) == ("How many clips?", True)


@pytest.mark.parametrize(
    ("fields", "category"),
    [
        ({"category": "math", "sub_category": "gsm8k"}, "math"), ({"category": None, "sub_category": "gsm8k"}, "gsm8k"),
        ({"category": "", "sub_category": None}, None), ({"category": 3}, "3"), ({}, None),
    ],
)  # fmt: skip
def test_the_category_is_the_rows_own(tmp_path, fields, category):
    assert one(tmp_path, {"text": "q", **fields}).category == category


@pytest.mark.parametrize("value", [True, ["math"], {"a": 1}, float("nan")])
@pytest.mark.parametrize("field", ["category", "sub_category"])
def test_a_category_that_is_none_is_named(tmp_path, field, value):
    with pytest.raises(InputError, match=rf'one\.jsonl, line 1: "{field}" must be text or a number; leave it out'):
        one(tmp_path, {"text": "q", field: value})


UNASKED = [
    {"conversations": []}, {"conversations": share("g: hello", "h: q")}, {"conversations": share("s: s", "g: hello")},
    {"conversations": share("s: s")}, {"conversation": turns("u:  ")}, {"conversations": [{"from": "bing", "value": "q"}]},
    {"conversations": [{"from": "human", "value": [{"type": "image"}]}, *share("g: a cat", "h: why?")]},
]  # fmt: skip


def test_conversations_of_which_nothing_can_be_asked_are_skipped_and_counted(tmp_path):
    asked = {"conversations": share("h: q", "g: r")}
    path = lines(tmp_path / "c.jsonl", [*UNASKED, asked, UNASKED[0]])
    read = read_prompts([str(path)])
    assert read == Read([Prompt("q", f"{path}, line 8", chat=True)], len(UNASKED) + 1)
    assert read.told() == "8 conversations beside 1 prompts were skipped: empty, or not begun by the user"
    assert read_prompts([str(path)], most=1).skipped == len(UNASKED), "what stands behind the last one is not read"
    assert read_prompts([str(lines(path, [asked]))]).told() is None
    with pytest.raises(
        InputError, match=r"c\.jsonl: nothing can be asked: its conversations, 7 of 7, are empty, or not"
    ):
        read_prompts([str(lines(path, UNASKED))])


@pytest.mark.parametrize(
    "row", [{"answer": 5}, {"prompt": ""}, {"conversations": None}, {"messages": []}, {"messages": turns("a: r")}, {"body": {"messages": []}}]
)  # fmt: skip
def test_a_row_that_is_no_conversation_is_refused_by_line(tmp_path, row):
    path = lines(tmp_path / "c.jsonl", [{"conversations": share("h: q")}, row])
    with pytest.raises(InputError, match=r"c\.jsonl, line 2: no prompt in it"):
        read_prompts([str(path)])
    assert len(read_prompts([str(path)], most=1).prompts) == 1


# --- tables


def test_a_parquet_file_is_read_by_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"conversations": share("s: s", "h: q"), "group": 3}, {"conversations": share("g: r"), "group": None}]
    path = tmp_path / "a[1] *.PARQUET"
    parquet.write_table(pyarrow.Table.from_pylist(rows * 300), path, row_group_size=7)
    read = read_prompts([str(path)])
    assert read.prompts[:1] == [Prompt("q", "3", True, before=(("system", "s"),))]
    assert (len(read.prompts), read.skipped) == (300, 300)
    assert read.prompts[-1].where == f"{path}, row 598"
    assert len(read_prompts([str(path)], most=5).prompts) == 5
    assert list(tmp_path.iterdir()) == [path], "nothing is kept beside it"
    parquet.write_table(pyarrow.table({"answer": [1]}), path)
    with pytest.raises(InputError, match=r"row 0: no prompt in it"):
        read_corpus(path)


def test_a_parquet_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path = tmp_path / "c.parquet"
    with pytest.raises(InputError, match=r"c\.parquet: cannot be read as Parquet \(.*No such file"):
        read_corpus(path)
    for data in (b"", b"PAR1 and no more", b"x" * 999):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"c\.parquet: cannot be read as Parquet \("):
            read_corpus(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        InputError, match=r"c\.parquet: reading Parquet needs a library: pip install 'medusa-tree\[datasets\]'"
    ):
        read_corpus(path)


# --- several, by name


def test_the_name_of_a_corpus_is_the_category_of_its_prompts(tmp_path):
    code = lines(tmp_path / "code.jsonl", [{"prompt": f"def f{i}", "category": ["odd"]} for i in range(5)])
    chat = lines(tmp_path / "chat.jsonl", [{"turns": [f"q{i}"], "category": "writing"} for i in range(5)])
    text = tmp_path / "plain.txt"
    text.write_text("one\ntwo\n")
    read = read_prompts([f"code={code}", str(chat), f"my-notes_2={text}", "d=demo"], most=3)
    assert [p.text for p in read.prompts[:8]] == ["def f0", "def f1", "def f2", "q0", "q1", "q2", "one", "two"]
    assert Counter(p.category for p in read.prompts) == {"code": 3, "writing": 3, "my-notes_2": 2, "d": 3}
    assert [p.text for p in read.prompts[8:]] == [p.text for p in read_corpus(resolve_corpus("demo"))[:3]]


def test_a_file_whose_name_looks_like_a_named_one_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("named\n")
    assert [(p.text, p.category) for p in read_prompts(["x=a.txt"]).prompts] == [("named", "x")]
    (tmp_path / "x=a.txt").write_text("whole\n")
    assert [(p.text, p.category) for p in read_prompts(["x=a.txt"]).prompts] == [("whole", None)]
    for spec in ("a b=a.txt", "./y=a.txt", "=a.txt", "é=a.txt"):
        with pytest.raises(InputError, match=rf"{spec.removeprefix('./')}: cannot be read"):
            read_prompts([spec])
    with pytest.raises(InputError, match=r"^none\.txt: cannot be read"):
        read_prompts(["x=a.txt", "y=none.txt"])


def test_groups_of_two_files_are_two_groups(tmp_path):
    paths = [lines(tmp_path / f"{n}.jsonl", [{"text": f"{n}{i}", "group": i % 3} for i in range(9)]) for n in "ab"]
    (tmp_path / "c.txt").write_text("c0\nc1\n")
    (tmp_path / "d.txt").write_text("d0\nd1\n")
    prompts = read_prompts([f"x={paths[0]}", f"x={paths[1]}", *(str(tmp_path / f"{n}.txt") for n in "cd")]).prompts
    of = {}
    for p in prompts:
        of.setdefault(p.group, set()).add(p.text[0])
    assert len(of) == 3 + 3 + 2 + 2
    assert all(len(files) == 1 for files in of.values())
    assert [p.group for p in read_prompts([f"x={paths[0]}"]).prompts[:3]] == ["0", "1", "2"]


# --- the held-out split by category


def of_categories(**sizes):
    return [Prompt(f"{c}{i}", f"{c}{i}", category=c) for c, n in sizes.items() for i in range(n)]


@pytest.mark.parametrize("seed", range(10))
def test_each_category_has_some_on_both_sides(seed):
    prompts = of_categories(code=2, chat=7, math=40, lone=1) + [Prompt(f"{i}", f"{i}") for i in range(4)]
    held = hold_out(prompts, 0.25, seed)
    drawn = Counter(p.category for p, h in zip(prompts, held, strict=True) if h)
    assert drawn == {"code": 1, "chat": 2, "math": 10, None: 1}, "a category of one group is fitted on"


def test_a_group_is_of_its_first_prompts_category():
    prompts = [Prompt(f"{i}", f"g{i % 6}", category="a" if i < 6 else "b") for i in range(60)]
    assert hold_out(prompts, 0.25, 0).tolist() == hold_out([Prompt(p.text, p.group) for p in prompts], 0.25, 0).tolist()


def test_without_categories_of_several_groups_the_draw_is_from_all():
    prompts = of_categories(**{f"c{i}": 1 for i in range(12)})
    assert hold_out(prompts, 0.25, 3).tolist() == hold_out([Prompt(p.text, p.group) for p in prompts], 0.25, 3).tolist()
    assert hold_out(prompts, 0.25, 3).sum() == 3
    with pytest.raises(InputError, match="all is of one document"):
        hold_out([Prompt("same", "a", category="x"), Prompt("same", "b", category="y")], 0.25, 0)


def test_one_category_is_drawn_from_as_none(tmp_path):
    """Calibrations go by the split: it may not change under them."""
    rng = np.random.default_rng(0)
    for seed in range(30):
        groups = [f"g{g}" for g in rng.integers(0, 20, 80)]
        contents = rng.integers(0, 300, 80).tolist()
        plain = hold_out_groups(groups, contents, 0.25, seed)
        assert (hold_out_groups(groups, contents, 0.25, seed, ["x"] * 80) == plain).all()
        assert (hold_out_groups(groups, contents, 0.25, seed, [None] * 80) == plain).all()


def test_requests_are_the_same_where_all_that_was_said_is():
    def request(group, *said):
        return Prompt("and then?", group, True, before=said)

    other = [Prompt(f"{i}", f"{i}") for i in range(6)]
    same = [request("a", ("system", "x"), ("user", "q")), request("b", ("user", "q")), request("c", ("user", "p"))]
    sides = [hold_out([*same, *other], 0.4, seed)[:3] for seed in range(30)]
    assert all(a == b for a, b, _ in sides)
    assert any(b != c for _, b, c in sides)
