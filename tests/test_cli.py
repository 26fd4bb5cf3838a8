"""The command line on a tiny saved model: every command, every bad input, and nothing half-written."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner
from conftest import tiny_base, tiny_heads, tiny_model
from test_checkpoint import save_base
from test_plan import calibration

from medusa_runtime import InputError
from medusa_runtime.heads.checkpoint import save_heads
from medusa_runtime.treefile import read_tree, write_tree
from medusa_tree.bundled import data_path
from medusa_tree.cli import main
from medusa_tree.devices.roofline import fit_roofline
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.calibration import load_calibration, save_calibration
from medusa_tree.planning.plan import plan


def run(*args, code=0):
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def calibrate(model, corpus=None):
    return (
        "calibrate",
        "--model",
        model,
        "--heads",
        model / "heads",
        "--corpus",
        corpus or model / "corpus.txt",
        "--max-new-tokens",
        24,
        "--device",
        "cpu",
    )


def test_help_answers_at_once_and_names_every_command():
    start = time.perf_counter()
    out = subprocess.run(
        [sys.executable, "-m", "medusa_tree", "--help"], capture_output=True, text=True, check=True
    ).stdout
    seconds = time.perf_counter() - start
    assert all(
        name in out
        for name in ("calibrate", "plan", "validate", "compare", "report", "show", "export", "generate", "trace")
    )
    code = "import sys, medusa_tree.cli; print([m for m in ('torch', 'transformers', 'numpy', 'rich', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    assert seconds < 2, "0.1 s on an idle machine; the list above is what keeps it there"


def test_calibrate_writes_tree_calibration_and_plot(made):
    assert sorted(p.name for p in made.parent.iterdir()) == ["tree.calibration.npz", "tree.json", "tree.png"]
    data = json.loads(made.read_text())
    jsonschema.validate(data, json.loads(data_path("tree.schema.json").read_text()))
    assert [p["batch"] for p in data["operating_points"]] == [1, 2]
    assert data["provenance"]["dtype"] == "float32"
    assert data["provenance"]["corpus"]["prompts"] == 24
    assert made.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_calibrate_json_is_one_object(model, tmp_path, steady):
    data = json.loads(run(*calibrate(model), "--json", "-o", tmp_path / "t.json").stdout)
    names = [p["tree"] for p in data["predicted"]]
    assert [n for n in names if "lookup" not in n] == [
        "plain decoding",
        "chain of 4",
        "64-node list",
        "chosen tree",
        "tree book",
    ]
    assert len(names) == 6
    assert len(data["head_accuracy"]["top_5"]) == 4


def test_plan_again_under_another_budget(made, tmp_path):
    run(
        "plan",
        made.with_name("tree.calibration.npz"),
        "--max-nodes",
        3,
        "--max-depth",
        2,
        "-o",
        tmp_path / "small.json",
    )
    point = json.loads((tmp_path / "small.json").read_text())["operating_points"][0]
    assert point["nodes"] <= 3
    assert point["depth"] <= 2
    again = run(
        "plan", made.with_name("tree.calibration.npz"), "--max-nodes", 64, "--json", "-o", tmp_path / "same.json"
    )
    assert json.loads(again.stdout)["provenance"]["model"]
    assert json.loads((tmp_path / "same.json").read_text())["paths"] == json.loads(made.read_text())["paths"]


def test_an_earlier_tree_is_kept_under_a_number(model, calibrated, tmp_path, steady):
    out = tmp_path / "tree.json"
    names = lambda: sorted(p.name for p in tmp_path.iterdir())  # noqa: E731
    run("plan", calibrated, "--max-nodes", 3, "-o", out)
    first = out.read_text()
    refused = run("plan", calibrated, "--budget", "0.001us", "-o", out, code=2)
    assert "latency binds" in words(refused)
    assert names() == ["tree.json", "tree.png"]
    assert "tree.1.json, " in words(run("plan", calibrated, "--max-nodes", 5, "-o", out))
    assert names() == ["tree.1.json", "tree.1.png", "tree.json", "tree.png"]
    assert (tmp_path / "tree.1.json").read_text() == first
    second = out.read_text()
    (tmp_path / "tree.calibration.npz").write_bytes(b"what took minutes")
    run(*calibrate(model), "-o", out)
    assert (tmp_path / "tree.2.json").read_text() == second
    assert (tmp_path / "tree.2.calibration.npz").read_bytes() == b"what took minutes"
    assert names() == sorted(
        [f"tree{n}{end}" for n in ("", ".1", ".2") for end in (".json", ".png")]
        + ["tree.calibration.npz", "tree.2.calibration.npz"]
    )
    assert "name it tree.json" in words(run("plan", calibrated, "-o", tmp_path / "tree.png", code=2))


CONFIG = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip


@pytest.fixture(scope="module")
def calibrated(made):
    return made.with_name("tree.calibration.npz")


def words(result):
    return " ".join(result.output.split())


def test_a_device_model_says_modelled_on_every_line_of_figures(calibrated, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    args = ("plan", calibrated, "--device-model", "h100-sxm", "--config", tmp_path / "config.json", "--context", 2048)
    result = run(*args, "--launch-overhead", 0.5, "-o", tmp_path / "t.json")
    figures = [line for line in result.stdout.splitlines() if re.search(r"\d\.\d\dx", line)]
    assert len(figures) >= 9
    assert all("modelled" in line for line in figures)
    assert "NVIDIA H100 SXM5 80 GB, float32, modelled" in words(result)
    data = json.loads((tmp_path / "t.json").read_text())
    assert {p["latency"] for p in data["operating_points"]} == {"modelled"}
    assert data["provenance"]["modelled"]["overhead"] == pytest.approx(0.5e-3)
    text = run("show", tmp_path / "t.json").output
    assert "(modelled latency)" in " ".join(text.split())
    bare = run(*args, "-o", tmp_path / "b.json")
    assert "none was measured on a GPU: modelled with none" in words(bare)
    assert "Roofline fitted" not in bare.output, "there is no measured grid of an H100 here"
    read = load_calibration(calibrated)
    save_calibration(tmp_path / "gpu.npz", replace(read, latency=replace(read.grid, device="a GPU", gpu=True)))
    fitted = run("plan", tmp_path / "gpu.npz", *args[2:], "-o", tmp_path / "f.json")
    assert "as fitted on a GPU" in words(fitted)
    expected = 32 / read.shape.layers * fit_roofline(read.grid, read.shape).overhead
    modelled = json.loads((tmp_path / "f.json").read_text())["provenance"]["modelled"]
    assert modelled["overhead"] == pytest.approx(expected)


def test_a_measured_grid_has_the_roofline_beside_it(calibrated, tmp_path):
    result = run("plan", calibrated, "-o", tmp_path / "t.json")
    assert "Roofline fitted to the measured grid" in words(result)
    assert "% at worst" in words(result)
    assert "modelled" not in result.output


def test_plan_for_an_engine_prints_what_it_costs(calibrated, tmp_path):
    out = tmp_path / "t.json"
    result = run("plan", calibrated, "--engine", "vllm", "--max-nodes", 12, "-o", out)
    assert "the same number of children at all nodes of a level" in words(result)
    if json.loads(out.read_text())["operating_points"][0]["nodes"]:
        assert "free tree" in result.output
        assert json.loads(run("export", out, "--format", "vllm").stdout)["num_speculative_tokens"] >= 1


def test_a_trace_from_elsewhere_is_checked_planned_and_refused_by_row(calibrated, tmp_path):
    read = load_calibration(calibrated)
    rows = [{"ranks": s.tolist()} for s in read.trace.sequences()]
    path = corpus(tmp_path, "drafter.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    assert "is a good trace: 4 heads" in words(run("trace", path))
    assert json.loads(run("trace", path, "--json").stdout)["sequences"] == len(rows)
    assert json.loads(run("trace", calibrated, "--json").stdout)["candidates"] == read.trace.candidates
    out = tmp_path / "t.json"
    assert "give --latency FILE, or --device-model" in words(run("plan", path, "-o", out, code=2))
    assert "give its config.json with --config" in words(run("plan", path, "--device-model", "l40s", "-o", out, code=2))
    (tmp_path / "grid.json").write_text(json.dumps(read.grid.to_json()))
    run("plan", path, "--latency", tmp_path / "grid.json", "--batch", 2, "-o", out)
    assert [p["batch"] for p in json.loads(out.read_text())["operating_points"]] == [2]
    compared = ("compare", out, "chain:4", "--calibration", path, "--batch", 2, "--json")
    assert "give --latency FILE" in words(run(*compared, code=2))
    rows_of = json.loads(run(*compared, "--latency", tmp_path / "grid.json").stdout)["compared"]
    assert [(r["batch"], r["latency"]) for r in rows_of] == [(2, "measured")] * 2
    page = tmp_path / "r.html"
    assert "give the file it was planned with" in words(run("report", out, "--calibration", path, "-o", page, code=2))
    run("report", out, "--calibration", path, "--latency", tmp_path / "grid.json", "-o", page)
    assert "Speed over nodes" in page.read_text()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    on_l40s = ("--device-model", "l40s", "--config", tmp_path / "config.json")
    modelled = run("plan", path, *on_l40s, "--batch", 1, "-o", out)
    assert "Each level drafted is modelled as a Medusa head of 147.8 million weights" in words(modelled)
    dear = run(
        "plan", path, *on_l40s, "--batch", 1, "--head-params", 400_000_000, "--json", "-o", tmp_path / "dear.json"
    )
    speedups = [
        d["operating_points"][0]["speedup"]["value"] for d in (json.loads(dear.stdout), json.loads(out.read_text()))
    ]
    assert speedups[0] < 0.95 * speedups[1]
    wide = corpus(tmp_path, "wide.json", json.dumps([[r] for r in range(300)]))
    run("compare", wide, "plain", "--calibration", path, *on_l40s)
    run("report", out, "--calibration", path, "-o", page)
    assert "Speed over nodes" in page.read_text()
    (modelled, _) = json.loads(run("compare", out, "plain", "--calibration", path, *on_l40s, "--json").stdout)[
        "compared"
    ]
    assert modelled["latency"] == "modelled"
    assert modelled["speedup"]["value"] > 1
    rows[3]["ranks"][1] = [0, 0]
    path = corpus(tmp_path, "drafter.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    assert "drafter.jsonl, line 4, row 1: 2 ranks where others have 4" in words(run("plan", path, "-o", out, code=2))


def test_compare_sets_any_trees_side_by_side(made, calibrated, tmp_path):
    (tmp_path / "mine.json").write_text("[[0], [1], [0, 0]]")
    names = (made, tmp_path / "mine.json", "chain:2", "plain", "mc_sim_7b_63", "eagle_mc_sim_7b_63")
    data = json.loads(run("compare", *names, "--calibration", calibrated, "--json").stdout)["compared"]
    assert [r["nodes"] for r in data[1:5]] == [3, 2, 0, 63]
    assert data[0]["over_first"]["tokens_per_s"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    for r in data:
        o = r["over_first"]["acceptance_length"]
        assert o["low"] <= o["value"] <= o["high"]
        assert o["value"] == pytest.approx(
            r["acceptance_length"]["value"] / data[0]["acceptance_length"]["value"], rel=1e-4
        )
    assert data[5]["tree"].endswith("4 levels")
    table = run("compare", *names, "--calibration", calibrated).output
    assert "over first" in table
    assert all(len(line) <= 80 for line in table.splitlines())


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("nope", None, "published list: eagle_16,"),
        ("m.json", "{", "not JSON"), ("m.json", "[[0, 0]]", "without its parent"), ("m.json", "[1]", "no list of paths"), ("m.json", '[["a"]]', "not a list of whole numbers"),
    ],
)  # fmt: skip
def test_compare_refuses_what_is_no_tree(calibrated, tmp_path, name, content, expected):
    if content:
        name = corpus(tmp_path, name, content)
    assert expected in words(run("compare", "plain", name, "--calibration", calibrated, code=2))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--device-model", "abacus"], "devices: a100-sxm-40gb"),
        (["--engine", "lmdeploy"], "engines: vllm,"),
        (["--estimator", "guess"], "estimators: visited"),
        (["--kv-dtype", "fp8"], "name one with --device-model"),
        (["--batch", "64"], "batch 64 at context"),
        (["--max-memory", "lots"], "--max-memory"),
        (["--max-memory", "0.01MB"], "memory binds"),
        (["--device-model", "l40s", "--weight-dtype", "int3"], "--weight-dtype"),
        (["--device-model", "l40s", "--latency", "x.json"], "use one"),
        (["--latency", "/nowhere.json"], "cannot be read as JSON"),
        (["--max-nodes", "5000"], "known up to"),
    ],
)
def test_plans_that_cannot_be_are_refused(calibrated, tmp_path, args, expected):
    assert expected in words(run("plan", calibrated, *args, "-o", tmp_path / "t.json", code=2))
    assert list(tmp_path.iterdir()) == []


def test_validate_json_has_what_it_promises(made):
    data = json.loads(run("validate", made, "--prompts", 4, "--json").stdout)
    assert data["lossless"]["prompts"] == data["lossless"]["identical"] == 4
    assert data["lossless"]["near_ties"] == 0
    for key in ("acceptance_length", "speedup"):
        assert {"predicted", "measured"} <= set(data[key])
    for key in ("step_latency_ms", "tokens_per_s"):
        assert {"plain", "tree"} <= set(data[key])
    assert data["device"]
    assert data["dtype"] == "float32"
    assert {"torch", "transformers", "medusa-tree"} <= set(data["versions"])


def test_validate_prints_predicted_beside_measured(made):
    output = run("validate", made, "--prompts", 3, "--batch", 2).output
    assert "tree, predicted" in output
    assert "3 of 3 prompts are token for token the plain text" in " ".join(output.split())


def test_validate_says_where_predictions_are_for_another_load(made):
    args = ("validate", made, "--prompts", 2, "--max-new-tokens", 8)
    assert "No operating point for batch 1, context 4000: validating that of batch 1" in words(
        run(*args, "--context", 4000)
    )
    contents = read_tree(made)
    far = made.with_name("far.json")
    try:
        write_tree(
            far, replace(contents, operating_points=tuple(replace(p, context=4096) for p in contents.operating_points))
        )
        assert "predicted for 4096 tokens in the cache" in words(run("validate", far, *args[2:]))
    finally:
        far.unlink()


def test_an_export_of_another_load_than_asked_for_says_so(tmp_path):
    write_tree(tmp_path / "t.json", plan(calibration(), Budget()).contents)
    assert "this is the tree of batch 1, context 100" in words(run("export", tmp_path / "t.json", "--batch", 64))
    assert "No operating point" not in run("export", tmp_path / "t.json", "--batch", 1, "--context", 100).output


def test_validate_notices_a_changed_corpus(made, model, tmp_path):
    """Where it needs it: the calibration that lies beside a tree knows the prompts' tokens."""
    corpus = model / "corpus.txt"
    text = corpus.read_text()
    shutil.copy(made, tmp_path / "alone.json")
    try:
        corpus.write_text(text.replace("5", "6"))
        assert "has changed since" in run("validate", tmp_path / "alone.json", code=2).output
        assert "6 of 6 prompts are token for token the plain text" in words(run("validate", made))
    finally:
        corpus.write_text(text)


