"""Categories: one common tree against each category's own, on texts that want opposite trees."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from test_cli import run, words
from test_plan import calibration, grid, modelled
from test_search import random_trace

from medusa_runtime import CandidateTree
from medusa_runtime.treefile import Estimate, read_tree
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.calibration import Calibration, load_calibration, save_calibration
from medusa_tree.planning.categories import (
    Categories,
    Category,
    Own,
    acceptance_by_category,
    by_category,
    largest,
    own_tree,
)
from medusa_tree.planning.compare import compare
from medusa_tree.planning.notes import notes
from medusa_tree.planning.plan import plan
from medusa_tree.reports.categories import category_chart, category_table
from medusa_tree.reports.page import write_page
from medusa_tree.traces.probetrace import ProbeTrace
from medusa_tree.traces.replay import replay
from medusa_tree.traces.trace import RankTrace
from medusa_tree.traces.tracefile import read_trace, save_trace

DEEP = CandidateTree(((0,), (0, 0), (0, 0, 0)))
WIDE = CandidateTree(((1,), (2,), (3,)))
FLAT = grid(cost=lambda n, d: 1e-3 * (10 + 0.05 * n))  # depth costs nothing


def opposites(sequences=60, length=40, seed=0, kinds=("code", "prose")):
    """Code: the first guesses of all three heads are right or none is. Prose: the first guess is never right, one of the next three
    is, and nothing behind it."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(sequences):
        ranks = np.full((length, 3), -1, dtype=np.int16)
        if i % 2:
            ranks[:, 0] = rng.integers(1, 4, length)
        else:
            ranks[rng.random(length) < 0.8] = 0
        rows.append(ranks)
    held = [i % 4 < 2 for i in range(sequences)]
    return RankTrace.from_sequences(rows, held, 4, categories=np.array([kinds[i % 2] for i in range(sequences)]))


def planned(trace=None, nodes=3, latency=FLAT, **kwargs):
    made = Calibration(opposites() if trace is None else trace, latency, {"model": {"name": "m"}})
    return made, plan(made, Budget(max_nodes=nodes), **kwargs)


def divided(found, load=(1, 100)):
    return by_category(found.task, found.contents.tree(*load), load)


def test_each_category_gets_the_tree_that_it_wants_and_the_figures_are_replays():
    trace = opposites()
    made, found = planned(trace)
    tree = found.contents.tree()
    split = divided(found)
    assert [r.name for r in split.rows] == ["code", "prose"]
    held, curve = trace.select(trace.held_out), made.latency.curve(1, 100)
    for row, best in zip(split.rows, (DEEP, WIDE), strict=True):
        mine = held.select(held.categories == row.name)
        assert (row.fitting, row.held_out, row.positions) == (15, 15, 600)
        fitting = trace.select(~trace.held_out & (trace.categories == row.name))
        own = own_tree(found.task, fitting, tree.nodes, (1, 100))
        assert set(own.paths) == set(best.paths)
        assert (row.own.nodes, row.own.depth) == (best.nodes, best.depth)
        # by hand: tokens over steps, and seconds over seconds
        common, alone = replay(tree, mine), replay(best, mine)
        assert row.acceptance_length.value == pytest.approx(mine.positions / common.steps.sum(), rel=1e-5)
        assert row.own.acceptance_length.value == pytest.approx(mine.positions / alone.steps.sum(), rel=1e-5)
        seconds = [float(curve.at(t.nodes, t.depth)) for t in (tree, best)]
        ratio = alone.steps.sum() * seconds[1] / (common.steps.sum() * seconds[0])
        assert row.own.common_over_own.value == pytest.approx(ratio, rel=1e-5)
        assert row.own.common_over_own.low <= ratio <= row.own.common_over_own.high
        plain = curve.plain.seconds
        assert row.speedup.value == pytest.approx(row.acceptance_length.value * plain / seconds[0], rel=1e-5)
    assert min(r.own.common_over_own.high for r in split.rows) < 0.97, "no three nodes serve both"


