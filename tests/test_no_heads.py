"""Models without heads: profiled, timed and planned for lookup alone; who drafts is the user's to say, as is a text of their own."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import HEADS, random_prompts, tiny_base, tiny_heads
from test_checkpoint import save_base
from test_cli import calibrate, run, words
from test_run import job_on, same

from medusa_runtime import InputError, MedusaModel, Sampling, Typical
from medusa_runtime.acceptance.rules import GREEDY
from medusa_runtime.book import Lookup
from medusa_runtime.tree import LONGEST_CHAIN, CandidateTree
from medusa_runtime.treefile import Book, BookTree, Drafted, Estimate, read_tree, write_tree
from medusa_tree.devices.latency import LatencyGrid, LatencyPoint
from medusa_tree.devices.measure import room_for
from medusa_tree.devices.roofline import fit_roofline
from medusa_tree.devices.shape import shape_of
from medusa_tree.devices.sizes import grid_trees
from medusa_tree.planning.calibration import calibration_path, load_calibration, save_calibration
from medusa_tree.profiling.answers import read_answers
from medusa_tree.profiling.follow import profile_answers
from medusa_tree.profiling.merge import merge
from medusa_tree.profiling.profile import profile
from medusa_tree.profiling.run import job_of, profile_run, settings_of
from medusa_tree.profiling.shards import collect, read_run
from medusa_tree.traces.beside import digest_of
from medusa_tree.traces.lookup import look_up
from medusa_tree.traces.trace import RankTrace, head_accuracy, top_k_interval
from medusa_tree.traces.tracefile import read_trace, save_trace


@pytest.fixture(scope="module")
def bare():
    return MedusaModel(tiny_base("llama"), name="bare")


def asked(model, *more):
    """The tiny model without the heads that lie in a folder below it."""
    corpus = ("--corpus", model / "corpus.txt", "--max-new-tokens", 24, "--device", "cpu")
    return ("--model", model, *corpus, *more)


@pytest.fixture(scope="module")
def profiled(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare") / "run"
    told = run("profile", *asked(model, "--drafts", "lookup", "--batch-tokens", 200), "-o", folder)
    assert "Head accuracy" not in told.output
    return folder


@pytest.mark.parametrize("rule", [GREEDY, Sampling(1.2, seed=3)], ids=str)
def test_the_text_is_that_of_the_model_with_heads(bare, rule):
    base = tiny_base("llama")
    prompts, held = random_prompts(9), [i % 3 == 0 for i in range(9)]
    trace = profile(bare, prompts, held, 24, rule=rule)
    with_heads = profile(MedusaModel(base, tiny_heads(base)), prompts, held, 24, rule=rule)
    assert trace.ranks.shape == (with_heads.positions, 0)
    assert (trace.heads, trace.candidates) == (0, 1)
    for mine, other in zip(trace.text.outputs, with_heads.text.outputs, strict=True):
        assert mine.tolist() == other.tolist()[: len(mine)]
    stripped = with_heads.without_heads()
    assert (stripped.heads, stripped.candidates, stripped.acceptance) == (0, 1, rule)
    found, wanted = look_up(trace, Lookup()), look_up(with_heads, Lookup())
    assert np.array_equal(found.match, wanted.match)
    assert np.array_equal(found.hits, wanted.hits)


def test_a_trace_of_no_heads_is_kept_and_has_no_accuracies(bare, tmp_path):
    prompts = random_prompts(6)
    trace = profile(bare, prompts, [i < 2 for i in range(6)], 16)
    save_trace(tmp_path / "t.npz", trace)
    same(read_trace(tmp_path / "t.npz"), trace)
    merged = RankTrace.merge([trace, trace])
    assert (merged.heads, merged.positions) == (0, 2 * trace.positions)
    assert head_accuracy(trace).shape == (0, 1)
    assert [x.shape for x in top_k_interval(trace, 1)] == [(0,)] * 3
    assert (trace.table.accepted(CandidateTree()) == 0).all()
    assert set(trace.table.index) == {0}
    told = run("trace", tmp_path / "t.npz")
    assert "is a good trace: 0 heads" in words(told)
    assert "0 heads, text to look up in, 2 sequences held out" in words(told)
    assert "accuracy" not in told.output
    save_trace(tmp_path / "mute.npz", replace(trace, text=None))
    with pytest.raises(InputError, match=r"mute\.npz: array \"ranks\" is of no heads, and there is no text"):
        read_trace(tmp_path / "mute.npz")


def test_ranks_of_heads_are_not_taken_for_a_chain(bare):
    """Heads' paths accept the same with a chain of looked-up tokens beside them as without."""
    ranks = np.array([[0, 0], [1, 0], [0, 1], [-1, 0]], dtype=np.int16)
    table = RankTrace(ranks, np.array([0, 4]), np.array([False]), 2).table
    for paths in ((), ((0,),), ((1,), (1, 0)), ((0,), (0, 0))):
        alone = table.accepted(CandidateTree(paths))
        assert np.array_equal(table.accepted(CandidateTree(paths, lookup=3)), alone)


