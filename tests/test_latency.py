"""Latency: curves through measured points, steps, loads between those measured, and the roofline."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import FAMILIES, tiny_base
from test_plan import grid

from medusa_runtime import InputError
from medusa_tree.bundled import data_path
from medusa_tree.devices.latency import LatencyGrid, LatencyPoint
from medusa_tree.devices.roofline import Roofline, fit_roofline, gpus, model_device, roofline_errors
from medusa_tree.devices.shape import ModelShape

SHAPE = ModelShape.from_config(json.loads((data_path("demo", "model") / "config.json").read_text()), heads=4)
LLAMA_7B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip


def test_the_curve_finds_what_a_head_costs_and_stays_exact_at_the_points():
    curve = grid().curve(1, 100)
    assert curve.per_head == pytest.approx(0.2e-3)
    assert curve.at([0, 1, 8, 12], [0, 1, 3, 2]) == pytest.approx([10e-3, 10.3e-3, 11.4e-3, 11.6e-3])


def test_more_nodes_are_never_taken_to_be_faster():
    noisy = np.random.default_rng(0)
    curve = grid(cost=lambda n, d: 1e-3 * (10 + 0.01 * n + noisy.normal(0, 0.5))).curve(1, 100)
    assert (np.diff(curve.at(np.arange(1, 33), 1)) >= -1e-12).all()


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(0, 0, float("nan"))], "is no latency"),
        ([(0, 0, 1.0), (1, 1, -1.0)], "is no latency"),
        ([(1, 1, 1.0)], "needs plain decoding"),
        ([(0, 0, 1.0)], "at least one tree"),
        ([(0, 0, 1.0), (1, 1, 1.0), (1, 1, 2.0)], r"\(1, 1, 1, 1\) stands twice"),
    ],
)
def test_bad_grids_are_named(points, words):
    with pytest.raises(InputError, match=words):
        LatencyGrid(tuple(LatencyPoint(n, d, 1, 1, t, t, t) for n, d, t in points), "x", "y")


def staircase(n, d):
    """A kernel that works in tiles of 16 rows, and a little that rises with every node."""
    return 1e-3 * (10 + 4 * ((n + 16) // 16) + 0.01 * n + 0.2 * d)


def test_between_sizes_a_step_is_not_smoothed_away():
    sizes = (1, 4, 8, 12, 15, 16, 20, 24, 31, 32, 40, 48)
    curve = grid(cost=staircase, sizes=sizes).curve(1, 100)
    assert curve.nodes[1:][curve.steps].tolist() == [16, 32, 48]  # each found between the sizes around it
    for n in sizes:
        assert curve.at(n, 1) == pytest.approx(staircase(n, 1))
    between = np.array([2, 10, 18, 28, 36])
    assert curve.at(between, 1) == pytest.approx(staircase(between, 1))
    assert (curve.at(np.arange(41, 48), 1) == curve.at(48, 1)).all(), (
        "the tile may be full: no size inside is taken as cheap"
    )


def test_a_smooth_rise_is_no_step():
    curve = grid(cost=lambda n, d: 1e-3 * (10 + 0.5 * n)).curve(1, 100)
    assert not curve.steps.any()


def test_between_measured_loads_latency_is_linear_and_beyond_them_refused():
    loads = [(b, c) for b in (1, 4) for c in (100, 300)]
    points = []
    for b, c in loads:
        points.append(LatencyPoint(0, 0, b, c, *[10 + b + c / 100] * 3))
        points += [LatencyPoint(n, 1, b, c, *[11 + b * (1 + n / 10) + c / 100] * 3) for n in (1, 8, 16)]
    made = LatencyGrid(tuple(points), "d", "float32")
    assert made.curve(2, 200).plain.seconds == pytest.approx(14)
    assert made.curve(2, 200).at([1, 8, 12], 1) == pytest.approx([11 + 2 * (1 + n / 10) + 2 for n in (1, 8, 12)])
    for load in ((8, 100), (1, 50), (1, 301)):
        with pytest.raises(InputError, match=f"batch {load[0]} at context {load[1]} was not measured"):
            made.curve(*load)


def test_a_grid_survives_json_and_a_file_from_elsewhere_may_leave_quartiles_out():
    made = grid()
    assert LatencyGrid.from_json(json.loads(json.dumps(made.to_json()))) == made
    bare = {
        "points": [{"nodes": n, "depth": min(n, 1), "batch": 1, "context": 9, "seconds": 1.0 + n} for n in (0, 1, 2)]
    }
    assert LatencyGrid.from_json(bare).curve(1, 9).at(2, 1) == pytest.approx(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("points"), 'no list "points"'),
        (lambda d: d["points"].clear(), "no points"),
        (lambda d: d["points"][2].pop("seconds"), 'point 2: field "seconds" is None'),
        (lambda d: d["points"][1].update(nodes=1.5), 'point 1: field "nodes" is 1.5, not a whole number'),
        (lambda d: d["points"][1].update(batch=True), 'point 1: field "batch"'),
        (lambda d: d["points"][1].update(seconds=float("nan")), "nan is no latency"),
        (lambda d: d["points"][1].update(low=float("inf")), "inf is no latency"),
        (lambda d: d["points"][1].update(low=1.0), "quartiles 1.0 and .* are not around the median"),
        (lambda d: d["points"][1].update(depth=9), "no such step"),
        (lambda d: d["points"].__setitem__(0, 3), "point 0 is not an object"),
    ],
)
def test_bad_latency_files_are_named(change, words):
    data = grid().to_json()
    change(data)
    with pytest.raises(InputError, match=words) as caught:
        LatencyGrid.from_json(data, "file.json")
    assert str(caught.value).startswith("file.json: ")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_tells_what_counting_the_weights_tells(family):
    """Up to biases and norms, which a config does not list one by one."""
    model = tiny_base(family)
    told = ModelShape.from_config(model.config.to_dict(), heads=1)
    output = model.get_output_embeddings().weight
    counted = sum(
        p.numel() for p in model.parameters() if p is not output and p is not model.get_input_embeddings().weight
    )
    small = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 1)
    assert told.layer_params == counted - small
    assert told.output_params == output.numel()
    table = model.get_input_embeddings().weight
    assert told.input_params == (0 if table is output else table.numel())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, r'c\.json: field "num_hidden_layers" is missing'),
        ([[0], [1]], r"c\.json: holds no object"),
        ({"text_config": None}, r'field "num_hidden_layers" is missing'),
        ({**LLAMA_7B, "kv_lora_rank": 512}, r'field "kv_lora_rank" is of a layer'),
        ({**LLAMA_7B, "intermediate_size": [1, 2]}, r'field "intermediate_size" is one a layer'),
    ],
)
def test_a_config_that_cannot_be_sized_is_named(config, words):
    with pytest.raises(InputError, match=words):
        ModelShape.from_config(config, 4, where="c.json")


def test_a_table_of_input_tokens_is_held_where_it_is_not_the_output_layer():
    tied, own = (ModelShape.from_config({**LLAMA_7B, "tie_word_embeddings": tied}, heads=0) for tied in (True, False))
    assert own.parameters - tied.parameters == 32000 * 4096
    assert Roofline("d", own, 1e12, 1e14).seconds(0, 0, 1, 1) == Roofline("d", tied, 1e12, 1e14).seconds(0, 0, 1, 1)


def test_the_roofline_of_a_7b_model_is_its_bytes_over_bandwidth():
    """At batch 1 an H100 reads 6.6 billion bf16 weights, but for the input table, and the KV cache: by hand."""
    shape = ModelShape.from_config(LLAMA_7B, heads=4)
    roofline = model_device("h100-sxm", shape, achieved=1.0)
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    read = 2 * (layers + 32000 * 4096) + 2 * 2 * 32 * 4096 * 2049 + 4 * 32000
    assert roofline.seconds(0, 0, 1, 2048) == pytest.approx(read / 3350e9)
    head = 2 * (4096**2 + 4096 * 32000) + 4 * 32000
    assert roofline.curve(1, 2048).per_head == pytest.approx(head / 3350e9)
    curve = roofline.curve(1, 2048)
    assert curve.at(64, 0) < 1.05 * curve.plain.seconds, "64 nodes are nearly free at batch 1"
    at_64 = roofline.curve(64, 2048)
    assert at_64.at(64, 0) > 1.9 * at_64.plain.seconds, "at batch 64 they are bound by arithmetic"


def test_quantised_weights_and_cache_are_read_faster():
    shape = ModelShape.from_config(LLAMA_7B, heads=4)
    slow, fast = (
        model_device("a100-sxm-80gb", shape, dtype=d).curve(1, 128).plain.seconds for d in ("bfloat16", "int4")
    )
    assert 3.5 < slow / fast < 4
    kv = [model_device("a100-sxm-80gb", shape, kv_dtype=d).curve(32, 8192).plain.seconds for d in ("bfloat16", "fp8")]
    assert kv[0] > 1.6 * kv[1]


def test_experts_are_read_as_tokens_choose_them():
    config = {**LLAMA_7B, "num_local_experts": 8, "num_experts_per_tok": 2}
    shape = ModelShape.from_config(config, heads=2)
    assert shape.expert_params == 32 * 8 * 3 * 4096 * 11008
    assert shape.expert_share([1, 1000]) == pytest.approx([0.25, 1.0])
    roofline = Roofline("d", shape, bandwidth=1e12, flops=1e15)
    assert roofline.seconds(8, 0, 1, 1) > 2 * roofline.seconds(0, 0, 1, 1)


TRUE = Roofline("d", SHAPE, 80e9, 1e12, overhead=2e-3, per_head_overhead=1e-4, dtype="float32", kv_dtype="float32")


def made_by(true, batches, contexts):
    points = [
        LatencyPoint(n, d, batch, context, *[float(true.seconds(n, d, batch, context))] * 3)
        for batch in batches
        for context in contexts
        for n in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
        for d in sorted({min(n, 1), min(n, 4)})
    ]
    return LatencyGrid(tuple(points), "d", "float32")


def test_a_fit_finds_the_roofline_that_made_the_grid():
    made = made_by(TRUE, (1, 8), (200, 4000))
    found = fit_roofline(made, SHAPE)
    assert np.abs(roofline_errors(found, made)).max() < 0.01
    assert found.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.1)
    assert found.flops == pytest.approx(TRUE.flops, rel=0.1)
    assert found.overhead == pytest.approx(TRUE.overhead, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_what_one_load_cannot_tell_from_reading_weights_is_not_called_launches(seed):
    """Of a 7B model, with 1% of noise: else next to all of a step could be, and would be put on another GPU."""
    rng, shape = np.random.default_rng(seed), ModelShape.from_config(LLAMA_7B, heads=4)
    true = replace(model_device("a100-sxm-80gb", shape), overhead=1e-3, per_head_overhead=2e-5)

    def found(contexts):
        points = [p for p in made_by(true, (1,), contexts).points if p.nodes <= 64]
        noisy = [replace(p, seconds=t, low=t, high=t) for p in points for t in [p.seconds * rng.normal(1, 0.01)]]
        return fit_roofline(LatencyGrid(tuple(noisy), "d", "bfloat16"), shape).overhead

    assert found((200,)) < 1.2e-3
    assert found((512, 8192)) == pytest.approx(1e-3, rel=0.35)


def test_every_gpu_has_its_figures_and_their_sources():
    sheets = json.loads(data_path("gpus.json").read_text())["devices"]
    assert {"a100-sxm-80gb", "h100-sxm", "h200-sxm", "l40s", "rtx-4090", "b200", "mi300x"} <= set(gpus())
    for sheet in sheets.values():
        assert all("http" in sheet["source"][k] for k in ("bandwidth", "bf16"))
    for device in gpus().values():
        assert 1e10 < device.memory < 1e12
        assert 100 < device.flops / device.bandwidth < 500, "operations a byte"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "h1000"}, "not known; devices: a100"),
        ({"dtype": "int3"}, "--weight-dtype 'int3'"),
        ({"kv_dtype": "nvfp4"}, "--kv-dtype"),
        ({"achieved": 1.2}, "--achieved 1.2"),
    ],
)
def test_what_cannot_be_modelled_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        model_device(**{"name": "h100-sxm", "shape": SHAPE, **change})
