"""Rank traces from elsewhere: both formats say the same, and a bad row is named."""

import io
import json
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from test_search import random_trace

from medusa_runtime import CandidateTree, InputError, Sampling, Typical
from medusa_runtime.acceptance.rules import rule_json
from medusa_tree.traces.probetrace import ProbeTrace
from medusa_tree.traces.text import Ragged, TraceText
from medusa_tree.traces.trace import RankTrace
from medusa_tree.traces.tracefile import read_trace, save_trace


def write_npz(path, trace, **changes):
    arrays = {
        "ranks": trace.ranks,
        "starts": trace.starts,
        "held_out": trace.held_out,
        "candidates": np.array(trace.candidates),
    }
    arrays |= changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def lines(trace):
    return [{"ranks": s.tolist(), "held_out": bool(h)} for s, h in zip(trace.sequences(), trace.held_out, strict=True)]


def write_lines(path, rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def test_both_formats_say_the_same(tmp_path):
    trace = random_trace(0)
    for read in (
        read_trace(write_npz(tmp_path / "t.npz", trace)),
        read_trace(write_lines(tmp_path / "t.jsonl", lines(trace))),
    ):
        assert np.array_equal(read.ranks, trace.ranks)
        assert np.array_equal(read.starts, trace.starts)
        assert np.array_equal(read.held_out, trace.held_out)
        assert read.candidates == trace.candidates


def test_without_a_split_a_quarter_is_held_out(tmp_path):
    trace = random_trace(0, sequences=40)
    read = read_trace(write_npz(tmp_path / "t.npz", trace, held_out=None, candidates=None))
    assert read.held_out.sum() == 10
    assert read.candidates == trace.ranks.max() + 1
    assert np.array_equal(read.held_out, read_trace(tmp_path / "t.npz").held_out), "drawn by the seed alone"


def test_candidates_kept_are_told_by_either_format(tmp_path):
    trace = random_trace(0)
    assert read_trace(write_npz(tmp_path / "t.npz", trace, candidates=np.array(10))).candidates == 10
    rows = [row | {"candidates": 10} for row in lines(trace)]
    assert read_trace(write_lines(tmp_path / "t.jsonl", rows)).candidates == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"starts": None}, 'array "starts" is missing: where sequences begin'),
        ({"ranks": None}, 'array "ranks" is missing'),
        ({"ranks": np.zeros((360, 3))}, 'array "ranks" is float64'),
        ({"ranks": np.zeros(360, dtype=np.int16)}, 'array "ranks" is int16 of shape'),
        ({"ranks": np.zeros((0, 3), dtype=np.int16)}, "must be whole numbers of shape"),
        ({"candidates": np.array(3)}, r"position \d+, head \d has rank 3; ranks are 0..2"),
        ({"starts": np.arange(5.0)}, 'array "starts" is float64'),
        ({"starts": np.array([0, 20, 10, 360])}, "starts must rise from 0 to 360"),
        ({"held_out": np.zeros(3, dtype=bool)}, "held_out has shape"),
        ({"held_out": np.array(["no"] * 12)}, 'array "held_out" is <U2'),
        ({"held_out": np.zeros(12, dtype=bool)}, "0 of 12 sequences are held out"),
        ({"held_out": np.ones(12, dtype=bool)}, "12 of 12 sequences are held out"),
        ({"candidates": np.array([4, 4])}, '"candidates" is .* one whole number'),
        ({"candidates": np.array(0)}, '"candidates" is .* 1 or more'),
        ({"ranks": np.full((360, 3), 70_000)}, "position 0, head 1 has rank 70000; ranks count from 0 to 32766"),
        ({"ranks": np.full((360, 3), -(2**63))}, "position 0, head 1 has rank -9223372036854775808"),
    ],
)
def test_bad_arrays_are_named(tmp_path, changes, words):
    path = write_npz(tmp_path / "t.npz", random_trace(0), **changes)
    with pytest.raises(InputError, match=words) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("at", "row", "words"),
    [
        (2, "not json", "line 3: not JSON"),
        (2, {"rank": []}, 'line 3: has no list "ranks"'),
        (2, {"ranks": [[0, 0, 0], [0, 0]], "held_out": True}, "line 3, row 1: 2 ranks where others have 3"),
        (2, {"ranks": [[0, 0, 0.5]], "held_out": True}, "line 3, row 0: .* is not a list of whole numbers"),
        (2, {"ranks": [[0, -2, 0]], "held_out": True}, "line 3, row 0: .* ranks count from 0"),
        (2, {"ranks": [[0, 0, None]], "held_out": True}, "line 3, row 0"),
        (2, {"ranks": [[0, 0, 0]]}, 'line 3: "held_out" must be'),
        (2, {"ranks": [[0, 0, 0]], "held_out": "yes"}, 'line 3: "held_out" must be'),
        (0, {"ranks": [[]], "held_out": True}, "line 1, row 0"),
        (2, {"ranks": [[0, 0, 0]], "held_out": True, "candidates": 4}, 'line 3: "candidates" is 4, before it was None'),
        (0, {"ranks": [[0, 0, 3]], "held_out": True, "candidates": 3}, "line 1, row 0: .* ranks count from 0 to 2"),
        (0, {"ranks": [[0, 0, 0]], "held_out": True, "candidates": 0}, 'line 1: "candidates" is 0'),
    ],
)
def test_bad_lines_are_named_with_their_row(tmp_path, at, row, words):
    rows = lines(random_trace(0))
    rows[at] = row
    path = write_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(InputError, match=words) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros((4, 2), dtype=np.int16))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.npz", npy(), "not a calibration or rank trace"), ("t.csv", b"1", "an .npz or a .jsonl"), ("t.npz", b"PK\x03\x04 cut", "not a calibration or rank trace"), ("t.npz", b"", "not a calibration"),
        ("t.jsonl", b"\n\n", "no sequence in it"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_trace(tmp_path / name)
    with pytest.raises(InputError, match=r"cannot be read|an \.npz or a \.jsonl"):
        read_trace(tmp_path / "none" / name)


def test_pickled_arrays_are_not_opened(tmp_path):
    np.savez(tmp_path / "t.npz", ranks=np.array([{"a": 1}], dtype=object), starts=np.array([0, 1]))
    with pytest.raises(InputError, match="not a calibration or rank trace"):
        read_trace(tmp_path / "t.npz")


def test_unsigned_ranks_without_a_miss_are_ranks(tmp_path):
    ranks = np.zeros((360, 3), dtype=np.uint8)
    read = read_trace(write_npz(tmp_path / "t.npz", random_trace(0), ranks=ranks, candidates=None))
    assert read.candidates == 1
    assert read.ranks.dtype == np.int16


def test_a_trace_survives_its_file(tmp_path):
    trace = random_trace(0)
    save_trace(tmp_path / "t.npz", trace)
    read = read_trace(tmp_path / "t.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]
    assert (read.candidates, read.lengths.tolist()) == (trace.candidates, trace.lengths.tolist())
    np.testing.assert_array_equal(read.ranks, trace.ranks)
    np.testing.assert_array_equal(read.held_out, trace.held_out)


def test_a_trace_file_keeps_the_rule_and_the_probe(tmp_path):
    """Without them a plan made of it would be one of greedy acceptance."""
    trace = replace(random_trace(0), acceptance=Sampling(0.7, top_p=0.9, seed=5))
    save_trace(tmp_path / "t.npz", trace)
    assert read_trace(tmp_path / "t.npz").acceptance == trace.acceptance
    lines = [
        json.dumps({"ranks": s.tolist(), "acceptance": rule_json(trace.acceptance)}) + "\n" for s in trace.sequences()
    ]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    assert read_trace(tmp_path / "t.jsonl").acceptance == trace.acceptance
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write(json.dumps({"ranks": trace.sequences()[0].tolist()}))
    with pytest.raises(
        InputError, match=rf'line {len(lines) + 1}: "acceptance" is None, before it was sampling .*same on every line'
    ):
        read_trace(tmp_path / "t.jsonl")

    probe = CandidateTree(((0,), (1,), (0, 0)))
    accepted = np.zeros((trace.positions, 3), dtype=np.bool_)
    accepted[::2, 0] = accepted[::4, 2] = True
    own = {f.name: getattr(trace, f.name) for f in fields(RankTrace)} | {"acceptance": Typical(0.2, 0.4)}
    save_trace(tmp_path / "p.npz", ProbeTrace(**own, accepted=accepted, probe=probe))
    read = read_trace(tmp_path / "p.npz")
    assert isinstance(read, ProbeTrace)
    assert (read.acceptance, read.probe.paths) == (Typical(0.2, 0.4), probe.paths)
    np.testing.assert_array_equal(read.accepted, accepted)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("acceptance", "{", 'array "acceptance": not JSON'),
        ("acceptance", '{"rule": "loose"}', r"'loose' is not known"),
        ("probe", "[[0, 0]]", "without its parent"),
        ("probe", "[[0]]", 'array "accepted" is not uint8'),
    ],
)
def test_what_a_trace_says_of_its_text_is_checked(tmp_path, name, text, words):
    write_npz(tmp_path / "t.npz", random_trace(0), **{name: np.array(text)})
    with pytest.raises(InputError, match=words):
        read_trace(tmp_path / "t.npz")


