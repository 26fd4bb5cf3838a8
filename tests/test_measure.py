"""Timing the grid on a clock of our own, whose true step latencies are known."""

import itertools
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import BUSHY, HEADS, random_prompts, tiny_model
from test_cli import run, unreached, words
from test_plan import grid
from test_search import random_trace

from medusa_runtime import InputError
from medusa_runtime.buffers import BookBuffers
from medusa_runtime.decode import prefill
from medusa_runtime.processes import agreed
from medusa_runtime.step import step
from medusa_runtime.tree_model import TreeModel
from medusa_tree.devices import measure as timing
from medusa_tree.devices.latency import LatencyGrid
from medusa_tree.devices.measure import BURST, CLEAR_AFTER, MIN_ROUNDS, ROUNDS, SELDOM, WARM, measure
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.calibration import Calibration, load_calibration
from medusa_tree.planning.choose import contenders
from medusa_tree.planning.plan import plan
from medusa_tree.traces.tracefile import save_trace


def true_cost(nodes, depth):
    return 1e-3 * (10 + 0.1 * nodes + 0.2 * depth)


class Clock:
    """Stands in for the machine: every tree's step takes what it truly costs, times what the machine is slowed down by."""

    def __init__(self, monkeypatch, slow=lambda r: 1.0, cost=true_cost):
        self.round, self.slow, self.cost, self.timed = 0, slow, cost, Counter()
        monkeypatch.setattr(timing, "stepper", lambda model, state, buffers, *args: (buffers.nodes, buffers.depth))
        monkeypatch.setattr(timing, "time_steps", self.steps)

    def steps(self, tree, state, length, most, steps):
        self.timed[tree] += steps
        return np.full(steps, self.cost(*tree) * self.slow(self.round))

    def tick(self, rounds):
        self.round += rounds


def test_a_machine_that_slows_down_favours_no_tree(monkeypatch):
    """Those that sat the slow rounds out are brought to the level of those in them; the quartiles show that there were two."""
    clock = Clock(monkeypatch, slow=lambda r: 1.0 if r < CLEAR_AFTER + 3 else 1.5)
    points = measure(tiny_model(), 16, progress=clock.tick, contenders=lambda curve: (4, 8)).points
    scale = points[0].seconds / true_cost(0, 0)
    for p in points:
        assert p.seconds == pytest.approx(scale * true_cost(p.nodes, p.depth), rel=1e-9)
        assert p.high == pytest.approx(1.5 * p.low, rel=1e-9)
    seldom, warm = CLEAR_AFTER + len(range(CLEAR_AFTER, ROUNDS, SELDOM)), WARM
    assert clock.timed[6, HEADS] == clock.timed[6, 1] == warm + BURST * ROUNDS
    assert clock.timed[1, 1] == clock.timed[12, HEADS] == warm + BURST * seldom
    assert clock.timed[0, 0] == warm + BURST * ROUNDS


def test_tokens_a_second_are_over_the_mean_step(monkeypatch):
    """One step of four takes twice as long: the median does not see it, decoding does."""

    class Hiccups(Clock):
        def steps(self, tree, *args):
            seconds = super().steps(tree, *args)
            seconds[-1] *= 2
            return seconds

    clock = Hiccups(monkeypatch)
    for p in measure(tiny_model(), 8, progress=clock.tick).points:
        assert p.seconds == pytest.approx(1.25 * true_cost(p.nodes, p.depth))
        assert p.low <= p.seconds <= p.high


