"""Where a model stands, from the command line: a device map, tensor parallelism, and the processes that torchrun starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import run, unreached, words
from test_run import same

from medusa_runtime import MedusaModel
from medusa_tree.profiling.shards import collect, read_run

LAUNCHED = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
TP, MAP = "--tensor-parallel", ("--device-map", "auto")
REFUSED = [
    ((TP,), {}, "start it by torchrun --nproc-per-node N -m medusa_tree ... --tensor-parallel, with N of 2 or more"),
    ((TP,), {"WORLD_SIZE": "1"}, "splits the model over processes, and there is one"),
    ((TP, *MAP), LAUNCHED, "--tensor-parallel splits them over processes; use one"),
    (("--device", "cpu", *MAP), {}, "--device cpu: --device-map chooses the devices"),
    (("--device", "cpu", TP), LAUNCHED, "--device cpu: --tensor-parallel chooses the devices"),
    (MAP, LAUNCHED, "each of the processes that torchrun started on this machine would take all of its devices"),
    ((), LAUNCHED, "torchrun has started 2 processes, which would all do the same"),
]


@pytest.mark.parametrize(("args", "launched", "said"), REFUSED)
def test_what_does_not_go_together_is_refused_before_the_model_is_loaded(
    model, made, tmp_path, monkeypatch, args, launched, said
):
    monkeypatch.setattr("medusa_runtime.model.MedusaModel.from_pretrained", unreached)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    for command in (
        ("measure", "--model", model, "-o", tmp_path / "l.json"),
        ("validate", made),
        ("generate", "3 4", "--model", model),
        ("calibrate", "--model", model, "--corpus", model / "corpus.txt", "-o", tmp_path / "t.json"),
    ):
        if args or command[0] != "calibrate":  # which may share its prompts out
            assert said in words(run(*command, *args, code=2)), command[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "launched", "handed"),
    [
        (MAP, {}, {"device_map": "auto"}),
        (("--device-map", "sequential"), {"WORLD_SIZE": "1"}, {"device_map": "sequential"}),
        ((TP,), LAUNCHED, {"tp_plan": "auto"}),
        ((), {}, {}),
    ],
)
def test_what_the_options_hand_to_transformers(model, monkeypatch, option, launched, handed):
    """A model that comes back whole under --tensor-parallel is of a class that there is no plan for."""
    seen = []

    def load(*args, **kwargs):
        seen.append({k: kwargs[k] for k in ("device_map", "tp_plan") if k in kwargs})
        return real(*args, device="cpu", require_heads=kwargs["require_heads"])

    real = MedusaModel.from_pretrained
    monkeypatch.setattr(MedusaModel, "from_pretrained", load)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    told = run("generate", "3 4", "--model", model, *option, "--max-new-tokens", 2, code=2 * (TP in option))
    assert seen == [handed]
    assert ("no plan to split LlamaForCausalLM by" in words(told)) == (TP in option)


@pytest.mark.parametrize("option", [MAP, (TP,)])
def test_training_places_itself(model, tmp_path, option):
    base = ("train", "--model", model, "--data", model / "corpus.txt", "-o", tmp_path / "heads")
    told = words(run(*base, *option, code=2))
    assert "No such option" in told
    assert option[0] in told


def test_a_device_map_from_the_command_line(model, made, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setattr("medusa_tree.devices.measure.SECONDS_A_LOAD", 0.0)
    at = ("--model", model, "--heads", model / "heads")
    text = ("generate", "3 4 5", *at, "--tree", made, "--max-new-tokens", 12)
    assert run(*text, *MAP).stdout == run(*text, "--device", "cpu").stdout
    assert "As predicted." in run("validate", made, "--prompts", 2, *MAP).output
    run("measure", *at, *MAP, "--context", 16, "--max-nodes", 4, "-o", tmp_path / "latency.json")
    assert json.loads((tmp_path / "latency.json").read_text())["points"]


def test_two_processes_share_a_model_from_the_command_line(model, made, tmp_path):
    """As torchrun starts them; the first alone prints and writes, and what it prints is what one process prints."""
    at = ("--model", model, "--heads", model / "heads")
    generate = ("generate", "3 4 5", *at, "--tree", made, "--max-new-tokens", 20)
    profiled = (*at, "--corpus", model / "corpus.txt", "--prompts", 8, "--max-new-tokens", 8)
    wrong, contents = made.with_name("wrong.json"), json.loads(made.read_text())
    for point in contents["operating_points"]:
        for told in filter(None, (point, point["book"])):
            told["acceptance_length"] = {"value": 9.0, "low": 8.9, "high": 9.1}
    wrong.write_text(json.dumps(contents))
    commands = {
        "measure": ("measure", *at, "--context", 16, "--max-nodes", 4, "-o", tmp_path / "latency.json"),
        "generate": generate,
        "validate": ("validate", made, "--prompts", 3, "--json"),
        "not as predicted": ("validate", wrong, "--prompts", 3),
        "profile": ("profile", *profiled, "--batch-tokens", 200, "-o", tmp_path / "run"),
        "calibrate": ("calibrate", *profiled, "--max-nodes", 4, "-o", tmp_path / "tree.json"),
        "refused": ("generate", "3 4 5", *at, "--max-new-tokens", 600),
    }
    (tmp_path / "commands.json").write_text(json.dumps({k: [str(a) for a in v] for k, v in commands.items()}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch += ["tensor_parallel_cli.py", str(tmp_path)]
    try:
        done = subprocess.run(
            launch, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=120
        )
    finally:
        wrong.unlink()
    assert done.returncode == 0, done.stderr[-6000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    codes = dict.fromkeys(commands, (0, 0)) | {"not as predicted": (1, 0), "refused": (2, 2)}
    assert {k: (first[k]["code"], second[k]["code"]) for k in commands} == codes
    assert not any(v["stdout"] for v in second.values())
    assert not any(v["stderr"] for k, v in second.items() if k != "refused")
    assert first["generate"]["stdout"] == run(*generate, "--device", "cpu").stdout
    assert json.loads(first["validate"]["stdout"])["lossless"]["identical"] == 3
    written = json.loads((tmp_path / "latency.json").read_text())
    assert written["device"].startswith("2 x ")
    assert written["shape"]["layers"] == 2
    assert not (tmp_path / "latency.1.json").exists()
    whole = (*profiled, "--device", "cpu", "--batch-tokens", 200, "-o", tmp_path / "whole")
    run("profile", *whole)
    same(collect(tmp_path / "run"), collect(tmp_path / "whole"))
    assert read_run(tmp_path / "run").settings == read_run(tmp_path / "whole").settings
    assert sorted(p.name for p in tmp_path.glob("tree*")) == ["tree.calibration.npz", "tree.json", "tree.png"]