def with_text(trace, seed=0):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 90, n).tolist() for n in rng.integers(1, 9, len(trace.lengths))]
    outputs = [rng.integers(0, 90, n + 3).tolist() for n in trace.lengths]
    text = TraceText(Ragged.of(prompts), Ragged.of(outputs), np.arange(len(prompts)))
    kinds = np.array([f"kind {i % 3}" for i in range(len(prompts))])
    return replace(trace, text=text, categories=kinds), prompts, outputs


def test_the_text_and_its_category_stand_beside_the_ranks(tmp_path):
    trace, prompts, outputs = with_text(random_trace(0))
    save_trace(tmp_path / "t.npz", trace)
    for read in (read_trace(tmp_path / "t.npz"), RankTrace.merge([trace])):
        assert [row.tolist() for row in read.text.prompts] == prompts
        assert [row.tolist() for row in read.text.outputs] == outputs
        assert read.categories.tolist() == trace.categories.tolist()
    held = trace.split()[1]
    kept = np.flatnonzero(trace.held_out)
    assert [row.tolist() for row in held.text.outputs] == [outputs[i] for i in kept]
    assert held.text.streams.tolist() == kept.tolist()
    assert held.categories.tolist() == trace.categories[kept].tolist()
    both = RankTrace.merge([trace, held])
    assert [row.tolist() for row in both.text.prompts] == prompts + [prompts[i] for i in kept]
    assert RankTrace.merge([trace, random_trace(1)]).text is None


