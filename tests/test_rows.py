"""Texts as people have them: any ending and encoding, conversations of any spelling; what cannot be read is named by line."""

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tracemalloc

import pytest
import transformers

from medusa_runtime import InputError
from medusa_tree import rows
from medusa_tree.bundled import data_path, resolve_corpus
from medusa_tree.profiling.corpus import Prompt, corpus_digest, hold_out, read_corpus, read_prompts
from medusa_tree.profiling.tokens import tokenize
from medusa_tree.rows import CutOff, ending, iter_entries, read_lines, read_text
from medusa_tree.traces.tracefile import read_trace
from medusa_tree.training.data import read_rows


def write(folder, name, text):
    path = folder / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    return path


def texts(path):
    return [p.text for p in read_corpus(path)]


@pytest.fixture
def tokenizer():
    """The demo's, which has no chat template; each test its own."""
    return transformers.AutoTokenizer.from_pretrained(data_path("demo", "model"))


# --- lines and endings


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.NDJSON", "a.jsonl.gz", "A.NdJson.GZ"])
def test_one_object_a_line_whatever_the_name_says_it_in(tmp_path, tokenizer, name):
    path = write(tmp_path, name, '{"text": "one and more"}\r\n\r\n{"text": "two and more"}')
    assert texts(path) == ["one and more", "two and more"]
    assert [tokenizer.decode(row.ids) for row in read_rows(path, tokenizer, 100)] == ["one and more", "two and more"]


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.JSON", '["one", {"text": "two"}]', ["one", "two"]),
        ("a.json.gz", '["one", {"text": "two"}]', ["one", "two"]),
        ("a.txt", "one\r\ntwo\n", ["one", "two"]),
        ("a.TXT.gz", "one\n\ntwo", ["one", "two"]),
        ("prompts", "one\ntwo", ["one", "two"]),
    ],
)
def test_the_ending_decides_the_form_of_prompts(tmp_path, name, text, wanted):
    assert texts(write(tmp_path, name, text)) == wanted


@pytest.mark.parametrize("name", ["t.jsonl", "t.NDJSON", "t.jsonl.gz"])
def test_the_ending_decides_the_form_of_rank_traces(tmp_path, name):
    path = write(tmp_path, name, '{"ranks": [[0, 1]]}\n{"ranks": [[1, 0], [2, 2]]}\n')
    assert read_trace(path).ranks.tolist() == [[0, 1], [1, 0], [2, 2]]


def test_a_name_that_is_only_an_ending_has_none(tmp_path):
    assert [ending(tmp_path / name) for name in (".jsonl", "x.gz", "a.b.npz")] == ["", "", ".npz"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c"])
def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path, mark):
    said = f"before{mark}after"
    lines = json.dumps({"text": said}, ensure_ascii=False) + "\n" + json.dumps({"text": "next"})
    if mark.isprintable() or ord(mark) > 31:  # others must be escaped in JSON, and json.dumps does so
        assert mark in lines
    assert texts(write(tmp_path, "a.jsonl", lines)) == [said, "next"]
    assert texts(write(tmp_path, "a.txt", f"{said}\nnext")) == [said, "next"]


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", '{"text": "é"}'), ("a.json", '["é"]'), ("a.txt", "é")])
def test_a_byte_order_mark_is_no_text(tmp_path, name, text):
    assert texts(write(tmp_path, name, "\ufeff" + text)) == ["é"]
    assert read_text(tmp_path / name) == text


HALVES = [
    (r"\ud800", "\ufffd"),
    (r"cut \ud83d", "cut \ufffd"),
    (r"\uDE00\ud83d\ude00", "\ufffd\U0001f600"),
    (r"a \\ud800 of text", r"a \ud800 of text"),
    (r"\\\ud800", "\\\ufffd"),
    (r"\ud83d\n\ud83d\u0041", "\ufffd\n\ufffdA"),
]