def test_all_categories_together_are_each_with_its_own_tree():
    trace = opposites()
    made, found = planned(trace)
    tree, split = found.contents.tree(), divided(found)
    held, curve = trace.select(trace.held_out), made.latency.curve(1, 100)
    steps = spent = 0.0
    for name, own in (("code", DEEP), ("prose", WIDE)):
        taken = replay(own, held.select(held.categories == name)).steps.sum()
        steps, spent = steps + taken, spent + taken * float(curve.at(own.nodes, own.depth))
    common = replay(tree, held).steps.sum() * float(curve.at(tree.nodes, tree.depth))
    whole = split.whole
    assert (whole.fitting, whole.held_out, whole.positions) == (30, 30, 1200)
    assert whole.acceptance_length == found.contents.operating_points[0].acceptance_length
    assert whole.own.acceptance_length.value == pytest.approx(held.positions / steps)
    assert whole.own.common_over_own.value == pytest.approx(spent / common)
    assert whole.own.common_over_own.high < 1


def test_tokens_a_second_count_and_not_acceptance_alone_where_depth_differs():
    """A level costs as much as a step: the deep tree accepts more of code and is slower, so its own tree is shallow."""
    dear = grid(cost=lambda n, d: 1e-3 * (2 + 0.05 * n + 9 * d), plain=10e-3)
    _, found = planned(latency=dear)
    split = divided(found)
    assert all(row.own.depth == 1 for row in split.rows)


def test_a_category_is_planned_within_the_budget_and_the_engine():
    _, found = planned(nodes=8)
    load, nodes = (1, 100), 8
    code = found.task.fit.select(found.task.fit.categories == "code")
    assert own_tree(found.task, code, nodes, load).depth == 3
    shallow = replace(found.task, budget=Budget(max_depth=2))
    assert own_tree(shallow, code, nodes, load).depth == 2
    chain = own_tree(replace(found.task, engine="linear"), code, 2, load)
    assert chain.paths == CandidateTree.chain(2).paths
    uniform = own_tree(replace(found.task, engine="vllm"), code, nodes, load)
    for depth in range(uniform.depth):
        level = [p for p in ((), *uniform.paths) if len(p) == depth]
        assert len({sum(q[:-1] == p for q in uniform.paths) for p in level}) == 1
    assert uniform.nodes <= nodes


@pytest.mark.parametrize("engine", ["vllm", "tensorrt-llm", "medusa", "sglang", "linear", "eagle", "hydra"])
def test_every_engines_plan_is_divided(engine):
    _, found = planned(engine=engine, nodes=6)
    if found.contents.tree().nodes:
        assert all(row.own is not None and row.own.nodes <= 6 for row in divided(found).rows)


@pytest.mark.parametrize("estimator", ["visited", "joint", "product"])
def test_the_estimator_is_the_plans(estimator, monkeypatch):
    from medusa_tree.planning import categories

    asked = []
    monkeypatch.setattr(categories, "estimate", lambda fit, name: asked.append(name) or real(fit, name))
    from medusa_tree.planning.offers import estimate as real

    _, found = planned(estimator=estimator)
    divided(found)
    assert asked == [estimator] * 2


def test_without_categories_or_with_one_or_without_a_tree_there_is_nothing():
    plain = random_trace(0, sequences=40)
    one = replace(plain, categories=np.array(["chat"] * 40))
    for trace in (plain, one):
        _, found = planned(trace, latency=grid())
        assert divided(found) is None
        assert acceptance_by_category([DEEP], trace.select(trace.held_out)) == []
    _, slow = planned(latency=grid(cost=lambda n, d: 1.0))
    assert slow.contents.operating_points[0].nodes == 0
    assert divided(slow) is None


def renamed(trace, fitting, held_out, name="rare"):
    """The trace with the first so many fitting and held-out sequences of "code" in a category of their own."""
    kinds = trace.categories.astype("U8").copy()
    for held, count in ((False, fitting), (True, held_out)):
        kinds[np.flatnonzero((trace.held_out == held) & (trace.categories == "code"))[:count]] = name
    return replace(trace, categories=kinds)