def test_lines_may_name_categories(tmp_path):
    trace = random_trace(0)
    rows = [{**row, "category": f"c{i % 2}"} for i, row in enumerate(lines(trace))]
    assert read_trace(write_lines(tmp_path / "t.jsonl", rows)).categories.tolist()[:3] == ["c0", "c1", "c0"]
    del rows[1]["category"]
    with pytest.raises(InputError, match='line 2: "category" must stand on every line'):
        read_trace(write_lines(tmp_path / "t.jsonl", rows))
    rows[0]["category"] = 3
    with pytest.raises(InputError, match='line 1: "category" is 3; it must be text'):
        read_trace(write_lines(tmp_path / "t.jsonl", rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_ids": None}, '"output_ids" is missing beside "prompt_ids"'),
        ({"prompt_ids": np.zeros(3)}, '"prompt_ids" is float64'),
        ({"prompt_starts": np.array([0, 5, 2])}, "starts must rise from 0"),
        ({"streams": np.arange(2)}, "2 streams for"),
        ({"category": np.arange(12)}, '"category" is int64'),
        ({"category": np.array(["a"])}, "category has shape"),
    ],
)
def test_a_text_that_is_not_the_traces_is_refused(tmp_path, changes, message):
    trace, *_ = with_text(random_trace(0))
    arrays = {**trace.text.arrays(), "category": trace.categories, **changes}
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "t.npz")) + ".*" + re.escape(message)):
        read_trace(write_npz(tmp_path / "t.npz", trace, **arrays))


def test_an_output_shorter_than_its_positions_is_refused():
    trace, _, outputs = with_text(random_trace(0))
    short = Ragged.of([outputs[0][: trace.lengths[0] - 1], *outputs[1:]])
    with pytest.raises(InputError, match="sequence 0 has"):
        replace(trace, text=replace(trace.text, outputs=short))