@pytest.mark.parametrize(("escaped", "wanted"), HALVES)
def test_half_of_a_surrogate_pair_is_read_as_a_character_that_is_missing(tmp_path, tokenizer, escaped, wanted):
    for name, text in (("a.jsonl", '{"text": "%s"}'), ("a.json", '["%s"]')):
        (prompt,) = read_corpus(write(tmp_path, name, text % escaped))
        assert prompt.text == wanted
        assert tokenize([prompt], tokenizer)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', r"a\.jsonl, line 2: is not UTF-8 text .*save it as UTF-8"),
        ("a.txt", b"x\n\xed\xa0\x80\n", r"a\.txt, line 2: is not UTF-8 text"),
        ("a.txt", "x\ny".encode("utf-16"), r"a\.txt, line 1: is not UTF-8 text"),
        ("a.json", b'["\xff"]', r"a\.json: is not UTF-8 text"),
        ("a.jsonl", '"x"\n' + "[" * 100_000, r"a\.jsonl, line 2: not JSON"),
        ("a.json", "[" * 100_000, r"a\.json: not JSON"),
        ("a.jsonl", '"x"\n"\\ud800', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", '\ufeff"x"\n\ufeff"y"', r"a\.jsonl, line 2: not JSON"),
    ],
)
def test_text_that_cannot_be_read_is_named_by_line(tmp_path, tokenizer, name, text, words):
    path = write(tmp_path, name, text)
    with pytest.raises(InputError, match=words):
        read_corpus(path)
    if name != "a.txt":
        with pytest.raises(InputError, match=words.replace("line 2", "line [12]")):
            read_rows(path, tokenizer, 100)