@pytest.mark.parametrize(
    ("fitting", "held_out", "why"),
    [(3, 5, "too few to fit"), (0, 2, "too few to fit"), (9, 1, "too few held out"), (4, 0, "too few held out"), (4, 2, "")],
)  # fmt: skip
def test_of_too_few_nothing_is_fitted_and_nothing_is_said(fitting, held_out, why):
    _, found = planned(renamed(opposites(), fitting, held_out))
    rare = divided(found).rows[-1]
    assert (rare.name, rare.fitting, rare.held_out, rare.why) == ("rare", fitting, held_out, why)
    assert (rare.own is None) == bool(why)
    assert (rare.acceptance_length is None) == (why == "too few held out")


def test_a_category_of_misses_is_said_to_be_one():
    trace = renamed(opposites(), 8, 8)
    lost = np.repeat(trace.categories == "rare", trace.lengths)
    trace = replace(trace, ranks=np.where(lost[:, None], -1, trace.ranks).astype(np.int16))
    for engine in (None, "medusa"):
        _, found = planned(trace, engine=engine)
        rare = divided(found).rows[-1]
        assert (rare.why, rare.own, rare.acceptance_length.value) == ("no guess is right", None, 1.0)


def test_only_the_largest_categories_have_a_row():
    kinds = np.array(["b"] * 3 + ["a"] * 5 + ["d"] * 4 + ["c"])
    assert largest(kinds, 2).tolist() == ["a", "d"]
    assert largest(kinds).tolist() == ["a", "b", "c", "d"]
    trace = opposites(sequences=160)
    many = replace(trace, categories=np.array([f"{i // 4:02d}" for i in range(160)]))
    _, found = planned(many)
    split = divided(found)
    assert (len(split.rows), split.left_out, split.whole.held_out) == (32, 8, 80)


def test_a_probe_trace_is_divided_by_what_it_accepts():
    """Typical acceptance: two siblings stand at once, so only one of them is worth a node."""
    trace = opposites()
    probe = CandidateTree.by_depth({*DEEP.paths, *WIDE.paths, (0, 1), (1, 0)})
    accepted = np.zeros((trace.positions, probe.nodes), dtype=np.bool_)
    code = np.repeat(trace.categories == "code", trace.lengths) & (trace.ranks[:, 0] == 0)
    for path in DEEP.paths:
        accepted[code, probe.index[path] - 1] = True
    prose = np.repeat(trace.categories == "prose", trace.lengths)
    accepted[np.ix_(prose, [probe.index[1,] - 1, probe.index[2,] - 1])] = True
    probed = ProbeTrace(
        trace.ranks, trace.starts, trace.held_out, 4, trace.acceptance, None, trace.categories, accepted=accepted, probe=probe
    )  # fmt: skip
    made, found = planned(probed, nodes=2)
    assert found.task.estimator.name == "cover"
    code_row, prose_row = divided(found).rows
    held = probed.select(probed.held_out)
    mine = held.select(held.categories == "prose")
    assert prose_row.own.nodes == 1, "the second sibling adds nothing"
    assert prose_row.own.acceptance_length.value == pytest.approx(
        mine.positions / replay(CandidateTree(((1,),)), mine).steps.sum()
    )
    assert code_row.own.acceptance_length.value > prose_row.own.acceptance_length.value
    assert "Typical acceptance" in " ".join(notes(made, found, [divided(found)]))