def test_slow_rounds_are_fewer_and_the_bar_still_ends(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(timing, "SECONDS_A_LOAD", 0.0)
    points = measure(tiny_model(), 4, batches=(1, 2), rounds=7, progress=clock.tick).points
    assert clock.round == 2 * 7
    assert clock.timed[3, 3] == 2 * (WARM + BURST * MIN_ROUNDS)
    assert {(p.batch, p.seconds) for p in points if p.nodes == 3 == p.depth} == {(b, true_cost(3, 3)) for b in (1, 2)}


def test_a_load_for_which_memory_does_not_suffice_is_left_out(monkeypatch):
    clock, real, told = Clock(monkeypatch), timing.prefill, []

    def prefill(model, prompts, *args, **kwargs):
        if len(prompts) > 2:
            raise InputError("out of memory")
        return real(model, prompts, *args, **kwargs)

    monkeypatch.setattr(timing, "prefill", prefill)
    loads = {"batches": (2, 64), "contexts": (8, 16), "rounds": 3, "progress": clock.tick}
    grid = measure(tiny_model(), 4, **loads, leave_out=lambda load, why: told.append((load, str(why))))
    assert grid.loads() == [(2, 8), (2, 16)]
    assert told == [((64, 8), "out of memory"), ((64, 16), "out of memory")]
    assert clock.round == 4 * 3
    with pytest.raises(InputError, match="out of memory"):
        measure(tiny_model(), 4, **loads)
    with pytest.raises(InputError, match="out of memory"):
        measure(tiny_model(), 4, batches=(64,), leave_out=print)


def test_trees_too_slow_to_win_are_not_timed(monkeypatch):
    clock = Clock(monkeypatch, cost=lambda nodes, depth: 1e-3 * (1 + nodes))
    points = measure(tiny_model(), 64, rounds=2, progress=clock.tick).points
    assert (
        max(p.nodes for p in points) == 8
    )  # 9 ms a step, where half as much again as 5 times plain decoding's is 7.5: the last


@pytest.mark.parametrize("budget", [Budget(), Budget(ratio=1.2), Budget(max_nodes=4), Budget(max_depth=1)])
def test_the_size_that_a_plan_takes_is_among_the_contenders(budget):
    trace, latency = random_trace(0, sequences=80, length=50), grid()
    least, most = contenders(trace, 32, budget)(latency.curve(1, 100))
    chosen = plan(Calibration(trace, latency, {}), budget).contents.operating_points[0].nodes
    assert least <= chosen <= most
    assert {least, most} <= {p.nodes for p in latency.points}


def test_a_budget_that_nothing_meets_is_left_to_the_plan():
    trace, curve = random_trace(0, sequences=80, length=50), grid().curve(1, 100)
    assert contenders(trace, 32, Budget(seconds=1e-6))(curve) == contenders(trace, 32, Budget())(curve)


def test_far_behind_is_no_contender():
    """Where steps cost what their nodes do, large trees are out of it at once."""
    steep = grid(cost=lambda n, d: 10e-3 + 3e-3 * n)
    least, most = contenders(random_trace(0, sequences=80, length=50), 32, Budget())(steep.curve(1, 100))
    assert 1 <= least <= most < 16


def test_timed_steps_leave_the_state_as_it_was():
    """The steps are real ones: the text goes on, and is then gone back on."""
    model = tiny_model()
    state = prefill(model, random_prompts(2, seed=3), 200)
    state.cache.slots.set_lengths([20, 20])
    before = [t.clone() for t in state.tensors()]
    seen, tree = [], BookBuffers.of(BUSHY, model.device)

    def run():
        out = step(model, state, tree)
        seen.append(state.cache.slots.lengths.tolist())
        return out

    seconds = timing.time_steps(run, state, [20, 20], 1 + HEADS, 4)
    assert seconds.shape == (4,)
    assert (seconds > 0).all()
    assert all(a < b for one, two in itertools.pairwise([[20, 20], *seen]) for a, b in zip(one, two, strict=True))
    for was, now in zip(before, state.tensors(), strict=True):
        torch.testing.assert_close(now, was)
    assert state.cache.slots.known == (20, 20)


@pytest.fixture
def split(monkeypatch):
    """All models as if each were a process's share of one."""
    monkeypatch.setattr(TreeModel, "split_over_processes", True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)


def test_processes_that_share_a_model_go_by_the_first_one_s_clock(monkeypatch, split):
    """The second's machine is slower, so that by itself it would time fewer trees and rounds, and the other would wait forever."""
    said = []

    def first(model, value):
        said.append(value)
        return value

    monkeypatch.setattr(timing, "agreed", first)
    asked = {"rounds": 6, "contenders": lambda curve: (2, 2 if curve.plain.seconds < 0.02 else 8)}
    clock = Clock(monkeypatch, slow=lambda r: 1 + 0.01 * r)
    want = measure(tiny_model(), 8, progress=clock.tick, **asked)
    answers = iter(said)
    monkeypatch.setattr(timing, "agreed", lambda model, value: next(answers))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=itertools.count(step=1000).__next__))
    slow = Clock(monkeypatch, cost=lambda nodes, depth: 0.03 * (1 + 10 * nodes))
    got = measure(tiny_model(), 8, progress=slow.tick, **asked)
    assert next(answers, None) is None
    assert got.device.startswith("2 x ")
    assert got.points == want.points