def test_a_gzip_file_that_is_none_is_named(tmp_path):
    whole = gzip.compress(b"some text\n" * 1000)
    for broken in (b"no gzip", whole[: len(whole) // 2], whole[:10] + b"\xff" * 30, whole[:-8] + b"12345678"):
        (tmp_path / "a.txt.gz").write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.txt\.gz: is no whole gzip file \(.*\); pack it again"):
            list(read_lines(tmp_path / "a.txt.gz"))
    with pytest.raises(InputError, match=r"none\.txt\.gz: cannot be read \(No such file"):
        read_text(tmp_path / "none.txt.gz")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory"):
        read_corpus(tmp_path)


# --- lists that are too large to hold


@pytest.fixture(params=[1, 2, 7, 64, 1 << 16])
def streamed(request, monkeypatch):
    """Every list is read entry by entry, in pieces of this size."""
    monkeypatch.setattr(rows, "LARGE", 8)
    monkeypatch.setattr(rows, "PIECE", request.param)


ENTRIES = [
    {"a": [1, 2.5, None, True, -3e-7], "é\u2028": 'x\ny \\ "q" \U0001f600\uffff'},
    "two",
    [],
    {},
    2**62,
    {"text": "end"},
]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\r\n "])
@pytest.mark.usefixtures("streamed")
def test_a_large_list_is_read_as_a_small_one(tmp_path, name, ascii_only, indent, mark):
    path = write(tmp_path, name, mark + json.dumps(ENTRIES, ensure_ascii=ascii_only, indent=indent) + "\n")
    assert list(iter_entries(path)) == [(f"{path}, entry {i}", entry) for i, entry in enumerate(ENTRIES, start=1)]


@pytest.mark.parametrize(("escaped", "wanted"), HALVES)
@pytest.mark.usefixtures("streamed")
def test_half_of_a_pair_in_a_large_list_is_read_as_in_a_small_one(tmp_path, escaped, wanted):
    for around in ("", "b\\\\", "x" * 61):
        path = write(tmp_path, "a.json", f'["{around}{escaped}", "{escaped}{around}"]')
        said = around.replace("\\\\", "\\")
        assert [entry for _, entry in iter_entries(path)] == [said + wanted, wanted + said]


def until(path):
    """The entries before an error, and it."""
    entries = []
    try:
        for _, entry in iter_entries(path):
            entries.append(entry)
    except InputError as error:
        return entries, error
    return entries, None


@pytest.mark.parametrize("large", [rows.LARGE, 8])
def test_a_list_that_is_cut_off_anywhere_is_whole_up_to_an_entry(tmp_path, monkeypatch, large):
    monkeypatch.setattr(rows, "LARGE", large)
    monkeypatch.setattr(rows, "PIECE", 16)
    whole = json.dumps(ENTRIES, ensure_ascii=False).encode()
    seen = set()
    for end in range(2, len(whole)):
        entries, error = until(write(tmp_path, "a.json", whole[:end]))
        assert entries == ENTRIES[: len(entries)]
        seen.add(len(entries))
        if entries:
            assert isinstance(error, CutOff), end
            assert f"a.json: is cut off, whole up to entry {len(entries)} (" in str(error)
        else:
            assert "a.json: not JSON (" in str(error)
        assert "\n" not in str(error)
    assert seen == set(range(len(ENTRIES) + 1))


@pytest.mark.parametrize("large", [rows.LARGE, 8])
def test_a_corpus_that_is_cut_off_serves_up_to_there(tmp_path, monkeypatch, large):
    monkeypatch.setattr(rows, "LARGE", large)
    skipped = {"conversations": [{"from": "gpt", "value": "r"}]}
    asked = [{"conversations": [{"from": "human", "value": f"q{i} é"}]} for i in range(3)]
    path = write(tmp_path, "a.json", json.dumps([asked[0], skipped, *asked[1:]], ensure_ascii=False)[:-5])
    words = r"a\.json: is cut off, whole up to entry 3 \(.*\); give the whole file; or ask for those before with --prompts 2"
    with pytest.raises(InputError, match=words):
        read_prompts([str(path)])
    with pytest.raises(InputError, match=words):
        read_prompts([str(path)], most=3)
    read = read_prompts([str(path)], most=2)
    assert [p.text for p in read.prompts] == ["q0 é", "q1 é"]
    assert read.skipped == 1


@pytest.mark.parametrize("large", [rows.LARGE, 8])
@pytest.mark.parametrize(
    ("data", "words", "before"),
    [
        (b'["x", "y", oh no]', r"a\.json: not JSON behind entry 2 \(", 2),
        (b'["x"] "y"', r"a\.json: not JSON behind entry 1 \(", 1),
        (b'["x" "y"]', r"a\.json: not JSON behind entry 1 \(", 1),
        (b'["' + b"x" * 40 + b'", "' + b"y" * 20 + b'\xff"]', r"a\.json: is not UTF-8 text \(invalid start byte at byte 66\); save it as UTF-8", 1),
        (b'\xef\xbb\xbf{"item": ["x"]}', r"a\.json: holds no list; for one object a line name it \.jsonl", 0),
        (b'["x", ' + b"9" * 5000 + b"]", r"a\.json: not JSON behind entry 1 \(integer overflow\)", 1),
        (b'["x", ' + b'{"a": [' * 50_000, r"a\.json: not JSON behind entry 1 \(nested more than 200 deep\)", 1),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_list_is_named_behind_what_is_right(tmp_path, monkeypatch, large, data, words, before):
    monkeypatch.setattr(rows, "LARGE", large)
    monkeypatch.setattr(rows, "PIECE", 16)
    entries, error = until(write(tmp_path, "a.json", data))
    assert re.match(f".*{words}", str(error))
    assert len(entries) == before


def test_a_large_gzip_file_that_is_cut_off_serves_up_to_there(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LARGE", 1 << 10)
    monkeypatch.setattr(rows, "PIECE", 1 << 10)
    texts = [os.urandom(50).hex() for _ in range(500)]
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps(texts).encode())[:-2000])
    assert [p.text for p in read_prompts([str(path)], most=100).prompts] == texts[:100]
    with pytest.raises(InputError, match=r"a\.json\.gz: is no whole gzip file \("):
        read_prompts([str(path)])


def test_a_large_list_is_read_with_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LARGE", 1 << 20)
    path, entry = tmp_path / "a.json", json.dumps({"conversations": [{"from": "human", "value": "words " * 500}]})
    path.write_text(f"[{', '.join([entry] * 10_000)}]")
    assert path.stat().st_size > 30e6
    tracemalloc.start()
    try:
        count = sum(1 for _ in iter_entries(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert peak < 6e6, "what is looked at first, some pieces, and what the parser makes of one"


# --- conversations


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "asked"}, {"from": "gpt", "value": "said"}]},
        {"conversations": [{"from": "user", "value": "asked"}, {"from": "assistant", "value": "said"}]},
        {"conversations": [{"role": "user", "content": "asked"}, {"role": "model", "content": "said"}]},
        {"conversation": [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "said"}]},
        {"messages": [{"from": "Human", "value": "asked"}, {"from": "chatgpt", "value": "said"}]},
        {"messages": [{"role": "User", "content": "asked"}, {"role": "bot", "content": "said"}]},
        {"messages": None, "text": None, "response_ids": None, "group": None,
         "conversations": [{"from": "human", "value": "asked"}, {"from": "gpt", "value": "said"}]},
        {"conversations": None, "prompt": None, "turns": None,
         "messages": [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "said"}]},
        {"messages": [], "conversations": [
            {"role": None, "content": None, "from": "human", "value": "asked"},
            {"role": None, "content": None, "from": "gpt", "value": "said"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "asked", "image": None}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "said"}]}]},
    ],
)  # fmt: skip
def test_a_conversation_is_read_however_it_is_spelt(tmp_path, tokenizer, row):
    path = write(tmp_path, "a.jsonl", json.dumps(row))
    assert read_corpus(path) == [Prompt("asked", f"{path}, line 1", chat=True)]
    tokenizer.chat_template = TEMPLATE
    (made,) = read_rows(path, tokenizer, 100)
    assert tokenizer.decode(made.ids).startswith("<user>asked<assistant>said")
    assert tokenizer.decode([t for t in made.labels if t >= 0]).startswith("said")


