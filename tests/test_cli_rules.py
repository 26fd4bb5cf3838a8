"""Acceptance rules on the command line: written by calibrate, kept by plan, decoded under by validate and generate."""

import json

import jsonschema
import numpy as np
import pytest
from conftest import steady_measure
from test_cli import calibrate, run, words

from medusa_runtime import Greedy, Sampling, Typical
from medusa_runtime.treefile import read_tree
from medusa_tree.bundled import data_path
from medusa_tree.planning.calibration import load_calibration


@pytest.fixture(autouse=True)
def steady_always(steady):
    """What is chosen must not depend on what else the machine does."""


@pytest.fixture(scope="module", params=["sample", "typical"])
def ruled(request, model, tmp_path_factory):
    """A tree calibrated under the rule, the rule, and what calibrate printed."""
    options = {
        "sample": (["--temperature", 0.9, "--top-p", 0.95, "--seed", 3], Sampling(0.9, None, 0.95, 0.0, 3)),
        "typical": (["--epsilon", 0.15, "--delta", 0.5], Typical(0.15, 0.5)),
    }
    given, rule = options[request.param]
    path = tmp_path_factory.mktemp(request.param) / "tree.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medusa_tree.devices.measure.measure", steady_measure)
        patch.setattr("medusa_tree.profiling.probe.PROBE", 40)
        printed = run(*calibrate(model), "--acceptance", request.param, *given, "--max-nodes", 16, "-o", path)
    return path, rule, words(printed)


def test_the_rule_is_in_the_tree_and_every_report_says_whether_it_is_lossless(ruled, tmp_path):
    path, rule, printed = ruled
    data = json.loads(path.read_text())
    jsonschema.validate(data, json.loads(data_path("tree.schema.json").read_text()))
    assert data["version"] == "1.3"
    assert read_tree(path).acceptance == rule
    calibration = path.with_name("tree.calibration.npz")
    assert load_calibration(calibration).trace.acceptance == rule
    run("plan", calibration, "--max-nodes", 8, "-o", tmp_path / "again.json")
    assert read_tree(tmp_path / "again.json").acceptance == rule
    run("report", path, "-o", tmp_path / "page.html")
    summary = json.loads(run("plan", calibration, "--json", "-o", tmp_path / "again.json").stdout)
    assert summary["lossless"] == rule.lossless
    reports = [printed, words(run("show", path)), (tmp_path / "page.html").read_text(), " ".join(summary["notes"]),
               words(run("compare", path, "plain", "chain:2", "--calibration", calibration)), words(run("validate", path, "--prompts", 2))]  # fmt: skip
    assert [("not lossless" in text) for text in reports] == [not rule.lossless] * len(reports)


def test_validate_decodes_under_the_rule(ruled):
    path, rule, _ = ruled
    data = json.loads(run("validate", path, "--prompts", 99, "--json").stdout)
    assert data["acceptance"]["rule"] == rule.name
    length = data["acceptance_length"]
    assert length["measured"] == pytest.approx(length["predicted"], rel=1e-5), "all held-out prompts: replay is exact"
    if rule.lossless:
        assert data["lossless"]["identical"] == data["prompts"]
        assert data["log_likelihood_per_token"] is None
        other = json.loads(run("validate", path, "--prompts", 99, "--seed", 4, "--json").stdout)
        assert other["lossless"]["identical"] == data["prompts"]
    else:
        assert data["lossless"] is None
        nats = data["log_likelihood_per_token"]
        assert nats["difference"]["value"] == pytest.approx(nats["tree"]["value"] - nats["plain"]["value"])
        assert nats["tree"]["value"] < nats["plain"]["value"] < 0
        assert "--seed 4" in words(run("validate", path, "--seed", 4, code=2))


def test_likelihood_is_that_of_the_base_models_own_forward(ruled, model):
    """One token at a time, by transformers alone."""
    import torch
    from conftest import tiny_base, tiny_model

    from medusa_tree.validation.texts import log_likelihood

    prompt, text = [3, 4, 5], [7, 8, 7, 9]
    base, nats = tiny_base("llama"), 0.0
    for i, token in enumerate(text):
        with torch.no_grad():
            logits = base(torch.tensor([[*prompt, *text[:i]]])).logits[0, -1].double()
        nats += float(logits.log_softmax(-1)[token])
    assert log_likelihood(tiny_model(), prompt, text) == pytest.approx(nats, rel=1e-5)