def test_show_draws_in_the_terminal_and_into_a_file(made, tmp_path):
    text = run("show", made).output
    point = json.loads(run("show", made, "--json").stdout)
    assert "root" in text
    assert f"{point['nodes']} nodes" in text
    assert len(point["paths"]) == len(point["path_frequency"]) == point["nodes"]
    run("show", made, "--png", tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_export_prints_or_writes(made, tmp_path):
    paths = json.loads(run("export", made, "--nodes", 4).stdout)
    assert len(paths) == 4
    run("export", made, "--nodes", 4, "--format", "hydra", "-o", tmp_path / "h.json")
    assert json.loads((tmp_path / "h.json").read_text()) == paths
    assert (
        "formats: medusa, tensorrt-llm, vllm, sglang, linear, eagle, hydra, json"
        in run("export", made, "--format", "nope", code=2).output
    )


def test_generate_shows_a_character_that_was_never_finished(monkeypatch):
    """Half of one in the middle waits for the rest; at the end nothing more will come."""
    monkeypatch.setattr(
        "medusa_runtime.decode.stream", lambda *args, **kwargs: iter([[[163]], [[246, 99]], [[173, 254]]])
    )
    out = run("generate", "x", "--model", "demo", "--device", "cpu").stdout
    assert out == "x日\ufffd\n"


def test_generate_streams_the_same_text_with_and_without_a_tree(made, model):
    args = ("generate", "--model", model, "--heads", model / "heads", "--max-new-tokens", 20, "3 4 5")
    plain, tree = run(*args), run(*args, "--tree", made)
    assert plain.stdout == tree.stdout
    assert plain.stdout.startswith("3 4 5")
    assert "20 steps, 1.00 tokens a step, plain decoding" in plain.stderr


def corpus(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return tmp_path / name


BAD_CORPORA = [
    ("c.txt", "\n\n", "corpus is empty"),
    ("c.jsonl", '{"prompt": "1"}\n\nnot json\n', "c.jsonl, line 3: not JSON"),
    ("c.jsonl", '{"prompt": "1"}\n{"nothing": 1}\n', "c.jsonl, line 2: no prompt in it"),
    ("c.jsonl", "[1]\n", "line 1: neither a text nor an object"),
    ("c.json", '{"prompt": "1"}', "holds no list"),
    ("c.txt", "only one\n", "all is of one document, prompt or group"),
]


@pytest.mark.parametrize(("name", "text", "words"), BAD_CORPORA)
def test_bad_corpora_are_named_and_nothing_is_written(model, tmp_path, name, text, words):
    path = corpus(tmp_path, name, text)
    result = run(
        "calibrate", "--model", model, "--heads", model / "heads", "--corpus", path, "-o", tmp_path / "t.json", code=2
    )
    assert words in " ".join(result.output.split())
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--model", "/nowhere/at/all"], "no such folder"),
        (["--heads", "/nowhere/at/all"], "no such folder"),
        (["--budget", "cheap"], "neither a ratio"),
        (["--budget", "0.000001ms"], "plain decoding alone takes"),
        (["--device", "cuda:7"], "--device cuda:7"),
        (["--held-out", "1.5"], "--held-out 1.5"),
        (["--corpus", "/nowhere.txt"], "/nowhere.txt: cannot be read"),
        (["--max-new-tokens", "600"], "exceed the 512 positions"),
        (["-o", "/nowhere/t.json"], "does not exist"),
    ],
)
def test_bad_arguments_end_with_a_message_and_status_2(model, tmp_path, change, words):
    base = [*calibrate(model), "-o", tmp_path / "t.json"]
    result = run(*base, *change, code=2)
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output
    written = {p.name for p in tmp_path.iterdir()}
    assert "t.json" not in written
    assert not {n for n in written if n.endswith(".tmp")}