def test_a_run_without_heads_goes_on_and_one_with_heads_is_another(bare, tmp_path):
    prompts, base = random_prompts(12), tiny_base("llama")
    job = job_on(bare, prompts)
    profile_run(job, tmp_path)
    whole = collect(tmp_path)
    assert whole.heads == 0
    assert read_run(tmp_path).settings["heads"] is None
    assert read_run(tmp_path).provenance["heads"] is None
    next(iter(sorted(tmp_path.glob("ranks-*.npz")))).unlink()
    profile_run(job, tmp_path)
    same(collect(tmp_path), whole)
    other = job_on(MedusaModel(base, tiny_heads(base)), prompts)
    assert settings_of(other)["weights"] == settings_of(job)["weights"]
    with pytest.raises(InputError, match="was begun with no heads, not with these"):
        profile_run(other, tmp_path)
    profile_run(other, tmp_path / "two")
    with pytest.raises(InputError, match="was begun with heads, not without"):
        profile_run(job, tmp_path / "two")
    with pytest.raises(InputError, match=r"has 4 heads, greedy; .* has 0 heads, greedy"):
        merge([tmp_path, tmp_path / "two"])
    joined, record = merge([tmp_path, tmp_path])
    assert (joined.heads, joined.positions) == (0, 2 * whole.positions)
    assert record["heads"] is None


