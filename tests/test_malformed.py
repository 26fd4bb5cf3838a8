"""Files as they should not be, by every command that takes them: 540 mutations, each a success or one message and exit code 2."""

import json
import random
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from forms import CHAT, CONFIG, as_text, put, spots, written

from medusa_runtime.errors import InputError
from medusa_tree.cli import main

EACH = 60
ODD = [
    None, True, False, -1, 0, 1, 7, 1.5, -0.0, 1e308, float("nan"), float("inf"), 10**25, "", " ", "x", "5", "0.5", "\ud800", "\u2028",
    [], [[]], [None], {}, {"a": 1}, "a" * 5000,
]  # fmt: skip
SMALL = [v for v in ODD if not (isinstance(v, (int, float)) and abs(v) > 100)]  # of what memory is made by


class Harmless(random.Random):
    """Leaves files as they are."""


LONG = " ".join(map(str, range(3, 19)))  # long enough for every head to be asked
ROWS = [
    {"text": LONG}, {"prompt_ids": [3, 4], "response_ids": list(range(5, 20)), "group": 7},
    {"messages": [{"role": "user", "content": "3"}, {"role": "assistant", "content": LONG}]},
    {"conversations": [{"from": "human", "value": "3"}, {"from": "gpt", "value": LONG}]},
]  # fmt: skip


def spoiled(rng, text):
    """The bytes of a file cut short, with a piece missing, twice, or other bytes somewhere."""
    if isinstance(rng, Harmless):
        return text
    at, to = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    how = rng.randrange(5)
    if how == 0:
        return text[:at]
    if how == 1:
        return text[:at] + text[to:]
    if how == 2:
        return text[:to] + text[at:]
    other = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
    return text[:at] + other + text[at + (len(other) if how == 3 else 0) :]


