"""Plans on made-up calibrations, where the right answer is known, and tree.json as it is written and read."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from test_search import random_trace

from medusa_runtime import CandidateTree, InputError
from medusa_runtime.treefile import read_tree, write_tree
from medusa_tree.bundled import data_path
from medusa_tree.devices.latency import LatencyGrid, LatencyPoint
from medusa_tree.devices.roofline import Roofline
from medusa_tree.devices.shape import ModelShape
from medusa_tree.planning.budget import Budget, enough, parse_budget, parse_memory
from medusa_tree.planning.calibration import Calibration, load_calibration, save_calibration
from medusa_tree.planning.notes import notes
from medusa_tree.planning.offers import Estimator
from medusa_tree.planning.plan import plan
from medusa_tree.search.order import product_frequencies
from medusa_tree.traces.trace import RankTrace


def grid(cost=lambda n, d: 1e-3 * (10 + 0.1 * n + 0.2 * d), plain=10e-3, sizes=(1, 2, 4, 8, 16, 32), loads=((1, 100),)):
    points = []
    for batch, context in loads:
        points.append(LatencyPoint(0, 0, batch, context, plain, plain * 0.98, plain * 1.02))
        for n in sizes:
            for d in sorted({1, min(n, 3)}):
                t = cost(n, d) * (1 + 0.1 * (batch - 1))
                points.append(LatencyPoint(n, d, batch, context, t, t * 0.97, t * 1.05))
    return LatencyGrid(tuple(points), "a device", "float32")


def calibration(**kwargs):
    return Calibration(random_trace(0, sequences=80, length=50), grid(**kwargs), {"model": {"name": "m"}})


def point(budget, **kwargs):
    return plan(calibration(), budget, **kwargs).contents.operating_points[0]


def test_the_chosen_size_is_the_fastest_of_all():
    made = plan(calibration(), Budget())
    curve, point = made.curves[1, 100], made.contents.operating_points[0]
    assert point.nodes == curve.nodes[curve.chosen] > 0
    # chosen on the fitting sequences, shown on the others: near the best there, too
    assert point.speedup.value >= 0.97 * curve.speedup.max()
    assert point.speedup.value == pytest.approx(
        point.acceptance_length.value * 10 / point.step_latency_ms.value, rel=1e-4
    )
    assert point.speedup.low < point.speedup.value < point.speedup.high


def test_where_steps_with_trees_are_dear_plain_decoding_is_chosen():
    contents = plan(calibration(cost=lambda n, d: 1.0), Budget()).contents
    point = contents.operating_points[0]
    assert (point.nodes, point.depth) == (0, 0)
    assert point.speedup.value == 1.0
    assert contents.tree().nodes == 0


def test_budgets_hold():
    free = point(Budget())
    tight = point(Budget(ratio=1.04))
    assert tight.step_latency_ms.value <= 10.4 < free.step_latency_ms.value
    assert point(Budget(seconds=10.35e-3)).step_latency_ms.value <= 10.35
    assert point(Budget(max_nodes=3)).nodes <= 3
    assert point(Budget(max_depth=1)).depth == 1


def test_beyond_a_budget_the_curve_is_shown_but_not_chosen():
    free = plan(calibration(), Budget()).curves[1, 100]
    tight = plan(calibration(), Budget(ratio=1.04)).curves[1, 100]
    beyond = tight.seconds > 10.4e-3
    assert beyond.any()
    assert not beyond[tight.chosen]
    assert tight.speedup[beyond] == pytest.approx(free.speedup[beyond])


def test_one_file_serves_several_batches():
    contents = plan(calibration(loads=((1, 100), (8, 100))), Budget()).contents
    assert [p.batch for p in contents.operating_points] == [1, 8]
    assert contents.point(8).batch == contents.point(6).batch == 8
    for point in contents.operating_points:
        tree = contents.tree(point.batch)
        assert (tree.nodes, tree.depth) == (point.nodes, point.depth)


def test_all_points_are_prefixes_of_one_order_and_a_nearer_load_is_found():
    contents = plan(calibration(loads=[(b, c) for b in (1, 4, 16) for c in (100, 1000)]), Budget()).contents
    whole = CandidateTree(contents.paths)
    for p in contents.operating_points:
        assert p.own is None or p.why_own
        if p.own is None:
            assert contents.tree_of(p) == whole.cut(p.nodes, p.depth)
    assert (contents.path_frequency == np.sort(contents.path_frequency)[::-1]).all()
    assert [contents.point(b).batch for b in (1, 2, 3, 8, 9, 1000)] == [1, 4, 4, 16, 16, 16]
    assert [contents.point(4, c).context for c in (1, 300, 400, 10**6)] == [100, 100, 1000, 1000]


def test_the_batch_from_which_plain_decoding_wins_is_named():
    loads = [(b, 100) for b in (1, 2, 4, 8, 16, 32)]
    made = plan(calibration(loads=loads), Budget())
    nodes = {p.batch: p.nodes for p in made.contents.operating_points}
    assert nodes[1] > 0 == nodes[32]
    assert made.plain_from == {100: min(b for b in nodes if not any(nodes[c] for c in nodes if c >= b))}
    assert plan(calibration(), Budget()).plain_from == {100: None}


def modelled(**kwargs):
    shape = ModelShape(32, 4096, 32, 8, 128, 32000, 6_500_000_000, 131_000_000, 148_000_000, heads=3)
    return Calibration(random_trace(0, sequences=80, length=50), Roofline("a sheet", shape, **kwargs), {}, shape)


def test_on_a_device_model_the_batch_is_found_beyond_those_planned():
    made = plan(modelled(bandwidth=3e12, flops=4e14), Budget(), [(1, 512), (8, 512)])
    batch = made.plain_from[512]
    assert 8 < batch < 1000
    below, at = (
        plan(modelled(bandwidth=3e12, flops=4e14), Budget(), [(b, 512)]).contents.operating_points[0].nodes
        for b in (batch - 1, batch)
    )
    assert below > 0 == at
    assert {p.latency for p in made.contents.operating_points} == {"modelled"}
    assert made.contents.provenance["modelled"]["bandwidth"] == 3e12
    assert Roofline.from_json(made.contents.provenance["modelled"]) == modelled(bandwidth=3e12, flops=4e14).latency
    assert f"--batch {batch} plans for it." in " ".join(notes(modelled(bandwidth=3e12, flops=4e14), made))
    with pytest.raises(InputError, match=r"plain decoding alone takes .* \(modelled\)$"):
        plan(modelled(bandwidth=3e12, flops=4e14), Budget(seconds=1e-4), [(1, 512)])


def test_where_only_the_budget_keeps_trees_out_plain_decoding_is_not_called_fastest():
    """And no tree is said to win everywhere where one batch has none."""
    calibrated = calibration(loads=[(1, 100), (2, 100)])
    step = calibrated.latency.curve(2, 100).plain.seconds
    made = plan(calibrated, Budget(seconds=1.001 * step))
    nodes, limits = zip(*((p.nodes, p.limit) for p in made.contents.operating_points), strict=True)
    assert nodes[1] == 0
    assert limits[1] == "latency"
    assert made.plain_from == {100: None}
    said = " ".join(notes(calibrated, made))
    assert "fastest from batch" not in said
    assert "at every batch tried" not in said


@pytest.mark.parametrize("tight", [{"max_nodes": 1}, {"max_depth": 1}, {"max_nodes": 1, "seconds": 16e-3}])
def test_what_is_said_to_admit_a_tree_does(tight):
    """Every bound that keeps the cheapest tree out is named with what it would have to be."""
    calibrated = calibration(cost=lambda nodes, depth: 17.5e-3)  # so that one head's guesses alone do not pay
    made = plan(calibrated, Budget(**tight))
    (point,) = made.contents.operating_points
    assert point.nodes == 0
    (line,) = (n for n in notes(calibrated, made) if "nearest feasible" in n)
    wider = dict(re.findall(r"--(max-nodes|max-depth|budget) ([\d.]+)", line))
    budget = Budget(
        seconds=float(wider["budget"]) / 1e3 if "budget" in wider else tight.get("seconds"),
        max_nodes=int(wider["max-nodes"]) if "max-nodes" in wider else tight.get("max_nodes"),
        max_depth=int(wider["max-depth"]) if "max-depth" in wider else tight.get("max_depth"),
    )
    assert plan(calibrated, budget).contents.operating_points[0].nodes > 0


def test_few_held_out_sequences_are_said_to_be_few():
    trace = random_trace(0, sequences=4, length=50)
    few = Calibration(trace, grid(), {})
    assert "Only 1 sequence held out" in " ".join(notes(few, plan(few, Budget())))
    assert "held out:" not in " ".join(notes(calibration(), plan(calibration(), Budget())))


def test_more_batch_never_wants_more_nodes_on_a_device_model():
    made = plan(modelled(bandwidth=3e12, flops=4e14), Budget(), [(b, 512) for b in (1, 2, 4, 8, 16, 32, 64)])
    nodes = [p.nodes for p in made.contents.operating_points]
    assert nodes == sorted(nodes, reverse=True)
    assert nodes[0] > nodes[-1]


def test_memory_bounds_the_tree_the_batch_and_says_what_is_nearest():
    calibrated = modelled(bandwidth=3e12, flops=4e14)
    weights = 2 * calibrated.shape.parameters
    token = 2 * calibrated.shape.kv_values
    small = weights + 530 * token + 12 * 4 * 32000
    made = plan(calibrated, Budget(memory=small), [(1, 512), (64, 512)])
    (only,) = made.contents.operating_points
    assert only.batch == 1
    assert only.limit == "memory"
    assert calibrated.memory.at(only.nodes, (1, 512)) <= small
    assert "memory binds" in made.infeasible[64, 512]
    assert "nearest feasible: batch 1 at this context" in made.infeasible[64, 512]
    with pytest.raises(InputError, match=r"the weights alone hold 14\.\d+ GB; nothing is feasible"):
        plan(calibrated, Budget(memory=weights / 2), [(1, 512)])
    with pytest.raises(InputError, match="batch 1 at context "):
        plan(calibrated, Budget(memory=small), [(1, 5120)])
    with pytest.raises(InputError, match="shape is not known here"):
        plan(calibration(), Budget(memory=1e9))


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget(), ""), (Budget(ratio=1.04), "latency"), (Budget(max_nodes=2), "nodes"), (Budget(max_depth=1), "depth"),
        (Budget(ratio=1.04, max_nodes=2), "latency, nodes"), (Budget(ratio=1.001), "latency"), (Budget(ratio=9), ""),
    ],
)  # fmt: skip
def test_the_bound_that_binds_is_named(budget, limit):
    assert point(budget).limit == limit


def test_where_no_tree_is_within_the_budget_plain_decoding_is_left():
    assert point(Budget(ratio=1.001)).nodes == 0


def test_the_largest_size_known_is_named_as_a_bound():
    assert (
        plan(calibration(cost=lambda n, d: 0.0101, sizes=(1, 2, 4, 8)), Budget()).contents.operating_points[0].limit
        == "largest size known"
    )


@pytest.mark.parametrize("estimator", ["visited", "joint", "product"])
def test_estimators_and_swaps_end_near_one_another(estimator):
    best = point(Budget()).speedup.value
    made = plan(calibration(), Budget(), estimator=estimator, swaps=True).contents
    assert made.provenance["estimator"]["name"] == estimator
    assert made.operating_points[0].speedup.value > 0.97 * best
    with pytest.raises(InputError, match="estimators: visited, joint, product"):
        plan(calibration(), Budget(), estimator="guess")


@pytest.mark.parametrize("estimator", ["visited", "joint", "product"])
def test_swaps_are_tried_whatever_the_estimator_and_never_with_an_engine(estimator, monkeypatch):
    better = CandidateTree(((0,), (1,), (0, 0)))
    backwards = product_frequencies(np.full((3, 4), [0.1, 0.2, 0.3, 0.35]))
    monkeypatch.setattr("medusa_tree.planning.plan.estimate", lambda trace, name: Estimator(name, 10.0, backwards))
    monkeypatch.setattr("medusa_tree.planning.plan.visited_tree", lambda trace, nodes, kappa, depth: better)
    monkeypatch.setattr("medusa_tree.planning.plan.swap_nodes", lambda tree, fit, check, depth: better)
    (p,) = plan(calibration(), Budget(max_nodes=3), estimator=estimator, swaps=True).contents.operating_points
    assert "with nodes swapped accepts" in p.why_own
    with pytest.raises(InputError, match=r"--swaps: .* none that vllm takes"):
        plan(calibration(), Budget(), engine="vllm", swaps=True)


def test_a_trace_of_misses_alone_is_refused():
    made = calibration()
    ranks = np.full_like(made.trace.ranks, -1)
    nothing = RankTrace(ranks, made.trace.starts, made.trace.held_out, made.trace.candidates)
    with pytest.raises(InputError, match="every rank is a miss"):
        plan(replace(made, trace=nothing), Budget())


@pytest.mark.parametrize("value", [0.0123456, 5.505, 5.51, 83.16, 999.9, 1.0])
def test_a_bound_that_is_said_to_be_enough_is(value):
    assert value <= float(enough(value)) < 1.01 * value


def test_the_nearest_feasible_budget_is_feasible():
    made = calibration()
    (line,) = [n for n in notes(made, plan(made, Budget(ratio=1.001))) if "latency binds" in n]
    assert point(Budget(seconds=parse_budget(re.search(r"--budget ([\d.]+ms)", line)[1])[1])).nodes > 0
    with pytest.raises(InputError) as caught:
        plan(made, Budget(seconds=1e-3))
    without, with_one = re.findall(
        r"nearest feasible: --budget (\S+) without a tree, --budget (\S+) with one", str(caught.value)
    )[0]
    assert point(Budget(seconds=parse_budget(without)[1])).nodes == 0
    assert point(Budget(seconds=parse_budget(with_one)[1])).nodes > 0


def test_a_tree_of_its_own_is_told_and_survives_its_file(tmp_path, monkeypatch):
    """Where the tree for its own visits is better by far, the point takes it and says why."""
    better = CandidateTree(((0,), (1,), (0, 0), (0, 1), (0, 0, 0)))
    backwards = product_frequencies(np.full((3, 4), [0.1, 0.2, 0.3, 0.35]))
    worse = Estimator("visited", 10.0, backwards)
    monkeypatch.setattr("medusa_tree.planning.plan.estimate", lambda trace, name: worse)
    monkeypatch.setattr(
        "medusa_tree.planning.plan.visited_tree", lambda trace, nodes, kappa, depth: better.cut(nodes, depth)
    )
    made = plan(calibration(), Budget(max_nodes=3)).contents
    p = made.operating_points[0]
    assert "more on the fitting sequences" in p.why_own
    assert set(made.tree_of(p).paths) == set(better.cut(p.nodes, p.depth).paths)
    write_tree(tmp_path / "tree.json", made)
    assert read_tree(tmp_path / "tree.json").tree(1).paths == made.tree(1).paths


def test_an_engine_plan_survives_its_file_and_its_schema(tmp_path):
    contents = plan(
        modelled(bandwidth=3e12, flops=4e14), Budget(), [(b, 512) for b in (1, 4, 64)], engine="vllm"
    ).contents
    assert all(p.own is None or p.why_own == "chosen within what vllm takes" for p in contents.operating_points)
    assert any(p.own for p in contents.operating_points)
    write_tree(tmp_path / "tree.json", contents)
    assert read_tree(tmp_path / "tree.json") == contents
    jsonschema.validate(
        json.loads((tmp_path / "tree.json").read_text()), json.loads(data_path("tree.schema.json").read_text())
    )


def test_a_newer_minor_version_with_fields_unknown_here_is_read(tmp_path):
    write_tree(tmp_path / "tree.json", plan(calibration(), Budget()).contents)
    data = json.loads((tmp_path / "tree.json").read_text())
    data["version"], data["operating_points"][0]["colour"] = "1.9", "green"
    (tmp_path / "tree.json").write_text(json.dumps(data))
    assert read_tree(tmp_path / "tree.json").tree(1).nodes > 0


@pytest.mark.parametrize(
    ("text", "value"), [(None, None), ("24GB", 24e9), ("1.5 GiB", 1.5 * 2**30), ("2TB", 2e12), ("512MB", 512e6)]
)
def test_memory_forms(text, value):
    assert parse_memory(text) == value


@pytest.mark.parametrize("text", ["24", "GB", "-1GB", "0GB", "24 gigabytes", "24kB"])
def test_memory_nonsense(text):
    with pytest.raises(InputError, match="--max-memory"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (None, (None, None)),
        ("1.3x", (1.3, None)),
        ("25ms", (None, 0.025)),
        ("2 x", (2.0, None)),
        ("800us", (None, 8e-4)),
    ],
)
def test_budget_forms(text, value):
    assert parse_budget(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["fast", "1.3", "-2x", "0.5x", "0ms", "25 minutes", "nanx", ""])
def test_budget_nonsense(text):
    with pytest.raises(InputError, match="--budget"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(seconds=1e-3), "plain decoding alone takes 10 ms"),
        (Budget(max_nodes=64), "known up to 32"),
    ],
)
def test_what_cannot_be_met_is_refused(budget, words):
    with pytest.raises(InputError, match=words):
        plan(calibration(), budget)


def test_more_nodes_than_were_timed_are_no_error_where_those_timed_are_too_slow_to_win_already():
    slow = calibration(cost=lambda n, d: 1e-3 * (10 + 2 * n))
    assert 0 < plan(slow, Budget(max_nodes=64)).contents.operating_points[0].nodes < 16


def test_a_calibration_survives_its_file(tmp_path):
    made = calibration()
    save_calibration(tmp_path / "c.npz", made)
    read = load_calibration(tmp_path / "c.npz")
    assert np.array_equal(read.trace.ranks, made.trace.ranks)
    assert read.latency == made.latency
    assert plan(read, Budget()).contents == plan(made, Budget()).contents
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_a_tree_file_survives_and_meets_its_schema(tmp_path):
    contents = plan(calibration(), Budget()).contents
    write_tree(tmp_path / "tree.json", contents)
    assert read_tree(tmp_path / "tree.json") == contents
    schema = json.loads(data_path("tree.schema.json").read_text())
    jsonschema.validate(json.loads((tmp_path / "tree.json").read_text()), schema)


def edit(**changes):
    def change(data):
        data.update(changes)

    return change


def drop_parent(data):
    data["paths"] = [p for p in data["paths"] if p != [0]]
    data["path_frequency"] = data["path_frequency"][1:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit(version="2.0"), "\"version\" is '2.0'"),
        (edit(format="other"), '"format"'),
        (drop_parent, "without its parent \\[0\\]"),
        (lambda d: d["paths"].__setitem__(1, d["paths"][0]), "stands twice"),
        (lambda d: d["paths"].__setitem__(0, [-1]), "negative rank"),
        (lambda d: d["paths"].__setitem__(-1, [0, 0, 0, 0]), "(without its parent|4 deep, but there are 3 heads)"),
        (lambda d: (d["paths"].append([99]), d["path_frequency"].append(0)), "uses rank 99"),
        (lambda d: d.pop("heads"), '"heads" is missing'),
        (edit(paths="[[0]]"), '"paths" must be a list'),
        (edit(heads=True), '"heads" must be a whole number'),
        (edit(operating_points=[]), '"operating_points" must be'),
        (lambda d: d["operating_points"][0].pop("nodes"), '"operating_points", entry 0'),
        (lambda d: d["operating_points"][0].update(nodes=10**6), "but the file has"),
        (lambda d: d["path_frequency"].pop(), '"path_frequency" must be a list'),
        (lambda d: d["operating_points"][0].update(own=[0, 0]), '"own" must be'),
        (lambda d: d["operating_points"][0].update(own=[-1]), '"own" must be'),
        (lambda d: d["operating_points"][0].update(own=3), "entry 0"),
        (lambda d: d["operating_points"][0].update(batch=0), '"batch" is 0'),
        (edit(provenance=5), '"provenance" must be an object'),
        (edit(head_accuracy=[0.5, 0.25, 0.1]), '"head_accuracy" must be a list of 3 rows'),
    ],
)
def test_bad_tree_files_are_named(tmp_path, change, words):
    path = tmp_path / "tree.json"
    write_tree(path, plan(calibration(), Budget()).contents)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=words) as caught:
        read_tree(path)
    assert str(path) in str(caught.value)


def test_a_tree_too_deep_for_its_heads_is_named(tmp_path):
    path = tmp_path / "tree.json"
    write_tree(path, plan(calibration(), Budget()).contents)
    data = json.loads(path.read_text())
    data.update(paths=[[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]], path_frequency=[1, 1, 1, 1])
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="4 deep, but there are 3 heads"):
        read_tree(path)


@pytest.mark.parametrize("text", ["", '{"format": "medusa-tree", "version": "1.0", "paths": [[0', "[1, 2]", "\x00"])
def test_a_truncated_tree_file_is_named(tmp_path, text):
    path = tmp_path / "tree.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"tree\.json"):
        read_tree(path)


def test_planning_needs_no_torch():
    """All that plan, compare, report, show, trace and export load, and every module marked NumPy only."""
    code = (
        "import sys, medusa_tree.cli.finish, medusa_tree.cli.source, medusa_tree.engines.export, medusa_tree.reports.page, medusa_tree.traces.tracefile;"
        "import medusa_runtime.treefile, medusa_tree.search.refine; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