def test_heads_of_another_model_are_refused(model, tmp_path):
    import torch

    other = tiny_heads(tiny_base("llama"))
    other.output_weight = torch.nn.Parameter(torch.zeros(4, 60, 32))
    save_heads(other, tmp_path / "heads", base_model="x")
    result = run(*calibrate(model), "--heads", tmp_path / "heads", "-o", tmp_path / "t.json", code=2)
    assert "vocabulary 60, but" in " ".join(result.output.split())


@pytest.mark.parametrize("command", ["validate", "show", "export"])
def test_commands_refuse_a_missing_or_broken_tree(command, tmp_path):
    assert "cannot be read" in run(command, tmp_path / "none.json", code=2).output
    (tmp_path / "cut.json").write_text('{"format": "medusa-tree", "ver')
    assert "cut.json" in run(command, tmp_path / "cut.json", code=2).output


@pytest.mark.parametrize(
    ("args", "words_"),
    [
        (("--seed", -1), "-1 is not in the range x>=0"),
        (("--max-nodes", 10**9), "1000000000 is not in the range 1<=x<=16384"),
    ],
)
def test_numbers_that_cannot_be_gone_by_are_refused(model, calibrated, tmp_path, args, words_):
    command = calibrate(model) if args[0] == "--seed" else ("plan", calibrated)
    assert words_ in words(run(*command, *args, "-o", tmp_path / "t.json", code=2))