def test_parts_of_a_text_are_lines_and_an_image_is_none(tmp_path, tokenizer):
    parts = [{"type": "text", "text": "first"}, {"type": "text", "text": "second"}]
    picture = [{"type": "image_url", "image_url": {"url": "x"}}, *parts]
    path = write(tmp_path, "a.jsonl", json.dumps({"messages": [{"role": "user", "content": parts}]}))
    assert texts(path) == ["first\nsecond"]
    turns = [{"role": "user", "content": picture}, {"role": "assistant", "content": "a cat"}]
    path = write(tmp_path, "a.jsonl", json.dumps({"messages": turns}))
    with pytest.raises(InputError, match=r"line 1: no prompt in it"):
        read_corpus(path)
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(InputError, match=r"line 1: turn 0 has no known role and text"):
        read_rows(path, tokenizer, 100)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, r"has no chat template \(.*demo.model\); .*plain text"),
        ("{{ raise_exception('system turn first') }}", r"refuses .*demo.model\): system turn first"),
        ("{% for m in messages %}{{ m.content }}", r"refuses .*endfor"),
        ("{{ messages[0].content + 1 }}", "refuses .*str"),
        ("{{ messages[1].content.x }}", "refuses .*no element 1"),
        ("{{ 1 // 0 }}", "refuses .*zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses .*recursion"),
        ("{% if false %}x{% endif %}", "makes nothing of"),
        ({"rag": TEMPLATE, "tool_use": TEMPLATE}, r"has the chat templates rag, tool_use and none named default"),
    ],
)  # fmt: skip
def test_a_chat_template_that_cannot_be_used_names_line_and_tokenizer(tmp_path, tokenizer, template, words):
    tokenizer.chat_template = template
    chat = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    path = write(tmp_path, "a.jsonl", '{"text": "plain text"}\n' + chat)
    with pytest.raises(InputError, match=rf"a\.jsonl, line 2: .*{words}"):
        tokenize(read_corpus(path), tokenizer)
    with pytest.raises(InputError, match=rf"a\.jsonl, line 2: .*{words}"):
        read_rows(path, tokenizer, 100)