def test_compared_trees_by_category_are_replays_of_that_category():
    trace = renamed(opposites(), 0, 1)
    held = trace.select(trace.held_out)
    rows = acceptance_by_category([DEEP, WIDE], held)
    assert [(r.name, r.held_out) for r in rows] == [("code", 14), ("prose", 15), ("rare", 1), (None, 30)]
    assert rows[2].lengths == ()
    for row in rows[:2]:
        mine = held.select(held.categories == row.name)
        for e, tree in zip(row.lengths, (DEEP, WIDE), strict=True):
            played = replay(tree, mine)
            assert (e.value, e.low, e.high) == (played.acceptance_length, *played.interval())
    assert rows[0].lengths[1].value == 1
    whole = compare([("deep", DEEP), ("wide", WIDE)], held, FLAT.curve(1, 100), (1, 100), "measured")
    for e, row in zip(rows[3].lengths, whole, strict=True):
        assert e.value == pytest.approx(row.point.acceptance_length.value, rel=1e-5)


def test_a_note_where_a_tree_of_its_own_would_pay_and_only_there():
    made, found = planned()

    def told(ratio, held_out=20, speedup=(1.5, 1.4, 1.6)):
        own = Own(3, 1, Estimate(2, 1.9, 2.1), Estimate(*ratio))
        row = Category("code", 20, held_out, 900, Estimate(2, 1.9, 2.1), Estimate(*speedup), own)
        return [n for n in notes(made, found, [Categories((1, 100), (row,), row)]) if "common tree" in n]

    (line,) = told((0.95, 0.93, 0.965))
    assert line.startswith("code loses 5% (4 to 7) with the common tree (measured): a tree of its own would pay")
    assert told((0.95, 0.93, 0.98)) == []
    assert told((0.95, 0.93, 0.965), held_out=7) == []
    (line,) = told((1.01, 1.0, 1.02), speedup=(0.9, 0.88, 0.93))
    assert "slower with the common tree than with plain decoding: 0.90x" in line
    assert not any("common tree" in n for n in notes(made, found))


