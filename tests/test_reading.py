"""What people hand us, form by form: wrong values are named by file and field, unknown fields are let be, nothing else is raised."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import jsonschema
import pytest
from forms import ALL, ENDING, as_text, put, read, spots, tokenizer, written
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import run, words
from test_plan import calibration

from medusa_runtime import InputError
from medusa_runtime.schema import schema
from medusa_runtime.treefile import read_tree, write_tree
from medusa_tree.bundled import data_path
from medusa_tree.planning.calibration import save_calibration
from medusa_tree.profiling.corpus import read_corpus
from medusa_tree.training.data import read_rows


@pytest.fixture(scope="session")
def forms(tmp_path_factory):
    """Every form of file by name, as JSON, and the arrays of the calibration."""
    return written(tmp_path_factory.mktemp("written"))


NAN, HUGE = float("nan"), 10**400
BAD = {
    "tree": [
        (("heads",), "3", r'field "heads" must be a whole number, not text'),
        (("heads",), HUGE, r'field "heads" is a number of 401 digits; it must be 2147483647 or less'),
        (("candidates",), None, r'field "candidates" is None, not a whole number'),
        (("path_frequency", 1), NAN, r'field "path_frequency", entry 1 is nan, not a finite number'),
        (("path_frequency", 1), 2, r'field "path_frequency", entry 1 is 2; it must be 1 or less'),
        (("paths",), {}, r'field "paths" must be a list, not an object'),
        (("paths", 1, 0), 0.5, r'field "paths", entry 1, entry 0 is 0.5, not a whole number'),
        (("head_accuracy", 1), [0.5], r'field "head_accuracy" must be a list of 3 rows, one a head, of 4 numbers each'),
        (("operating_points", 0), [], r'field "operating_points", entry 0 must be an object, not empty'),
        (("operating_points", 0, "batch"), True, r'entry 0, "batch" must be a whole number, not true or false'),
        (("operating_points", 0, "speedup", "low"), HUGE, r'"speedup", "low" is a number of 401 digits, not a finite number'),
        (("operating_points", 0, "speedup"), None, r'entry 0, "speedup" must be an object, not None'),
        (("operating_points", 0, "latency"), "guessed", r"\"latency\" is 'guessed'; it must be 'measured' or 'modelled'"),
        (("acceptance",), {"rule": "sample", "temperature": None}, r'field "acceptance": temperature None is out of range'),
        (("acceptance",), {"rule": "sample", "top_k": "5"}, r"top-k '5' is out of range; it must be a whole number"),
        (("acceptance",), None, r'field "acceptance" must be an object with "rule"'),
        (("provenance", "date"), NAN, r'field "provenance": holds nan, which is no JSON'),
        (("provenance", "corpus", "prompts"), "3", r'field "provenance": field "corpus", "prompts" must be a whole number'),
        (("provenance", "plan", "budget", "ratio"), "1", r'"plan", "budget": field "ratio" must be a finite number'),
        (("version",), 1.2, r'field "version" is 1.2'),
    ],
    "modelled": [
        (("bandwidth",), "3e12", r'field "bandwidth" must be a finite number, not text'),
        (("flops",), 0, r'field "flops" is 0; it must be 1000 or more'),
        (("dtype",), "float128", r"field \"dtype\" is 'float128'; it must be 'float32', 'bfloat16'"),
        (("shape", "layers"), None, r'field "shape", "layers" is None, not a whole number'),
        (("max_nodes",), 10**12, r'field "max_nodes" is 1000000000000; it must be 65536 or less'),
    ],
    "latency": [
        (("points", 1, "seconds"), "1", r'point 1: field "seconds" must be a finite number, not text'),
        (("points", 1, "seconds"), None, r'point 1: field "seconds" is None'),
        (("points", 1, "seconds"), 1e300, r"1e\+300 is no latency in seconds"),
        (("points", 1, "context"), 2**70, r'point 1: field "context" is a number of 22 digits; it must be 2147483647 or less'),
        (("points", 1), [1], r"point 1 is not an object"),
        (("device",), 5, r'field "device" is 5, not text'),
        (("gpu",), "yes", r'field "gpu" must be true or false, not text'),
        (("points",), {}, r'has no list "points"'),
    ],
    "calibration": [
        (("candidates",), "4", r'array "meta": field "candidates" must be a whole number, not text'),
        (("candidates",), 10**9, r'field "candidates" is 1000000000; it must be 32767 or less'),
        (("latency",), [], r'field "latency" must be an object'),
        (("latency", "points", 2, "low"), NAN, r"nan is no latency"),
        (("provenance",), None, r'field "provenance" must be an object, not None'),
        (("shape", "experts"), -1, r'field "shape", "experts" is -1; it must be 0 or more'),
        (("probe",), [[0], [0]], r'field "probe": path 1, \(0,\), stands twice'),
        (("acceptance",), "greedy", r'field "acceptance" must be an object with "rule"'),
        (("version",), "2", r"calibration version '2'"),
    ],
    "config": [
        (("hidden_size",), "4096", r'field "hidden_size" must be a whole number, not text'),
        (("num_attention_heads",), 0, r'field "num_attention_heads" is 0; it must be 1 or more'),
        (("vocab_size",), None, r'field "vocab_size" is missing'),
        (("num_key_value_heads",), -8, r'field "num_key_value_heads" is -8; it must be 1 or more'),
        (("head_dim",), HUGE, r'field "head_dim" is a number of 401 digits'),
        (("num_experts_per_tok",), 9, r'field "num_experts_per_tok" is 9 of 8 experts'),
        (("tie_word_embeddings",), "no", r'field "tie_word_embeddings" must be true or false, not text'),
    ],
    "paths": [(("paths",), None, "holds no list of paths"), (("paths", 1, 0), 10**30, "has a rank above 2147483647")],
    "trace": [
        ((1, "ranks", 1, 0), True, r"line 2, row 1: \[True, 1\] is not a list of whole numbers"),
        ((1, "ranks", 1, 0), HUGE, r"line 2, row 1: .*: ranks count from 0 to 3"),
        ((1, "ranks"), {}, r'line 2: has no list "ranks"'),
        ((1, "candidates"), "4", r"line 2: \"candidates\" is '4'; it must be K"),
        ((1, "held_out"), 1, r'line 2: "held_out" must be true or false'),
        ((1,), None, r'line 2: has no list "ranks"'),
    ],
    "corpus": [
        ((0, "prompt"), 5, r'line 1: "prompt" is not a list; give a text, or a list of turns'),
        ((1, "text"), {"a": 1}, r'line 2: "text" is not text'),
        ((2, "turns", 0), NAN, r'line 3: "turns": entry 0 is nan, not text'),
        ((4, "conversations"), {"from": "human"}, r'line 5: "conversations" is not a list'),
        ((4, "conversations", 0), "hello", r'line 5: "conversations": entry 0 must be an object, not text'),
        ((5, "messages", 0, "role"), None, r'line 6: "messages": entry 0, "role" is missing'),
        ((0, "group"), ["g"], r'line 1: "group" must be text or a number'),
        ((0, "group"), NAN, r'line 1: "group" must be text or a number'),
    ],
    "training": [
        ((0, "text"), None, r"line 1: no text in it"),
        ((1, "response_ids"), [True], r'line 2: "response_ids" must be a list of token ids below'),
        ((2, "messages"), "hello", r'line 3: "messages" is not a list'),
        ((2, "messages", 1, "content"), 4, r"line 3: turn 1 has no known role and text"),
        ((3, "conversations", 0, "from"), 4, r'line 4: "conversations": entry 0, "from" is 4, not text'),
        ((1, "group"), True, r'line 2: "group" must be text or a number'),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "at", "value", "expected"), [(form, *row) for form, rows in BAD.items() for row in rows]
)
def test_a_wrong_value_is_named_by_file_and_field(forms, tmp_path, form, at, value, expected):
    path = tmp_path / f"file{ENDING.get(form, '.json')}"
    with pytest.raises(InputError, match=expected) as caught:
        read(form, path, as_text(put(forms[0][form], at, value)).encode(), forms[1])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ALL)
def test_fields_of_a_newer_minor_version_are_let_be(forms, tmp_path, form):
    """One more in every object, however deep it stands."""
    path, data = tmp_path / f"file{ENDING.get(form, '.json')}", forms[0][form]

    def more(value):
        if isinstance(value, dict):
            return {"colour": ["green", {}], **{k: more(v) for k, v in value.items()}, "shade": None}
        return [more(v) for v in value] if isinstance(value, list) else value

    newer = more(data)
    if form == "tree":
        newer["version"] = "1.9"
        jsonschema.validate(newer, schema())
    before = read(form, path, as_text(data).encode(), forms[1])
    after = read(form, path, as_text(newer).encode(), forms[1])
    if form == "tree":  # whose engine settings are kept as they are
        points = [replace(p, engine={}) for p in after.operating_points]
        after = replace(after, operating_points=tuple(points))
    assert after == before


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize(
    ("spoil", "readable"),
    [
        (lambda text: b"\xef\xbb\xbf" + text, True), (lambda text: b"[" * 100_000 + text, False), (lambda text: text[:-3], False),
        (lambda text: text.replace(b'": "', b'": "\xff', 1) + b"\xff", False), (lambda text: text.replace(b'"', b'"\\ud800', 1), False),
        (lambda text: text.decode().encode("utf-16"), False), (lambda text: b"", False), (lambda text: b"1" * 5000, False),
    ],
    ids=["mark", "deep", "cut", "bytes", "surrogate", "utf-16", "empty", "digits"],
)  # fmt: skip
def test_what_is_no_json_is_named(forms, tmp_path, form, spoil, readable):
    path = tmp_path / f"file{ENDING.get(form, '.json')}"
    text = spoil(as_text(forms[0][form]).encode())
    if readable and form != "calibration":  # whose text stands in an array, where there are no marks
        read(form, path, text, forms[1])
        return
    with pytest.raises(InputError, match=path.name):
        read(form, path, text, forms[1])


VALUES = [
    None, True, False, "5", "", "x" * 99, [], {}, [1], [None], [[0]], {"a": 1}, NAN, float("inf"), 0, -1, 2, 1.5, -0.0, 1e308, 5e-324, -1e308,
    10**30, HUGE, -HUGE, 2**63, 2**31 - 1, 65536, "\ud800", "\u2028\x00", "measured", "int4",
]  # fmt: skip


@pytest.mark.parametrize("form", ALL)
@settings(max_examples=120)
@given(draw=st.data())
def test_whatever_stands_anywhere_is_read_or_refused_but_raises_nothing_else(forms, tmp_path_factory, form, draw):
    data = forms[0][form]
    for at, value in draw.draw(
        st.lists(st.tuples(st.sampled_from(list(spots(data))), st.sampled_from(VALUES)), max_size=3)
    ):
        try:
            data = put(data, at, value)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue  # what it stood in has been replaced
    path = tmp_path_factory.getbasetemp() / f"mutated{ENDING.get(form, '.json')}"
    with suppress(InputError):
        read(form, path, as_text(data).encode(), forms[1])


def test_a_points_own_paths_hold_their_parents_first(forms, tmp_path):
    tree, path = forms[0]["tree"], tmp_path / "t.json"
    own = [tree["paths"].index([0, 0]), 0, *range(1, tree["operating_points"][0]["nodes"])]
    own = list(dict.fromkeys(own))[: tree["operating_points"][0]["nodes"]]
    path.write_text(json.dumps(put(tree, ("operating_points", 0, "own"), own)))
    with pytest.raises(InputError, match=r't\.json: .* entry 0: "own": path 0, \(0, 0\), comes without its parent'):
        read_tree(path)


def test_the_published_schema_is_the_one_of_the_types(forms):
    assert json.loads(data_path("tree.schema.json").read_text()) == schema()
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(forms[0]["tree"], schema())
    for at, value, _ in BAD["tree"][:9]:
        if value is not NAN and value != [0.5]:  # NaN passes as a number there; how many rows there are, no schema says
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(put(forms[0]["tree"], at, value), schema())


def test_rows_whose_group_is_null_are_of_no_group(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "p", "text": "3 4 5", "group": g}) for g in (None, None, 3, "3")))
    here = [f"{path}, line 1", f"{path}, line 2", "3", "3"]
    assert [p.group for p in read_corpus(path)] == here
    assert [r.group for r in read_rows(path, tokenizer(), 64)] == here


def test_a_line_of_json_may_hold_a_separator_that_ends_lines_elsewhere(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"prompt": "a\u2028b\x85c"}\r\n{"prompt": "d"}\n', "utf-8", newline="")
    assert [p.text for p in read_corpus(tmp_path / "c.jsonl")] == ["a\u2028b\x85c", "d"]


def test_a_corpus_row_is_taken_by_its_first_form_and_the_others_are_not_looked_at(tmp_path):
    rows = [
        {
            "prompt": "",
            "messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "user", "content": "b"}],
        },
        {"text": "a", "messages": 5},
    ]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    assert [(p.text, p.chat) for p in read_corpus(tmp_path / "c.json")] == [("b", True), ("a", False)]


@pytest.mark.parametrize(
    ("command", "at", "value", "expected"),
    [
        ("validate", ("corpus", "seed"), "0", '"corpus", "seed" must be a whole number, not text'), ("validate", ("model",), {}, '"model", "name" is missing'),
        ("validate", ("corpus",), None, '"corpus" must be an object'), ("report", ("plan", "swaps"), "no", '"swaps" must be true or false'),
        ("report", ("plan", "budget", "seconds"), [1], 'field "seconds" must be a finite number'), ("report", ("model",), "m", '"model" must be an object'),
        ("export", ("plan",), None, '"plan" must be an object'), ("export", ("plan", "prefixes_to"), 2.5, '"prefixes_to" is 2.5, not a whole number'),
    ],
)  # fmt: skip
def test_provenance_is_checked_by_the_commands_that_go_by_it(forms, tmp_path, command, at, value, expected):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(put(forms[0]["tree"], ("provenance", *at), value)))
    options = ["-o", tmp_path / "r.html"] if command == "report" else []
    said = words(run(command, path, *options, code=2))
    assert 't.json: field "provenance"' in said
    assert expected in said
    assert run("show", path).exit_code == 0, "the runtime goes by none of it"
    kept = read_tree(path)
    write_tree(tmp_path / "again.json", kept)
    assert json.loads((tmp_path / "again.json").read_text())["provenance"] == json.loads(path.read_text())["provenance"]


def test_a_modelled_tree_with_a_wrong_roofline_is_named(forms, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(
        json.dumps(put(forms[0]["tree"], ("provenance", "modelled"), {**forms[0]["modelled"], "flops": "4e14"}))
    )
    save_calibration(tmp_path / "c.npz", calibration())
    said = words(run("report", path, "--calibration", tmp_path / "c.npz", "-o", tmp_path / "r.html", code=2))
    assert 't.json: field "provenance", "modelled": field "flops" must be a finite number, not text' in said


def test_help_loads_no_pydantic():
    code = "import sys, medusa_tree.cli; print('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_command_prints_the_schema():
    made = subprocess.run([sys.executable, "-m", "medusa_runtime.schema"], capture_output=True, text=True, check=True)
    assert json.loads(made.stdout) == schema()
    assert made.stderr == ""