def test_of_several_chat_templates_the_default_is_taken(tokenizer):
    tokenizer.chat_template = {"rag": "x", "default": TEMPLATE}
    (row,) = tokenize([Prompt("q", "g", chat=True)], tokenizer)
    assert tokenizer.decode(row) == "<user>q<assistant>"


# --- the held-out split


def same_side(prompts, seed):
    held = hold_out(prompts, 0.3, seed)
    side = {}
    return all(
        side.setdefault(key, h) == h for p, h in zip(prompts, held, strict=True) for key in (p.group, p.text.strip())
    )


def test_the_same_prompt_is_never_on_both_sides_of_the_split():
    prompts = [Prompt(f"p{i % 13} ", f"line {i}") for i in range(40)]
    prompts += [Prompt("p1", "a"), Prompt("own", "a"), Prompt("own", "b"), Prompt("p5", "b", chat=True)]
    assert all(same_side(prompts, seed) for seed in range(20))
    assert {bool(h) for h in hold_out(prompts, 0.3, 0)} == {True, False}
    with pytest.raises(InputError, match="all is of one document, prompt or group"):
        hold_out([Prompt("p", f"line {i}") for i in range(8)], 0.25, 0)
    chain = [Prompt(f"t{i // 2}", f"g{(i + 1) // 2}") for i in range(40)]  # each shares with the next
    with pytest.raises(InputError, match="all is of one"):
        hold_out(chain, 0.25, 0)


def test_rows_without_a_group_or_with_null_are_each_their_own(tmp_path):
    rows = [{"text": f"t{i}", **({"group": None} if i % 2 else {})} for i in range(12)]
    prompts = read_corpus(write(tmp_path, "a.jsonl", "".join(json.dumps(r) + "\n" for r in rows)))
    assert len({p.group for p in prompts}) == 12


def test_the_demos_prompts_and_split_are_those_that_figures_were_made_with():
    prompts = read_corpus(resolve_corpus("demo"))
    assert corpus_digest(prompts) == "600805190102d41c24fa4392f051907962a32e9fcb03eb97185db0fc60a57360"
    held = hold_out(prompts, 0.25, 0)
    drawn = "98a1e3fbc9cb2258dbc292237434447ab7d124e9b4cbb11551f20c7c352e7ca6"
    assert hashlib.sha256(held.tobytes()).hexdigest() == drawn
    assert same_side(prompts, 0)


# --- arguments


@pytest.mark.parametrize(
    "args",
    [
        [b"generate", b"caf\xe9 \xff", b"--model", b"demo"],
        [b"calibrate", b"--model", b"demo", b"--corpus", b"/tmp/\xff.txt"],
        [b"train", b"--model", b"\xff", b"--data", b"x.jsonl", b"-o", b"out"],
        [b"show", b"\xed\xa0\x80.json"],
        [b"\xff"],
    ],
)
def test_an_argument_that_is_not_utf_8_is_refused_with_its_bytes(args):
    done = subprocess.run([sys.executable, "-m", "medusa_tree", *args], capture_output=True, env=os.environ)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert rb"\x" in done.stderr
    assert b"is not UTF-8" in done.stderr


def test_half_of_a_pair_in_a_prompt_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"the prompt: is no text: character 2 is '\\udcff'"):
        tokenize([Prompt("a \udcff", "g")], tokenizer)