def test_what_is_agreed_on_is_the_first_process_s(monkeypatch):
    """A model that a process holds whole has nothing to agree on, whatever group the process is in."""
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", unreached)
    mine = object()
    assert agreed(tiny_model(), mine) is mine

    def broadcast(values, src):
        values[:] = [f"{src}'s"]

    monkeypatch.setattr(TreeModel, "split_over_processes", True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    assert agreed(tiny_model(), mine) == "0's"


def test_a_load_is_not_left_out_where_others_may_wait(monkeypatch, split):
    monkeypatch.setattr(timing, "agreed", lambda model, value: value)
    clock, real = Clock(monkeypatch), timing.prefill

    def prefill(model, prompts, *args, **kwargs):
        if len(prompts) > 2:
            raise InputError("out of memory")
        return real(model, prompts, *args, **kwargs)

    monkeypatch.setattr(timing, "prefill", prefill)
    with pytest.raises(InputError, match="out of memory"):
        measure(tiny_model(), 4, batches=(2, 64), rounds=3, progress=clock.tick, leave_out=unreached)


@pytest.fixture
def command(model, tmp_path):
    return "measure", "--model", model, "--heads", model / "heads", "--device", "cpu", "-o", tmp_path / "latency.json"


def test_what_measure_writes_is_what_plan_reads(command, model, made, tmp_path, steady):
    out, trace = tmp_path / "latency.json", tmp_path / "trace.npz"
    told = run(*command, "--batch", 1, "--batch", 2, "--batch", 2, "--context", 40, "--max-nodes", 16)
    for said in ("batch 1, context 40", "batch 2, context 40", "over plain", "greedy", "Roofline fitted"):
        assert said in words(told)
    assert f"Next: medusa-tree plan trace.npz --latency {out}" in words(told)
    data = json.loads(out.read_text())
    assert LatencyGrid.from_json(data).loads() == [(1, 40), (2, 40)]
    assert data["model"] == {"name": str(model), "commit": None}
    assert data["heads"] == {"name": str(model / "heads"), "commit": None}
    assert data["acceptance"] == {"rule": "greedy"}
    assert {"torch", "medusa-tree"} <= set(data["versions"])
    assert data["shape"] == load_calibration(made.with_name("tree.calibration.npz")).shape.to_json()

    save_trace(trace, load_calibration(made.with_name("tree.calibration.npz")).trace)
    planned = ("plan", trace, "--latency", out, "--max-memory", "1GB", "-o", tmp_path / "tree.json")
    run(*planned)
    points = json.loads((tmp_path / "tree.json").read_text())["operating_points"]
    assert [(p["batch"], p["context"]) for p in points] == [(1, 40), (2, 40)]
    assert "memory binds" in words(run(*planned, "--max-memory", "0.01MB", code=2))
    run("report", tmp_path / "tree.json", "--calibration", trace, "--latency", out, "-o", tmp_path / "r.html")

    out.write_text(json.dumps({**data, "shape": None}))
    assert "shape is not known" in words(run(*planned, code=2))
    out.write_text(json.dumps({**data, "shape": {**data["shape"], "layers": "two"}}))
    assert 'latency.json: field "shape"' in words(run(*planned, code=2))


def test_measure_times_real_steps(command, tmp_path, monkeypatch):
    """And keeps an earlier file under a number."""
    monkeypatch.setattr(timing, "SECONDS_A_LOAD", 0.0)
    out = tmp_path / "latency.json"
    out.write_text("mine")
    told = run(*command, "--max-nodes", 4, "--acceptance", "typical", "--json")
    assert json.loads(told.stdout) == json.loads(out.read_text())
    assert (tmp_path / "latency.1.json").read_text() == "mine"
    data = json.loads(out.read_text())
    assert data["acceptance"]["rule"] == "typical"
    room = 512 - timing.room_for(tiny_model(), 4)
    assert {(p["batch"], p["context"]) for p in data["points"]} == {(1, room)}
    assert f"At context {room}: " in words(told)
    assert "has room for no more beside a tree of 4 nodes" in words(told)


def test_measure_leaves_out_what_memory_does_not_suffice_for(command, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "SECONDS_A_LOAD", 0.0)
    real = timing.prefill

    def prefill(model, prompts, *args, **kwargs):
        if len(prompts) > 2:
            raise InputError("out of memory")
        return real(model, prompts, *args, **kwargs)

    monkeypatch.setattr(timing, "prefill", prefill)
    told = run(*command, "--max-nodes", 2, "--context", 8, "--batch", 2, "--batch", 64)
    assert "Left out: batch 64, context 8: out of memory." in words(told)
    assert {p["batch"] for p in json.loads((tmp_path / "latency.json").read_text())["points"]} == {2}


@pytest.mark.parametrize(
    ("args", "said", "loads"),
    [
        (("--context", 500), "--context 500: with a tree of 64 nodes", True),
        (("--temperature", 2.0), "--temperature needs its rule", False),
        (("-o", "/nowhere/l.json"), "does not exist", False),
    ],
)
def test_measure_refuses_before_it_measures(command, tmp_path, monkeypatch, args, said, loads):
    monkeypatch.setattr("medusa_tree.devices.measure.measure", unreached)
    if not loads:
        monkeypatch.setattr("medusa_runtime.model.MedusaModel.from_pretrained", unreached)
    assert said in words(run(*command, *args, code=2))
    assert list(tmp_path.iterdir()) == []
