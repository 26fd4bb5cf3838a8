"""validate fails on faults: each is put into a model that has been loaded, and must end the command with 1; without one it ends with 0.

They are put in behind the proof at load, which would refuse them itself.
"""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import random_prompts, steady_measure, tiny_base, tiny_heads
from test_checkpoint import save_base
from test_cli import run, words

from medusa_runtime.attention import TreeMask
from medusa_runtime.buffers import TreeBuffers
from medusa_runtime.cache.cache import TreeCache
from medusa_runtime.heads.checkpoint import save_heads
from medusa_runtime.treefile import read_tree
from medusa_tree.cli.model import ModelSource


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny model with its heads, others' heads, and prompts enough to judge by."""
    folder = tmp_path_factory.mktemp("mutated")
    base = tiny_base("llama")
    save_base(base, folder, split=True)
    save_heads(tiny_heads(base), folder / "heads", base_model=str(folder))
    save_heads(tiny_heads(tiny_base("llama", seed=5), seed=6), folder / "others", base_model=str(folder))
    (folder / "corpus.txt").write_text("\n".join(" ".join(map(str, p)) for p in random_prompts(96)))
    return folder


def make_tree(small, path, dtype, *options):
    """A tree calibrated in this dtype, where nodes and levels are free."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medusa_tree.devices.measure.measure", partial(steady_measure, a_node=0.0, a_level=0.0))
        patch.setattr("medusa_tree.profiling.probe.PROBE", 40)
        run(
            "calibrate", "--model", small, "--heads", small / "heads", "--corpus", small / "corpus.txt", "--max-new-tokens", 32,
            "--max-nodes", 16, "--device", "cpu", "--dtype", dtype, *options, "-o", path,
        )  # fmt: skip
    (point,) = read_tree(path).operating_points
    assert point.nodes >= 8
    assert point.depth >= 2


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def tree(request, small, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "tree.json"
    make_tree(small, path, request.param)
    return path


def heads_alone(tree):
    """The same without lookup, which hides what heads lack."""
    path = tree.with_name("heads.json")
    if not path.exists():
        run("plan", tree.with_name("tree.calibration.npz"), "--drafts", "heads", "-o", path)
        shutil.copy(tree.with_name("tree.calibration.npz"), tree.with_name("heads.calibration.npz"))
    return path


def validate(tree, *options, code):
    return json.loads(run("validate", tree, "--prompts", 12, "--json", *options, code=code).stdout)


def after_load(monkeypatch, fault):
    """Do this to the code once the model is loaded."""
    load = ModelSource.load

    def then(source, *args, **kwargs):
        model = load(source, *args, **kwargs)
        fault()
        return model

    monkeypatch.setattr(ModelSource, "load", then)


def masks(monkeypatch, change):
    """Every tree's mask changed; plain decoding's is that of a tree of the root alone, and stays."""
    of = TreeBuffers.of.__func__

    def changed(cls, tree, device):
        made = of(cls, tree, device)
        return replace(made, mask=change(made.mask)) if tree.nodes else made

    after_load(monkeypatch, lambda: monkeypatch.setattr(TreeBuffers, "of", classmethod(changed)))


def test_without_a_fault_it_passes(tree):
    assert validate(tree, code=0)["verdict"] == {"passed": True, "reasons": []}
    assert words(run("validate", tree, "--prompts", 2)).endswith("As predicted.")


def late(mask):
    """Each node a position further on than it belongs."""
    return TreeMask(mask.depths + (torch.arange(mask.depths.shape[1]) > 0), mask.ancestors, mask.bits)


def test_positions_off_by_one(tree, monkeypatch):
    masks(monkeypatch, late)
    data = validate(tree, code=1)
    assert any("left the plain text" in r for r in data["verdict"]["reasons"])
    rates = data["lossless"]["partings"]
    assert rates["tree"]["per_1000_tokens"] > 5 * rates["plain"]["per_1000_tokens"]
    assert rates["p"] < 0.01


def test_a_bit_of_the_mask_flipped(tree, monkeypatch):
    """The root sees the first guess for what comes behind it."""

    def knowing(mask):
        ancestors = mask.ancestors.clone()
        ancestors[:, 0, 1] = True
        return TreeMask(mask.depths, ancestors, mask.bits)

    masks(monkeypatch, knowing)
    data = validate(tree, code=1)
    assert any("left the plain text" in r for r in data["verdict"]["reasons"])
    assert sum(not d["near_tie"] for d in data["lossless"]["differences"]) > 0


def test_compaction_left_out(tree, monkeypatch):
    after_load(monkeypatch, lambda: monkeypatch.setattr(TreeCache, "keep", lambda *args: None))
    output = words(run("validate", tree, "--prompts", 12, code=1))
    assert "not a tie" in output
    assert "Not as predicted:" in output[output.index("not a tie") :]


def test_heads_of_another_model(tree, small):
    """The text is that of plain decoding: what gives them away is that hardly a guess of theirs is accepted."""
    tree = heads_alone(tree)
    result = run("validate", tree, "--prompts", 24, "--json", "--heads", small / "others", code=1)
    data = json.loads(result.stdout)
    assert "These are not the heads that the tree was calibrated with" in words(result)
    assert data["lossless"]["identical"] + data["lossless"]["near_ties"] == 24
    (reason,) = data["verdict"]["reasons"]
    assert reason.startswith("acceptance length is")
    assert data["acceptance_length"]["ratio"]["high"] < 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--acceptance", "sample", "--temperature", 0.9, "--top-p", 0.9], "left the plain text where there was no tie"),
        (["--acceptance", "typical", "--epsilon", 0.15, "--delta", 0.5], "the rule would not have let stand"),
    ],
    ids=["sample", "typical"],
)  # fmt: skip
def test_under_the_other_rules(small, tmp_path, monkeypatch, options, reason):
    """Sampled text is compared, too; text of typical acceptance is held to its rule."""
    path = tmp_path / "tree.json"
    make_tree(small, path, "bfloat16", *options)
    assert validate(path, code=0)["verdict"]["passed"]
    masks(monkeypatch, late)
    data = validate(path, code=1)
    assert any(reason in r for r in data["verdict"]["reasons"])
