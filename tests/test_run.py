"""The profiling job: shards that survive being killed, whoever makes them; batches by memory; conversations turn by turn."""

import os
import random
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_prompts, tiny_base, tiny_heads, tiny_model

from medusa_runtime import InputError, MedusaModel, Sampling, Typical
from medusa_runtime.acceptance.rules import GREEDY
from medusa_runtime.errors import OutOfMemory
from medusa_runtime.graph import stepper
from medusa_tree.profiling import memory, run, shards
from medusa_tree.profiling.corpus import Prompt
from medusa_tree.profiling.job import Profiling
from medusa_tree.profiling.memory import batches, rows_at_once, tokens_at_once
from medusa_tree.profiling.run import Job, profile_run
from medusa_tree.profiling.shards import collect, read_run
from medusa_tree.profiling.texts import decode_texts
from medusa_tree.profiling.tokens import Fitted
from medusa_tree.traces.tracefile import trace_arrays


def ending_model():
    """A model that ends some of its texts early."""
    model = tiny_model()
    model.base.generation_config.eos_token_id = 7
    return model


def same(a, b):
    one, two = trace_arrays(a), trace_arrays(b)
    assert one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name]), name
    assert (a.candidates, a.acceptance) == (b.candidates, b.acceptance)


def job_on(model, prompts, rule=GREEDY, new=24, tokens=400, **how):
    asked = [Prompt(" ".join(map(str, row)), f"g{i}") for i, row in enumerate(prompts)]
    held = np.arange(len(prompts)) % 3 == 0
    profiling = Profiling(("prompts",), max_new_tokens=new, rule=rule, tokens=tokens)
    return Job(model, Fitted(asked, prompts, 400, 0, None), held, profiling, ("tiny", "heads"), **how)