@pytest.mark.parametrize("save", ["calibration", "trace"])
def test_categories_survive_the_file(tmp_path, save):
    trace, path = opposites(), tmp_path / "t.npz"
    if save == "calibration":
        save_calibration(path, Calibration(trace, FLAT, {}))
        read = load_calibration(path).trace
    else:
        save_trace(path, trace)
        read = read_trace(path)
    assert read.categories.tolist() == trace.categories.tolist()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A calibration with two loads, and names that mean something to terminals and to HTML."""
    path = tmp_path_factory.mktemp("kept") / "c.npz"
    latency = grid(cost=lambda n, d: 1e-3 * (10 + 0.05 * n), loads=((1, 100), (2, 100)))
    trace = renamed(opposites(kinds=("code", "")), 2, 3, "[/b]<i>")
    save_calibration(path, Calibration(trace, latency, {"model": {"name": "m"}}))
    return path


def test_plan_shows_them_and_says_them_in_json(kept, tmp_path):
    out = tmp_path / "t.json"
    result = run("plan", kept, "--max-nodes", 3, "-o", out)
    text = words(result)
    assert text.count("One tree for all categories") == 2
    assert "at batch 2, context 100" in text
    assert "code loses" in text
    assert "at batch 1, context 100 with the common tree (measured): a tree of its own would pay" in text
    assert "(none)" in text
    assert "[/b]<i>" in text
    assert "too few to fit" in text
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if "±" in line or "%" in line)
    data = json.loads(run("plan", kept, "--max-nodes", 3, "--json", "-o", out).stdout)
    rows = data["categories"]
    assert [(r["category"], r["batch"]) for r in rows[:4]] == [("", 1), ("[/b]<i>", 1), ("code", 1), (None, 1)]
    assert len(rows) == 8
    assert rows[1]["own"] is None
    assert rows[1]["why"] == "too few to fit"
    assert rows[2]["sequences"] == {"fitting": 13, "held_out": 12}
    ratio = rows[2]["own"]["common_over_own"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert "code loses" in " ".join(data["notes"])


def test_compare_shows_them(kept, tmp_path):
    (tmp_path / "[x].json").write_text("[[1], [2]]")
    args = ("compare", "chain:3", "mc_sim_7b_63", tmp_path / "[x].json", "plain", "--calibration", kept)
    data = json.loads(run(*args[:2], *args[3:], "--json").stdout)
    assert [r["category"] for r in data["categories"]] == ["", "[/b]<i>", "code", None]
    assert [e["tree"] for e in data["categories"][2]["acceptance_length"]] == [r["tree"] for r in data["compared"]]
    table = run(*args[:2], *args[3:]).output
    assert "Acceptance by category" in table
    assert all(len(line) <= 80 for line in table.splitlines())


def test_where_there_are_none_nothing_is_shown(tmp_path):
    save_calibration(tmp_path / "c.npz", calibration())
    result = run("plan", tmp_path / "c.npz", "-o", tmp_path / "t.json")
    assert "categor" not in result.output
    assert "categor" not in run("compare", "plain", "chain:2", "--calibration", tmp_path / "c.npz").output
    data = json.loads(run("plan", tmp_path / "c.npz", "--json", "-o", tmp_path / "t.json").stdout)
    assert data["categories"] == []
    write_page(tmp_path / "r.html", read_tree(tmp_path / "t.json"), calibration())
    assert "By category" not in (tmp_path / "r.html").read_text()


def test_the_page_has_a_section(kept, tmp_path):
    made = load_calibration(kept)
    assert write_page(tmp_path / "r.html", plan(made, Budget(max_nodes=3)).contents, made) == []
    html = (tmp_path / "r.html").read_text()
    section = html.split("<h2>By category</h2>")[1].split("</section>")[0]
    assert 'aria-label="Acceptance length by category, tokens a step: (none) ' in section
    assert section.count('class="bar"') == 4, "three categories, and the key"
    assert section.count("its own tree") == 2, "tooltips"
    assert "too few to fit" in section
    assert "[/b]&lt;i&gt;" in section
    assert "<i>" not in section
    assert "a tree of its own would pay" in html


def test_bars_stay_inside_their_frame_and_long_names_are_cut():
    own = Own(3, 1, Estimate(9.9, 9.8, 9.95), Estimate(1, 1, 1))
    row = Category("a very long name for a kind of text", 9, 9, 99, Estimate(2, 1.9, 2.1), Estimate(1, 1, 1), own)
    chart = category_chart(Categories((1, 100), (row, replace(row, name="b", own=None)), row))
    x, ticks = chart.axis()
    assert chart.bars[0].label == "a very long name for …"
    assert chart.left <= x(1) < x(2) < x(9.9) <= 416
    assert x(min(ticks)) == chart.left
    assert "a very long name for a kind of text: 2.00" in chart.bars[0].tip


def test_modelled_figures_say_so_on_every_row():
    made = modelled(bandwidth=3e12, flops=4e14)
    kinds = np.array([("code", "prose")[i % 8 // 4] for i in range(80)])
    made = replace(made, trace=replace(made.trace, categories=kinds))
    found = plan(made, Budget(), [(1, 512)])
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(category_table(divided(found, (1, 512)), made))
    rows = [line for line in console.export_text().splitlines() if "x " in line]
    assert len(rows) == 3
    assert all("modelled" in line for line in rows)


def test_thirteen_categories_take_a_moment():
    """Spec-Bench's: 13 categories of 40 prompts, 128 tokens, ten candidates of five heads."""
    rng = np.random.default_rng(0)
    p = np.array([0.3, 0.35, 0.1, 0.06, 0.05, 0.04, 0.03, 0.03, 0.02, 0.01, 0.01])
    rows = list(rng.choice(np.arange(-1, 10), p=p, size=(520, 128, 5)).astype(np.int16))
    kinds = np.array([f"category {i % 13}" for i in range(520)])
    trace = RankTrace.from_sequences(rows, (rng.random(520) < 0.25).tolist(), 10, categories=kinds)
    sizes = (1, 2, 4, 8, 16, 32, 64)
    _, found = planned(trace, nodes=64, latency=grid(cost=lambda n, d: 1e-3 * (10 + 0.01 * n), sizes=sizes))
    start = time.perf_counter()
    split = divided(found)
    assert time.perf_counter() - start < 10, "about a second on an idle machine"
    assert all(row.own for row in split.rows)