def test_generate_takes_the_trees_rule_or_another(ruled, model):
    path, rule, _ = ruled
    args = ("generate", "--model", model, "--heads", model / "heads", "--max-new-tokens", 20, "3 4 5")
    of_tree = run(*args, "--tree", path)
    assert str(rule) in words(of_tree)
    assert run(*args, "--tree", path, "--acceptance", "greedy").stdout == run(*args).stdout
    sampled = ("--acceptance", "sample", "--temperature", 0.9, "--top-p", 0.95, "--seed", 3)
    plain = run(*args, *sampled)
    assert run(*args, *sampled, "--tree", path).stdout == plain.stdout
    if rule.lossless:
        assert of_tree.stdout == plain.stdout
        assert run(*args, "--tree", path, "--seed", rule.seed).stdout == plain.stdout
        assert len({run(*args, "--tree", path, "--seed", s).stdout for s in range(4)}) > 1
    else:
        assert "--seed 4: typical acceptance draws nothing" in words(run(*args, "--tree", path, "--seed", 4, code=2))
    texts = {run(*args, "--acceptance", "sample", "--seed", s).stdout for s in range(4)}
    assert len(texts) > 1
    assert run(*args, "--acceptance", "sample", "--temperature", 0).stdout == run(*args).stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--acceptance", "sample", "--temperature", -1], "temperature -1.0 is out of range"),
        (["--acceptance", "sample", "--top-p", 0], "top-p 0.0 is out of range"), (["--acceptance", "sample", "--min-p", 2], "min-p 2.0"),
        (["--acceptance", "sample", "--top-k", 0], "top-k 0"), (["--acceptance", "typical", "--epsilon", 1.5], "epsilon 1.5"),
        (["--acceptance", "typical", "--delta", 0], "delta 0.0"), (["--acceptance", "typical", "--top-k", 3], "top-k is not for typical"),
        (["--temperature", 0.7], "--temperature needs its rule"), (["--acceptance", "greedy", "--delta", 0.5], "delta is not for greedy"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_are_refused_before_any_work(model, tmp_path, options, expected):
    assert expected in words(run(*calibrate(model), *options, "-o", tmp_path / "t.json", code=2))
    assert expected in words(run("generate", "--model", model, "3 4", *options, code=2))
    assert list(tmp_path.iterdir()) == []


def test_older_trees_are_greedy_and_bad_rules_are_named(made, tmp_path):
    data = json.loads(made.read_text())
    assert read_tree(made).acceptance == Greedy()
    del data["acceptance"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data | {"version": "1.1"}))
    assert read_tree(path).acceptance == Greedy()
    path.write_text(json.dumps(data | {"acceptance": {"rule": "typical", "epsilon": 7}}))
    assert 'field "acceptance": epsilon 7 is out of range' in words(run("show", path, code=2))


def test_a_calibration_from_before_the_rules_is_greedy(made, tmp_path):
    arrays = dict(np.load(made.with_name("tree.calibration.npz")))
    meta = json.loads(str(arrays["meta"]))
    del meta["acceptance"]
    path = tmp_path / "old.npz"
    np.savez(path, **arrays | {"meta": np.array(json.dumps(meta | {"version": 1}))})
    assert load_calibration(path).trace.acceptance == Greedy()


def test_a_profile_that_is_interrupted_in_timing_keeps_its_rule(model, tmp_path, monkeypatch):
    """What is left is the trace; a plan made of it is for the text that it is of."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("medusa_tree.devices.measure.measure", interrupted)
    args = ("--acceptance", "sample", "--temperature", 0.9, "--seed", 3, "-o", tmp_path / "t.json")
    assert "t.trace.npz, the ranks profiled so far" in words(run(*calibrate(model), *args, code=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.run", "t.trace.npz"]
    device = ("--device-model", "h100-sxm", "--config", model / "config.json", "--batch", 1)
    run("plan", tmp_path / "t.trace.npz", *device, "-o", tmp_path / "planned.json")
    assert read_tree(tmp_path / "planned.json").acceptance == Sampling(0.9, seed=3)