def mutated(rng, data, odd=ODD):
    """JSON text with an odd value or two in it, a field less or more, or its bytes spoiled."""
    if isinstance(rng, Harmless) or rng.random() < 0.25:
        return spoiled(rng, as_text(data).encode())
    for _ in range(rng.choice((1, 1, 2))):
        places = list(spots(data))
        if not places:
            break
        data = put(data, rng.choice(places), rng.choice(odd))
    return as_text(data).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def home(tmp_path_factory, model):
    """A folder with one good file of each form and the tiny model."""
    folder = tmp_path_factory.mktemp("forms")
    data, arrays = written(folder)
    np.savez(folder / "trace.npz", **{k: v for k, v in arrays.items() if k != "accepted"}, candidates=np.array(4))
    shutil.copytree(model, folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(CHAT)
    return folder, data, arrays


def tree(rng, home, here):
    (here / "t.json").write_bytes(mutated(rng, home[1]["tree"]))
    return rng.choice([["show"], ["export", "--format", "json"], ["report", "-o", here / "out.html"]]), [
        here / "t.json"
    ]


def calibration(rng, home, here):
    _, data, arrays = home
    path = here / "c.npz"
    if rng.random() < 0.5:
        meta = mutated(rng, data["calibration"]).decode("utf-8", "replace")
        np.savez(path, **arrays, meta=np.array(meta))
    else:
        path.write_bytes(spoiled(rng, (home[0] / "c.npz").read_bytes()))
    return ["plan", "--json", "-o", here / "out.json"], [path]


def trace(rng, home, here):
    if rng.random() < 0.5:
        path = here / "t.jsonl"
        path.write_bytes(mutated(rng, home[1]["trace"]))
    else:
        path = here / "t.npz"
        path.write_bytes(spoiled(rng, (home[0] / "trace.npz").read_bytes()))
    return ["trace"], [path]


def latency(rng, home, here):
    (here / "l.json").write_bytes(mutated(rng, home[1]["latency"]))
    return ["plan", "--latency", here / "l.json", "--json", "-o", here / "out.json"], [home[0] / "trace.npz"]


def config(rng, home, here):
    (here / "config.json").write_bytes(mutated(rng, CONFIG))
    how = ["--device-model", "h100-sxm", "--config", here / "config.json", "--batch", "1", "--max-nodes", "8"]
    return ["plan", *how, "--json", "-o", here / "out.json"], [home[0] / "trace.npz"]


def heads(rng, home, here):
    """Their weights, or the config beside them."""
    shutil.copytree(home[0] / "model" / "heads", here / "heads")
    name = rng.choice(["config.json", "medusa_lm_head.safetensors"])
    good = (here / "heads" / name).read_bytes()
    bad = mutated(rng, json.loads(good), SMALL) if name == "config.json" else spoiled(rng, good)
    (here / "heads" / name).write_bytes(bad)
    how = [
        "--model",
        home[0] / "model",
        "--heads",
        here / "heads",
        "--tree",
        home[0] / "tree.json",
        "--max-new-tokens",
        "2",
    ]
    return ["generate", "--device", "cpu", *how], ["3 4 5"]


def model_config(rng, home, here):
    shutil.copytree(home[0] / "model", here / "model")
    path = here / "model" / "config.json"
    path.write_bytes(mutated(rng, json.loads(path.read_bytes()), SMALL))
    return ["generate", "--device", "cpu", "--model", here / "model", "--max-new-tokens", "2"], ["3 4 5"]


def corpus(rng, home, here):
    (here / "c.jsonl").write_bytes(mutated(rng, home[1]["corpus"]))
    how = ["--model", home[0] / "model", "--heads", home[0] / "model" / "heads", "--corpus", here / "c.jsonl"]
    return ["calibrate", "--device", "cpu", *how, "-o", here / "out.json"], []


def training(rng, home, here):
    (here / "rows.jsonl").write_bytes(mutated(rng, ROWS))
    how = ["--model", home[0] / "model", "--data", here / "rows.jsonl", "--max-length", "32", "--held-out", "0.5"]
    return ["train", "--device", "cpu", *how, "-o", here / "out"], []


FORMS = [tree, calibration, trace, latency, config, heads, model_config, corpus, training]


@pytest.fixture
def short(monkeypatch):
    """Commands go as far as the files are read and judged; what would take seconds says that it was reached."""

    def reached(*args, **kwargs):
        raise InputError("reached")

    monkeypatch.setattr("medusa_tree.profiling.calibrate.profile_run", reached)
    monkeypatch.setattr("medusa_tree.training.run.fit", reached)
    monkeypatch.setattr("medusa_tree.cli.finish.plan_plot", lambda calibration, curves, rows, path: path.touch())


def invoke(form, rng, home, here):
    here.mkdir()
    command, files = form(rng, home, here)
    before = set(here.rglob("*"))
    done = CliRunner().invoke(main, [*map(str, command), *map(str, files)])
    told = f"{form.__name__} {here.name}: {command} {files}\n{done.output}"
    assert isinstance(done.exception, SystemExit | None), f"{told}\n{done.exception!r}"
    return done, told, {p.relative_to(here).as_posix() for p in {*here.rglob("*")} - before}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_malformed_file_is_read_or_told_in_one_message(form, home, tmp_path, short):
    done, told, _ = invoke(form, Harmless(), home, tmp_path / "good")
    assert done.exit_code == 0 or "reached" in done.output, told
    rng, refused = random.Random(f"{form.__name__} 1"), 0
    for i in range(EACH):
        done, told, made = invoke(form, rng, home, tmp_path / str(i))
        assert done.exit_code in (0, 2), told
        if done.exit_code == 2:
            refused += "reached" not in done.output
            error = done.output[done.output.index("Error: ") :]
            assert 10 < len(error.strip()) < 2000, told
            assert not [n for n in made if n != "out" and not n.startswith("out/work")], f"{made} is left there\n{told}"
        assert not [n for n in made if ".tmp" in n], told
    assert refused > EACH / 8
