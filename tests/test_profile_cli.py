"""Profiling in parts on the command line: profile, measure and merge come to what calibrate does in one go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_base, tiny_heads
from test_checkpoint import save_base
from test_cli import run, words
from test_run import same

from medusa_runtime.heads.checkpoint import save_heads
from medusa_runtime.treefile import read_tree
from medusa_tree.planning.calibration import load_calibration
from medusa_tree.profiling.shards import collect
from medusa_tree.traces.tracefile import read_trace


def at(model):
    return ("--model", model, "--heads", model / "heads", "--device", "cpu")


def asked(model):
    return (*at(model), "--corpus", model / "corpus.txt", "--max-new-tokens", 16, "--batch-tokens", 200)


@pytest.fixture(scope="module")
def profiled(model, tmp_path_factory):
    """A run of the tiny model."""
    folder = tmp_path_factory.mktemp("profiled") / "run"
    told = run("profile", *asked(model), "-o", folder)
    assert "Head accuracy" in told.stdout
    assert f"medusa-tree merge {folder}" in words(told)
    assert len(list(folder.glob("ranks-*.npz"))) >= 3
    return folder


def test_in_parts_or_in_one_go_it_is_the_same_tree(model, profiled, tmp_path, steady):
    whole, parts, planned = (tmp_path / f"{name}.json" for name in ("whole", "parts", "planned"))
    run("calibrate", *asked(model), "--max-nodes", 16, "-o", whole)
    assert not (tmp_path / "whole.run").exists()
    run("measure", *at(model), "--context", 9, "--max-nodes", 64, "-o", tmp_path / "latency.json")
    latency = ("--latency", tmp_path / "latency.json")
    run("calibrate", "--profile", profiled, *latency, "--max-nodes", 16, "-o", parts)
    run("merge", profiled, "-o", tmp_path / "trace.npz")
    run("plan", tmp_path / "trace.npz", *latency, "--max-nodes", 16, "-o", planned)
    same(load_calibration(tmp_path / "whole.calibration.npz").trace, collect(profiled))
    first, *others = (read_tree(path) for path in (whole, parts, planned))
    for other in others:
        assert other.paths == first.paths
        assert other.provenance | {"date": ""} == first.provenance | {"date": ""}
    for path in (parts, planned):
        assert "As predicted." in run("validate", path, "--device", "cpu").output


def test_the_model_is_loaded_to_be_timed_and_must_be_the_one_profiled(model, profiled, tmp_path, steady):
    run("calibrate", "--profile", profiled, "--device", "cpu", "-o", tmp_path / "t.json")
    assert read_tree(tmp_path / "t.json").provenance["model"]["name"] == str(model)
    other = tmp_path / "other"
    base = tiny_base("llama", seed=4)
    save_base(base, other)
    save_heads(tiny_heads(base), other / "heads", base_model=str(other))
    refused = run("calibrate", "--profile", profiled, *at(other), "-o", tmp_path / "u.json", code=2)
    assert f"{profiled}: was profiled with another model" in words(refused)


def test_no_torch_is_needed_to_plan_what_was_measured_elsewhere(model, profiled, tmp_path, steady):
    run("measure", *at(model), "-o", tmp_path / "latency.json")
    args = ["calibrate", "--profile", profiled, "--latency", tmp_path / "latency.json", "-o", tmp_path / "t.json"]
    code = f"import sys; from medusa_tree.cli import main; main({list(map(str, args))}, standalone_mode=False); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_tree(tmp_path / "t.json").paths


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("calibrate", "--profile", "RUN", "--corpus", "x.txt"), "--corpus: is for profiling, and --profile"),
        (("calibrate", "--profile", "RUN", "--acceptance", "sample"), "--acceptance: is for profiling"),
        (("calibrate", "--profile", "/nowhere"), "/nowhere: is not there"),
        (("calibrate",), "--model: is missing"),
        (("merge", "/nowhere"), "/nowhere: is not there; give folders that profile wrote"),
        (("merge", "EMPTY"), "holds no run.json"),
        (("profile", "MODEL", "--reference-text"), "--reference-text: says what the answers"),
        (("profile", "MODEL", "--answers", "a.jsonl", "--acceptance", "typical"), "typical acceptance makes a text of its own"),
        (("profile", "MODEL", "--answers", "/nowhere.jsonl"), "/nowhere.jsonl: cannot be read"),
        (("profile", "MODEL", "-o", "EMPTY/.."), "is there already and is no run"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(model, profiled, tmp_path, args, said):
    (tmp_path / "empty").mkdir()
    names = {"RUN": [profiled], "EMPTY": [tmp_path / "empty"], "EMPTY/..": [tmp_path], "MODEL": at(model)}
    out = (
        ()
        if "-o" in args
        else ("-o", tmp_path / ("run" if args[0] == "profile" else "t.npz" if args[0] == "merge" else "t.json"))
    )
    told = run(*(part for arg in args for part in names.get(arg, [arg])), *out, code=2)
    assert said in words(told)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_a_calibration_that_was_ended_goes_on_and_another_one_does_not_lose_it(model, tmp_path, steady, monkeypatch):
    from medusa_tree.profiling import run as job

    out, profile, made = tmp_path / "t.json", job.profile, []

    def ended(*args, **kwargs):
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return profile(*args, **kwargs)

    monkeypatch.setattr(job, "profile", ended)
    told = words(run("calibrate", *asked(model), "-o", out, code=1))
    assert f"Go on by the same command; what is done stands in {tmp_path / 't.run'}" in told
    assert len(list((tmp_path / "t.run").glob("ranks-*.npz"))) == 2
    run("calibrate", *asked(model), "--candidates", 5, "-o", out)
    assert len(list((tmp_path / "t.1.run").glob("ranks-*.npz"))) == 2
    (tmp_path / "t.1.run").rename(tmp_path / "t.run")
    made[:] = [1] * 9
    told = words(run("calibrate", *asked(model), "-o", out))
    assert f"Going on with {tmp_path / 't.run'}." in told
    assert not (tmp_path / "t.run").exists()
    whole = load_calibration(tmp_path / "t.calibration.npz").trace
    assert len(whole.lengths) == 24
    assert len(made) - 9 == _shards(whole) - 2


def _shards(trace):
    from medusa_tree.profiling.memory import batches
    from medusa_tree.profiling.texts import LOOK

    return len(batches(trace.text.prompts.lengths.tolist(), 16 + 4 + LOOK, 200))


def test_two_processes_give_the_trace_of_one(model, profiled, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "medusa_tree"]
    args = ["profile", *asked(model), "-o", tmp_path / "run"]
    done = subprocess.run(
        [*launch, *map(str, args)], capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parent.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("Head accuracy") == 1
    same(collect(tmp_path / "run"), collect(profiled))


def test_merging_keeps_prompts_on_one_side(model, profiled, tmp_path):
    lines = (model / "corpus.txt").read_text().splitlines()
    (tmp_path / "more.txt").write_text("\n".join([*lines[:6], "30 31", "32 33", "34 35"]))
    how = (*at(model), "--max-new-tokens", 16, "--corpus", tmp_path / "more.txt", "--seed", 3)
    run("profile", *how, "-o", tmp_path / "more")
    told = json.loads(run("merge", profiled, tmp_path / "more", "--json", "-o", tmp_path / "t.npz").stdout)
    trace = read_trace(tmp_path / "t.npz")
    assert told["sequences"] == len(trace.lengths) == 24 + 9
    assert told["provenance"]["corpus"]["name"] == [str(model / "corpus.txt"), str(tmp_path / "more.txt")]
    sides: dict[bytes, set[bool]] = {}
    for prompt, held in zip(trace.text.prompts, trace.held_out, strict=True):
        sides.setdefault(prompt.tobytes(), set()).add(bool(held))
    assert all(len(side) == 1 for side in sides.values())
    held = sum(collect(f).held_out.sum() for f in (profiled, tmp_path / "more"))
    assert trace.held_out.sum() >= held
    run("profile", *how, "--acceptance", "sample", "-o", tmp_path / "sampled")
    refused = words(run("merge", profiled, tmp_path / "sampled", "-o", tmp_path / "u.npz", code=2))
    assert "sampling at temperature 1, seed 3" in refused


def test_what_is_there_of_an_unfinished_run_can_be_taken(profiled, tmp_path):
    from shutil import copytree

    copytree(profiled, tmp_path / "run")
    (tmp_path / "run" / "ranks-00000.npz").unlink()
    refused = words(run("merge", tmp_path / "run", "-o", tmp_path / "t.npz", code=2))
    assert "is not complete" in refused
    run("merge", tmp_path / "run", "--partial", "-o", tmp_path / "t.npz")
    assert 0 < len(read_trace(tmp_path / "t.npz").lengths) < 24


TURNS = "{% for m in messages %}{{ m.content }} {% endfor %}"


def test_a_corpus_of_conversations_with_categories_from_prompts_to_proof(tmp_path, steady):
    """Each user's turn stands behind the model's own answers, in the trace and where it is validated."""
    from transformers import AutoTokenizer

    home = tmp_path / "model"
    base = tiny_base("llama")
    save_base(base, home, split=True)
    save_heads(tiny_heads(base), home / "heads", base_model=str(home))
    tokenizer = AutoTokenizer.from_pretrained(home)
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(home)
    rows = [
        {
            "turns": [f"{3 + i % 5} {11 + i % 9}", f"{21 + i % 9} {3 + i // 9}"],
            "category": ("math", "code")[i % 2],
            "question_id": i,
        }
        for i in range(20)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    how = (*at(home), "--corpus", tmp_path / "q.jsonl", "--max-new-tokens", 12, "--max-nodes", 16)
    told = run("calibrate", *how, "-o", tmp_path / "t.json")
    assert "math" in told.stdout
    trace = load_calibration(tmp_path / "t.calibration.npz").trace
    assert len(trace.lengths) == 40
    assert sorted(set(trace.categories.tolist())) == ["code", "math"]
    pairs = list(zip(trace.text.prompts, trace.text.outputs, strict=True))
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        said = tokenizer(tokenizer.decode(first[1][:12], skip_special_tokens=True))["input_ids"]
        assert second[0].tolist()[:-2] == [*first[0].tolist(), *said]
    assert np.array_equal(trace.held_out[::2], trace.held_out[1::2])
    proved = run("validate", tmp_path / "t.json", "--device", "cpu")
    assert "As predicted." in proved.output
    assert f"{int(trace.held_out.sum())} of {int(trace.held_out.sum())} prompts are token for token" in words(proved)


def test_answers_that_an_engine_wrote(model, profiled, tmp_path):
    trace = collect(profiled)
    rows = [
        {"prompt_token_ids": p.tolist(), "outputs": [{"token_ids": o.tolist()}]}
        for p, o in zip(trace.text.prompts, trace.text.outputs, strict=True)
    ]
    (tmp_path / "outputs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    how = (*at(model), "--answers", tmp_path / "outputs.jsonl", "--max-new-tokens", 16, "-o", tmp_path / "run")
    told = run("profile", *how)
    assert "at 100.0% of" in words(told)
    assert np.array_equal(collect(tmp_path / "run").ranks, trace.ranks)
    rows[0]["outputs"][0]["token_ids"] = [9] * 20
    for row in rows[1:20]:
        row["outputs"][0]["token_ids"].reverse()
    (tmp_path / "outputs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "--reference-text" in words(run(*("profile", *how[:-1], tmp_path / "other"), code=2))
    assert not (tmp_path / "other").exists()