def test_given_answers_are_followed_without_heads(bare, tmp_path):
    rows = [{"prompt_ids": [3, 4, 5 + i], "response_ids": [6, 7, 8 + i, 9]} for i in range(4)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = read_answers(path, bare, 16)
    trace = profile_answers(bare, given.rows, given.answers, [True, False] * 2, range(4), 16, 10, GREEDY, 2)
    assert trace.lengths.tolist() == [4] * 4, "there is nothing to look ahead at"
    assert [row.tolist() for row in trace.text.outputs] == [row["response_ids"] for row in rows]


def test_typical_acceptance_needs_heads(model, bare, tmp_path):
    job = job_on(bare, random_prompts(4), rule=Typical())
    with pytest.raises(InputError, match="--acceptance typical: needs heads"):
        job_of(bare, None, job.profiling, ("bare", None))
    out = ("--acceptance", "typical", "-o", tmp_path / "t.json")
    assert "--acceptance typical: needs heads" in words(run("calibrate", *asked(model), *out, code=2))
    assert "needs heads" in words(run("calibrate", *asked(model), "--drafts", "lookup", *out, code=2))


def test_the_grid_without_heads_is_of_chains_and_with_both_of_some():
    chains = grid_trees(200, 0, 10, chains=True)
    assert all(tree.paths == () and tree.nodes == tree.lookup for tree in chains)
    sizes = [tree.lookup for tree in chains]
    assert sizes[:4] == [0, 1, 2, 3]
    assert max(sizes) == LONGEST_CHAIN
    both, heads = grid_trees(64, HEADS, 10, chains=True), grid_trees(64, HEADS, 10)
    assert both[: len(heads)] == heads
    assert (
        {t.nodes for t in both[len(heads) :]}
        == {1, 3, 6, 12, 16, 24, 32, 48, 64}
        == {t.lookup for t in both[len(heads) :]}
    )
    steps = [(t.nodes, t.heads) for t in both]
    assert len(set(steps)) == len(steps), "a latency grid has each step once"


def test_a_grid_of_chains_has_a_curve_a_roofline_and_a_shape(bare):
    points = tuple(LatencyPoint(n, 0, 1, 100, *[1e-3 * (1 + 0.1 * n)] * 3) for n in (0, 1, 2, 4, 8, 16))
    grid = LatencyGrid.from_json(LatencyGrid(points).to_json())
    curve = grid.curve(1, 100)
    assert curve.per_head == 0
    assert float(curve.at(8, 0)) == pytest.approx(1.8e-3)
    shape = shape_of(bare)
    assert (shape.heads, shape.head_params) == (0, 0)
    assert float(fit_roofline(grid, shape).seconds(0, 0, 1, 100)) == pytest.approx(1e-3, rel=0.2)
    with pytest.raises(InputError, match="reads N heads at most"):
        LatencyGrid((*points, LatencyPoint(3, 4, 1, 100, 1e-3, 1e-3, 1e-3)))
    assert room_for(bare, 8) > room_for(bare, 8, lookup=False)


@pytest.mark.parametrize("drafts", [("--drafts", "lookup"), ()])
def test_any_model_is_calibrated(model, tmp_path, steady, drafts):
    """What is planned of it depends on the books; that there is a tree to write, show and report on does not."""
    out = tmp_path / "tree.json"
    told = run("calibrate", *asked(model), *drafts, "--batch", 1, "--batch", 2, "-o", out)
    said = f"No Medusa heads lie with {model}, and --heads names none: going on with lookup alone."
    assert words(told).count(said) == (not drafts)
    assert "Head accuracy" not in told.output
    contents = read_tree(out)
    assert (contents.heads, contents.head_accuracy, contents.paths) == (0, (), ())
    assert contents.provenance["heads"] is None
    assert contents.provenance["plan"]["drafts"] == (drafts or ("", "both"))[1]
    calibration = load_calibration(calibration_path(out))
    assert calibration.trace.heads == 0
    assert {p.depth for p in calibration.latency.points} == {0}
    run("plan", calibration_path(out), "-o", tmp_path / "again.json")
    assert read_tree(tmp_path / "again.json").heads == 0
    assert "Roofline" not in told.output
    run("show", out)
    run("report", out, "-o", tmp_path / "r.html")
    assert "--drafts heads: the trace is of a model without heads" in words(
        run("plan", calibration_path(out), "--drafts", "heads", "-o", tmp_path / "x.json", code=2)
    )
    assert "--engine vllm: takes trees of heads" in words(
        run("plan", calibration_path(out), "--engine", "vllm", "-o", tmp_path / "x.json", code=2)
    )


def test_in_parts_it_is_the_same(model, profiled, tmp_path, steady):
    whole, parts, latency = (tmp_path / name for name in ("whole.json", "parts.json", "latency.json"))
    run("calibrate", *asked(model), "-o", whole)
    same(load_calibration(calibration_path(whole)).trace, collect(profiled))
    told = run("measure", "--model", model, "--device", "cpu", "--context", 9, "-o", latency)
    assert "going on with lookup alone" in words(told)
    assert json.loads(latency.read_text())["heads"] is None
    run("calibrate", "--profile", profiled, "--latency", latency, "-o", parts)
    run("calibrate", "--profile", profiled, "--device", "cpu", "-o", tmp_path / "timed.json")
    assert read_tree(parts).heads == read_tree(tmp_path / "timed.json").heads == 0
    refused = run("calibrate", "--profile", profiled, "--drafts", "heads", "-o", tmp_path / "x.json", code=2)
    assert "--drafts heads: the trace is of a model without heads" in words(refused)
    run("merge", profiled, "-o", tmp_path / "trace.npz")
    run("plan", tmp_path / "trace.npz", "--latency", latency, "-o", tmp_path / "planned.json")
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    modelled = ("--device-model", "h100-sxm", "--config", tmp_path / "config.json", "--context", 9)
    run("plan", tmp_path / "trace.npz", *modelled, "-o", tmp_path / "modelled.json")


def test_heads_may_be_left_out_of_what_has_them(made, tmp_path):
    out = tmp_path / "t.json"
    assert "Head accuracy" not in run("plan", calibration_path(made), "--drafts", "lookup", "-o", out).output
    assert read_tree(out).heads == 0
    run("report", out, "-o", tmp_path / "r.html", "--calibration", calibration_path(made))
    assert "<h2>Head accuracy</h2>" not in (tmp_path / "r.html").read_text()
    run("plan", calibration_path(made), "--drafts", "heads", "-o", out)
    assert read_tree(out).paths == read_tree(made).paths


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--drafts", "heads"), "no Medusa heads there"),
        (("--drafts", "nobody"), "'nobody' is not one of 'heads', 'lookup', 'both'"),
        (("--drafts", "lookup", "--heads", "h"), "--heads h: --drafts lookup loads none"),
        (("--drafts", "heads", "--lookup-file", "f"), "with --drafts heads nothing is looked up"),
        (("--lookup-file", "/nowhere/at.all"), "--lookup-file /nowhere/at.all: cannot be read"),
        (("--heads", "{model}"), "no Medusa heads there"),
    ],
)
def test_what_cannot_draft_is_said(model, tmp_path, steady, args, said):
    named = [str(a).replace("{model}", str(model)) for a in args]
    assert said in words(run("calibrate", *asked(model), *named, "-o", tmp_path / "t.json", code=2))
    assert not (tmp_path / "t.json").exists()