def test_plan_refuses_what_is_no_calibration(tmp_path):
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 not really")
    assert "not a calibration" in run("plan", tmp_path / "c.npz", "-o", tmp_path / "t.json", code=2).output


def test_an_interrupt_leaves_nothing_half_written(model, tmp_path):
    """Ctrl-C in the middle of a profile that takes minutes, however late the signal comes."""
    many = corpus(tmp_path, "many.txt", "\n".join(f"{3 + i % 40} {5 + i % 9}" for i in range(3_000)))
    out = tmp_path / "out"
    out.mkdir()
    args = [*calibrate(model, many), "--max-new-tokens", "400", "-o", out / "t.json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "medusa_tree", *map(str, args)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TTY_COMPATIBLE": "1", "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which tests in the background have ignored
    )
    seen = ""
    while "Profiling" not in seen:
        chunk = process.stderr.read(1)
        assert chunk, f"ended before profiling: {seen}"
        seen += chunk
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=30) == 1
    assert "Aborted!" in rest
    assert "Traceback" not in rest
    assert [p.name for p in out.iterdir()] == ["t.run"], "what was done whole, to go on with"
    assert "Go on by the same command" in rest
    assert not list((out / "t.run").glob(".*.tmp"))


@pytest.fixture(scope="module")
def more_tokens(model, tmp_path_factory):
    """The model with a token that was added to its tokenizer alone."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("more") / "model"
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(folder)
    return folder


def unreached(*args, **kwargs):
    pytest.fail("a long step was begun before all input was judged")


def test_a_token_that_the_model_does_not_have_is_refused_before_the_work(more_tokens, made, tmp_path, monkeypatch):
    monkeypatch.setattr("medusa_tree.profiling.calibrate.profile_run", unreached)
    monkeypatch.setattr("medusa_tree.validation.validate.timed_run", unreached)
    path = corpus(tmp_path, "c.txt", "3 4\n5 new 6\n7 8\n")
    table = "line 2: has token 48, and the embedding table of"
    refused = run(*calibrate(more_tokens, path), "-o", tmp_path / "t.json", code=2)
    assert table in words(refused)
    at = ("--model", more_tokens, "--heads", more_tokens / "heads")
    assert table in words(run("validate", made, *at, "--corpus", path, code=2))
    assert "prompt 1: has token 48, and the embedding" in words(run("generate", "5 new 6", *at, code=2))


@pytest.mark.parametrize("ids", [[[3, 4], [5, 48]], [[3, 4], [-1, 5]], [[3, 4], [10**30]]])
def test_token_ids_outside_of_the_embedding_table_are_refused(ids):
    small = tiny_model()
    with pytest.raises(
        InputError, match=rf"prompt 2: has token ({ids[1][0]}|48), .* of tiny llama has rows for 0 to 47"
    ):
        small.generate(ids, max_new_tokens=4)
    assert len(small.generate([[3, 4]], max_new_tokens=4).tokens[0]) == 4


def test_prompts_that_are_cut_are_counted_said_and_recorded(tmp_path):
    model = tmp_path / "model"
    save_base(tiny_base("llama"), model, split=True)
    save_heads(tiny_heads(tiny_base("llama")), model / "heads", base_model=str(model))
    lines = [f"{3 + i} {4 + i} {5 + i}" for i in range(10)] + [f"{3 + i} " * 505 for i in range(2)]
    path = corpus(tmp_path, "c.txt", "\n".join(lines))
    out = tmp_path / "t.json"
    told = words(run(*calibrate(model, path), "--max-new-tokens", 8, "--max-nodes", 4, "-o", out))
    said = "2 of 12 prompts are longer than the 500 tokens that the model has room for beside new ones; their beginnings were cut."
    assert told.count(said) == 1
    assert json.loads(out.read_text())["provenance"]["corpus"]["cut"] == 2
    validate = ("validate", out, "--corpus", path, "--max-new-tokens")
    assert words(run(*validate, 8, "--prompts", 11)).count(said.replace("2 of 12", "1 of 11")) == 1
    assert "beginnings" not in run(*validate, 3, "--prompts", 11).output


def test_a_chat_without_a_template_is_refused_by_every_command(model, made, tmp_path, monkeypatch):
    monkeypatch.setattr("medusa_tree.profiling.calibrate.profile_run", unreached)
    turns = [json.dumps({"turns": [f"{i} 4"]}) for i in range(3, 9)]
    path = corpus(tmp_path, "c.jsonl", "\n".join(turns))
    refused = "is a conversation, but the tokenizer has no chat template"
    given = "give plain text: a line of a .txt"
    for args in (
        (*calibrate(model, path), "-o", tmp_path / "t.json"),
        ("validate", made, "--corpus", path),
        ("generate", "3 4", "--chat", "--model", model),
    ):
        told = words(run(*args, code=2))
        assert refused in told
        assert given in told
    assert [p.name for p in tmp_path.iterdir()] == ["c.jsonl"]


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr("medusa_tree.profiling.calibrate.profile_run", unreached)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written to" in words(run(*calibrate(model), "-o", tmp_path / "t.json", code=2))


def test_a_chat_corpus_goes_through_the_template(tmp_path):
    from transformers import AutoTokenizer

    from medusa_tree.profiling.corpus import read_corpus
    from medusa_tree.profiling.tokens import tokenize

    rows = [
        {"turns": ["first question", "second"]},
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "asked"}]},
        {"messages": [{"role": "user", "content": "written"}]},
        {"prompt": "raw"},
    ]
    path = corpus(tmp_path, "c.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    prompts = read_corpus(path)
    assert [p.text for p in prompts] == ["first question", "asked", "written", "raw"]
    assert [p.chat for p in prompts] == [True, True, True, False]
    tokenizer = AutoTokenizer.from_pretrained(data_path("demo", "model"))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    ids = tokenize(prompts, tokenizer, 100)
    assert tokenizer.decode(ids[1]) == "<system>s<user>asked<assistant>"
    assert tokenizer.decode(ids[3]) == "raw"


def test_groups_are_held_out_together(tmp_path):
    from medusa_tree.profiling.corpus import hold_out, read_corpus

    path = corpus(
        tmp_path, "c.jsonl", "".join(json.dumps({"prompt": f"p{i}", "group": f"g{i // 5}"}) + "\n" for i in range(50))
    )
    prompts = read_corpus(path)
    held = hold_out(prompts, 0.3, seed=0)
    assert 10 <= held.sum() <= 20
    for g in {p.group for p in prompts}:
        assert len({bool(h) for p, h in zip(prompts, held, strict=True) if p.group == g}) == 1


def test_the_bundled_data_states_its_sources():
    root = Path(data_path())
    assert "PSF" in (root / "demo" / "README.md").read_text()
    assert json.loads((root / "trees" / "mc_sim_7b_63.json").read_text())["source"]