@pytest.mark.parametrize("rule", [GREEDY, Sampling(1.3, top_k=20, seed=5)], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_texts_are_those_of_generate_whatever_makes_room_for_what(rows, rule):
    model, prompts = ending_model(), random_prompts(24, seed=3)
    wanted = model.generate(prompts, max_new_tokens=40, rule=rule, streams=range(100, 124)).tokens
    assert min(map(len, wanted)) < 20
    assert max(map(len, wanted)) == 40
    found = {}
    for ended in decode_texts(model, prompts, 40, rows, rule, range(100, 124)):
        for text in ended:
            assert text.number not in found
            assert len(text.hidden) == len(text.tokens)
            found[text.number] = text.tokens
    assert [found[i] for i in range(24)] == wanted


def test_a_long_text_does_not_hold_idle_rows(monkeypatch):
    model, prompts = ending_model(), random_prompts(40, seed=3)
    widths = []

    def counted(model, state, *args):
        made = stepper(model, state, *args)

        def one():
            widths.append(len(state.root))
            return made()

        return one

    monkeypatch.setattr("medusa_tree.profiling.texts.stepper", counted)
    lengths = [len(t.tokens) for ended in decode_texts(model, prompts, 200, 8, GREEDY, range(40)) for t in ended]
    assert sum(lengths) < 40 * 200 / 2, "texts of equal length show nothing"
    assert max(widths) == 8
    assert widths[-1] <= 4
    assert sum(widths) < 1.5 * sum(lengths), "more rows were idle than the looks between steps explain"


def test_batches_follow_memory_and_nothing_else():
    lengths = [5, 90, 17, 17, 60, 3, 44, 2]
    parts = batches(lengths, 10, 200)
    assert parts == [[1, 4], [6, 2, 3], [0, 5, 7]]
    assert [max(lengths[i] for i in part) for part in parts] == sorted([90, 44, 5], reverse=True)
    for part in parts:
        assert len(part) * (lengths[part[0]] + 10) <= 200 or len(part) == 1
    assert batches(lengths, 10, 1) == [[i] for i in (1, 4, 6, 2, 3, 0, 5, 7)]
    assert batches(lengths, 1000, 2200) == [[1, 4, 6, 2, 3, 0, 5, 7]], "long texts: several batches in a shard"
    assert rows_at_once(1000, 3000) == 1
    assert rows_at_once(10**9, 10) == memory.ROWS


def test_memory_is_counted_in_keys_values_and_states(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    cached = 2 * 2 * 2 * 8 * 4  # layers, keys and values, their heads, width, bytes
    assert tokens_at_once(model) == int(0.6 * 10**6 / (cached + 32 * 4))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert tokens_at_once(model) == int(0.6 * 10**6 / (cached + 32 * 4) / 4)


def test_a_container_s_bound_counts(tmp_path, monkeypatch):
    whole = memory.free_bytes(torch.device("cpu"))
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 700\n")
    assert memory.free_bytes(torch.device("cpu")) == 3700
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(torch.device("cpu")) > whole / 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A job, and the trace of a run that nobody disturbed."""
    job = job_on(ending_model(), random_prompts(40, seed=5))
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    begin = time.monotonic()
    profile_run(job, folder)
    seconds = time.monotonic() - begin
    assert read_run(folder).shards["ranks"] >= 5
    return job, collect(folder), seconds


def test_a_run_is_the_profile_of_the_same_prompts(undisturbed):
    from medusa_tree.profiling.profile import profile

    job, trace, _ = undisturbed
    at_once = profile(job.model, job.prompts.rows, job.held_out, 24)
    same(trace, at_once)
    assert [row.tolist() for row in trace.text.prompts] == job.prompts.rows
    texts = job.model.generate(job.prompts.rows, max_new_tokens=24 + 4).tokens
    assert [row.tolist() for row in trace.text.outputs] == texts


def test_killed_thirty_times_at_random_it_gives_the_trace_of_an_undisturbed_run(undisturbed, tmp_path):
    job, wanted, seconds = undisturbed
    rng, folder, killed, rounds = random.Random(11), tmp_path / "run", 0, 0
    while killed < 30:
        rounds += 1
        assert rounds < 200, f"only {killed} of {rounds} runs were killed before they ended"
        child = os.fork()
        if child == 0:
            try:
                profile_run(job, folder)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, seconds / 2))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if len(list(folder.glob("ranks-*.npz"))) == 0:
            continue
        if rng.random() < 0.15 and folder.exists():  # it is nearly done: begin another
            again = folder.with_name(f"run{rounds}")
            profile_run(job, folder)
            same(collect(folder), wanted)
            folder = again
    profile_run(job, folder)
    same(collect(folder), wanted)
    left = list(folder.glob(".*.tmp"))
    for path in left:
        os.utime(path, (0, 0))  # long ago, so that nobody is writing there
    profile_run(job, folder)
    assert not list(folder.glob(".*.tmp"))


def test_what_is_there_is_not_made_again(undisturbed, tmp_path, monkeypatch):
    job, wanted, _ = undisturbed
    profile_run(job, tmp_path / "run")
    (tmp_path / "run" / "ranks-00002.npz").unlink()
    with pytest.raises(InputError, match=r"is not complete: \d+ of \d+ batches are there; go on with it .* --partial"):
        collect(tmp_path / "run")
    assert 0 < len(collect(tmp_path / "run", partial=True).lengths) < 40
    made, profile = [], run.profile

    def counted(model, rows, *args, **kwargs):
        made.append(len(rows))
        return profile(model, rows, *args, **kwargs)

    monkeypatch.setattr(run, "profile", counted)
    profile_run(job, tmp_path / "run")
    assert len(made) == 1
    same(collect(tmp_path / "run"), wanted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_new_tokens": 25}, "--max-new-tokens 24, not 25"),
        ({"candidates": 9}, "--candidates 10, not 9"),
        ({"rule": Sampling(seed=0)}, "--acceptance greedy, not sampling"),
        ({"seed": 3}, "--seed 0, not 3"),
    ],
)
def test_other_settings_are_refused_by_name(undisturbed, tmp_path, change, said):
    job, *_ = undisturbed
    profile_run(job, tmp_path / "run")
    with pytest.raises(InputError, match=f"run: was begun with {said}"):
        profile_run(replace(job, profiling=replace(job.profiling, **change)), tmp_path / "run")


def test_other_prompts_heads_or_weights_are_refused(undisturbed, tmp_path):
    job, *_ = undisturbed
    profile_run(job, tmp_path / "run")
    fewer = replace(job.prompts, rows=job.prompts.rows[:-1], prompts=job.prompts.prompts[:-1])
    with pytest.raises(InputError, match="was begun with other prompts"):
        profile_run(replace(job, prompts=fewer, held_out=job.held_out[:-1]), tmp_path / "run")
    base = tiny_base("llama")
    other = MedusaModel(base, tiny_heads(base, seed=9), name="other")
    with pytest.raises(InputError, match="was begun with other heads"):
        profile_run(replace(job, model=other), tmp_path / "run")
    base = tiny_base("llama", seed=3)
    another = MedusaModel(base, tiny_heads(base), name="another")
    with pytest.raises(InputError, match="was begun with another model"):
        profile_run(replace(job, model=another), tmp_path / "run")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"format": "medusa-tree run", "version": 7}')
    with pytest.raises(InputError, match=r"run.json.*version"):
        read_run(tmp_path)
    with pytest.raises(InputError, match=r"holds no run\.json"):
        collect(tmp_path / "elsewhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(InputError, match="is there already and is no run"):
        shards.check_folder(tmp_path / "full")
    shards.check_folder(tmp_path / "new" / "run")


@pytest.mark.parametrize("dies", [0, 1, 2])
def test_who_is_left_does_the_work_of_who_died(undisturbed, tmp_path, dies):
    job, wanted, _ = undisturbed
    left = [r for r in range(3) if r != dies]
    profile_run(replace(job, process=(left[0], 3)), tmp_path / "run")
    same(collect(tmp_path / "run"), wanted)
    profile_run(replace(job, process=(left[1], 3)), tmp_path / "run")
    same(collect(tmp_path / "run"), wanted)


def test_shares_are_begun_at_the_front_and_others_taken_from_their_end(tmp_path):
    order = []
    (tmp_path / "r").mkdir()

    def save(path, n):
        order.append(n)
        path.touch()

    shards.complete(tmp_path / "r", "s", lambda n: n, save, range(8), (1, 2))
    assert order == [1, 3, 5, 7, 6, 4, 2, 0]


def test_out_of_memory_halves_the_batch_and_says_so(undisturbed, tmp_path, monkeypatch):
    job, wanted, _ = undisturbed
    tried, profile, told = [], run.profile, []

    def tight(model, rows, held, new, candidates, side_by_side, *args):
        tried.append(side_by_side)
        if side_by_side > 2:
            raise OutOfMemory("out of memory: a batch")
        return profile(model, rows, held, new, candidates, side_by_side, *args)

    monkeypatch.setattr(run, "profile", tight)
    with pytest.warns(UserWarning, match="out of memory: a batch. Going on with 2 sequences at a time instead of"):
        profile_run(job, tmp_path / "run", lambda stage, done, total: told.append((done, total)))
    same(collect(tmp_path / "run"), wanted)
    assert set(tried[-3:]) <= {1, 2}, "it must not try again what failed"
    assert told[-1] == (40, 40)
    monkeypatch.setattr(run, "profile", lambda *args: (_ for _ in ()).throw(OutOfMemory("out of memory: one")))
    with pytest.warns(UserWarning, match="with 1 seq"), pytest.raises(OutOfMemory, match="out of memory: one"):
        profile_run(job, tmp_path / "other")


def test_a_typical_run_is_killed_and_goes_on(tmp_path, monkeypatch):
    job = job_on(tiny_model(), random_prompts(20, seed=6), Typical(), new=16, tokens=300)
    profile_run(job, tmp_path / "whole")
    wanted = collect(tmp_path / "whole")
    probe = run.probe_texts

    def dies(*args, **kwargs):
        if len(list((tmp_path / "run").glob("probe-*.npz"))) == 1:
            raise KeyboardInterrupt
        return probe(*args, **kwargs)

    monkeypatch.setattr(run, "probe_texts", dies)
    with pytest.raises(KeyboardInterrupt):
        profile_run(job, tmp_path / "run")
    monkeypatch.setattr(run, "probe_texts", probe)
    profile_run(job, tmp_path / "run")
    found = collect(tmp_path / "run")
    same(found, wanted)
    assert found.probe.paths == wanted.probe.paths
    assert np.array_equal(found.accepted, wanted.accepted)
    assert found.text.streams.tolist() == list(range(20))