def test_damaged_heads_are_no_missing_ones(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "medusa_lm_head.safetensors").write_bytes(b"cut")
    refused = run("calibrate", *asked(tmp_path / "m"), "-o", tmp_path / "t.json", code=2)
    assert "cannot be read as tensors" in words(refused)
    with pytest.raises(InputError, match="cannot be read as tensors"):
        MedusaModel.from_pretrained(tmp_path / "m", require_heads=None, device="cpu")
    assert MedusaModel.from_pretrained(model, require_heads=None, device="cpu").heads is None
    assert MedusaModel.from_pretrained(model, model / "heads", require_heads=None, device="cpu").num_heads == HEADS


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """The tiny model without heads, and a tokenizer that makes a token of each word."""
    folder = tmp_path_factory.mktemp("worded")
    save_base(tiny_base("llama"), folder, split=True)
    (folder / "corpus.txt").write_text("\n".join(f"{3 + i % 40} {5 + i % 9} {7 + i % 13}" for i in range(12)))
    return folder


@pytest.fixture
def notes(tmp_path):
    """A text of the user's own, half a dozen tokens."""
    path = tmp_path / "notes.txt"
    path.write_text("7 8 9 3 4 5")
    return path


def test_a_text_of_one_s_own_is_kept_in_the_calibration(worded, notes, tmp_path, steady):
    out = tmp_path / "t.json"
    run("calibrate", *asked(worded), "--lookup-file", notes, "-o", out)
    calibration = load_calibration(calibration_path(out))
    assert calibration.beside.tolist() == [7, 8, 9, 3, 4, 5]
    assert calibration.beside.dtype == np.int32
    said = {"file": str(notes), "digest": digest_of(calibration.beside), "tokens": 6}
    assert calibration.provenance["lookup"] == read_tree(out).provenance["lookup"] == said
    notes.unlink()
    run("plan", calibration_path(out), "-o", tmp_path / "again.json")  # which needs neither file nor model
    other = replace(calibration, beside=np.array([7, 8], dtype=np.int32))
    save_calibration(tmp_path / "other.npz", other)
    with pytest.raises(InputError, match=r'array "beside_ids" has digest sha256:.*, and provenance sha256:'):
        load_calibration(tmp_path / "other.npz")


def test_a_text_of_one_s_own_must_be_text(worded, tmp_path, steady):
    path = tmp_path / "own.txt"
    for raw, said in ((b"", "makes no tokens"), (b"\xff\xfe 7", "byte 0 is not UTF-8")):
        path.write_bytes(raw)
        refused = run("calibrate", *asked(worded), "--lookup-file", path, "-o", tmp_path / "t.json", code=2)
        assert said in words(refused)


def looking_up(tree, notes, digest):
    """A tree whose one book looks up in a text of the user's own; its figures are nobody's."""
    one = Estimate(1.0, 1.0, 1.0)
    book = Book(
        Lookup(file=str(notes), digest=digest),
        (BookTree(0, (), 0, 1.0),),
        one,
        one,
        one,
        one,
        one,
        Drafted(0.0, 0.0, 0.0),
    )
    contents = read_tree(tree)
    points = tuple(replace(p, book=book) for p in contents.operating_points)
    write_tree(tree, replace(contents, operating_points=points))


def test_generate_and_validate_take_the_text_of_then(worded, notes, tmp_path, steady):
    out = tmp_path / "t.json"
    run("calibrate", *asked(worded), "--lookup-file", notes, "-o", out)
    generate = ("generate", "3 4 5", "--model", worded, "--tree", out, "--device", "cpu", "--max-new-tokens", 4)
    alone = tmp_path / "alone.json"
    run("calibrate", *asked(worded), "-o", alone)
    unknown = run(*generate[:5], alone, *generate[6:], "--lookup-file", notes, code=2)
    assert f"--lookup-file {notes}: {alone} was planned without one" in words(unknown)

    digest = digest_of(load_calibration(calibration_path(out)).beside)
    looking_up(out, notes, digest)
    validate = ("validate", out, "--prompts", 2, "--device", "cpu")
    commands = (generate, validate)
    for command in commands:
        assert "is gone" not in words(run(*command))
    moved, kept = notes.rename(tmp_path / "moved.txt"), calibration_path(out)
    assert "is gone" not in words(run(*validate)), "its calibration has the text"
    kept.rename(kept.with_suffix(".away"))
    for command in commands:
        assert f"{notes}, which {out} looks up in, is gone" in words(run(*command))
        assert "is gone" not in words(run(*command, "--lookup-file", moved))
    moved.write_text("7 8 9")
    for command in commands:
        refused = words(run(*command, "--lookup-file", moved, code=2))
        assert f"--lookup-file {moved}: its tokens have digest " in refused
        assert f'"book", "lookup", "digest", has {digest.removeprefix("sha256:")[:12]}' in refused
    alone = run("generate", "3 4 5", "--model", worded, "--device", "cpu", "--lookup-file", moved, code=2)
    assert f"--lookup-file {moved}: is for a tree that was planned with it" in words(alone)


def test_a_tree_without_heads_is_decoded_with_by_a_model_without(model, tmp_path, steady):
    out = tmp_path / "t.json"
    run("calibrate", *asked(model), "-o", out)
    told = run("generate", "3 4 5", "--model", model, "--tree", out, "--device", "cpu", "--max-new-tokens", 8)
    assert told.stdout.startswith("3 4 5")
    assert "As predicted." in run("validate", out, "--prompts", 4, "--device", "cpu").output
    run(*calibrate(model), "-o", tmp_path / "with.json")
    assert read_tree(tmp_path / "with.json").heads == HEADS


def test_chains_are_timed_as_they_are_decoded(model, tmp_path, monkeypatch):
    """By the runtime, with what it looks up; with heads and without."""
    monkeypatch.setattr("medusa_tree.devices.measure.SECONDS_A_LOAD", 0.0)
    out = tmp_path / "latency.json"
    measure = ("--device", "cpu", "--max-nodes", 4, "--context", 24, "--batch", 2, "-o", out)
    for heads, sizes in (((), {1, 2, 3, 4}), (("--heads", model / "heads"), {1, 3})):
        told = run("measure", "--model", model, *heads, *measure)
        assert ("a head, whatever the nodes" in told.output) == ("Roofline fitted" in told.output) == bool(heads)
        steps = {(p["nodes"], p["depth"]) for p in json.loads(out.read_text())["points"]}
        assert {nodes for nodes, depth in steps if nodes and not depth} == sizes
        assert (0, 0) in steps
        assert any(depth for _, depth in steps) == bool(heads)
