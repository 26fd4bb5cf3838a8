"""A good file of every form that people hand us, as JSON, and how each is read and gone by."""

import copy
import json
from dataclasses import replace
from functools import cache

import numpy as np
from test_plan import calibration, modelled
from test_training import CHAT
from transformers import AutoTokenizer

from medusa_runtime.reading import read_json
from medusa_runtime.treefile import read_tree, write_tree
from medusa_tree.bundled import data_path
from medusa_tree.devices.latency import LatencyGrid
from medusa_tree.devices.roofline import Roofline
from medusa_tree.devices.shape import ModelShape
from medusa_tree.origin import calibrated
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.calibration import load_calibration, save_calibration
from medusa_tree.planning.compare import contender
from medusa_tree.planning.plan import plan
from medusa_tree.profiling.corpus import read_corpus
from medusa_tree.reports.page import how_planned, write_page
from medusa_tree.traces.tracefile import read_trace
from medusa_tree.training.data import read_rows

CONFIG = {
    "model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False,
}  # fmt: skip
MADE = {
    "model": {"name": "m"}, "heads": {"name": None}, "device": "cpu", "dtype": "float32",
    "corpus": {"name": "demo", "prompts": 3, "digest": "abc", "held_out": 0.25, "seed": 0, "max_new_tokens": 8},
}  # fmt: skip
TRACE = [{"ranks": [[0, i % 3], [-1, 1]], "held_out": i == 0, "candidates": 4} for i in range(4)]
CORPUS = [
    {"prompt": "a", "group": "g"}, {"text": "b"}, {"turns": ["c", "d"]}, {"prompt": ["e"], "group": None},
    {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "f"}]},
    {"messages": [{"role": "user", "content": "h"}]},
]  # fmt: skip
TRAINING = [
    {"text": "3 4 5 6"}, {"prompt_ids": [3, 4], "response_ids": [5, 6], "group": 7},
    {"messages": [{"role": "user", "content": "3"}, {"role": "assistant", "content": "4 5 6"}]},
    {"conversations": [{"from": "human", "value": "3"}, {"from": "gpt", "value": "4 5 6"}]},
]  # fmt: skip


@cache
def tokenizer():
    made = AutoTokenizer.from_pretrained(data_path("demo", "model"))
    made.chat_template = CHAT
    return made


@cache
def written(folder):
    """A tree.json with all that calibrate says of itself, a modelled one, and a calibration with its model's shape."""
    made, model = calibration(), modelled(bandwidth=3e12, flops=4e14)
    write_tree(folder / "tree.json", plan(replace(made, provenance=MADE), Budget(ratio=1.5, max_nodes=8)).contents)
    write_tree(folder / "modelled.json", plan(model, Budget(), [(1, 512)]).contents)
    save_calibration(folder / "c.npz", replace(made, shape=model.shape))
    arrays = dict(np.load(folder / "c.npz"))
    return {
        "tree": json.loads((folder / "tree.json").read_text()),
        "modelled": json.loads((folder / "modelled.json").read_text())["provenance"]["modelled"],
        "latency": made.latency.to_json(),
        "calibration": json.loads(str(arrays.pop("meta"))),
        "config": CONFIG, "paths": {"paths": [[0], [1], [0, 0]]}, "trace": TRACE, "corpus": CORPUS, "training": TRAINING,
    }, arrays  # fmt: skip


def read(form, path, text, arrays):
    """Write bytes as a file of this form, read it as the commands do, and go by it; something to compare."""
    path.write_bytes(text)
    if form == "tree":
        contents = read_tree(path)
        write_tree(path.with_name("again.json"), contents)
        assert read_tree(path.with_name("again.json")) == contents
        assert (contents.tree(2, 50).ancestors.any(axis=1)).all()
        how_planned(contents, str(path)), calibrated(contents, str(path))
        write_page(path.with_name("page.html"), contents, None)
        return replace(contents, provenance={})
    if form == "modelled":
        return Roofline.from_json(read_json(path), str(path))
    if form == "latency":
        grid = LatencyGrid.from_json(read_json(path), str(path))
        return plan(replace(calibration(), latency=grid), Budget()).contents.paths
    if form == "calibration":
        np.savez(path, **arrays, meta=np.array(text.decode("utf-8", "replace")))
        return plan(load_calibration(path), Budget()).contents.paths
    if form == "config":
        shape = ModelShape.from_config(read_json(path), 3, str(path))
        assert Roofline.from_json(json.loads(json.dumps(Roofline("d", shape, 1e12, 1e14).to_json()))).shape == shape
        return shape
    if form == "paths":
        return contender(str(path), (1, 100))[1].parents.tolist()
    if form == "trace":
        return read_trace(path).ranks.tolist()
    if form == "corpus":
        return read_corpus(path)
    return read_rows(path, tokenizer(), 64)


ENDING = {"calibration": ".npz", "trace": ".jsonl", "corpus": ".jsonl", "training": ".jsonl"}
ALL = ["tree", "modelled", "latency", "calibration", "config", "paths", "trace", "corpus", "training"]


def as_text(data):
    return "\n".join(map(json.dumps, data)) if isinstance(data, list) else json.dumps(data)


def spots(data, at=()):
    """Where something stands in JSON: keys and places from the top."""
    if at:
        yield at
    inner = data.items() if isinstance(data, dict) else enumerate(data[:6]) if isinstance(data, list) else ()
    for key, value in inner:
        yield from spots(value, (*at, key))


def put(data, at, value):
    """A copy of the JSON with a value somewhere."""
    changed = copy.deepcopy(data)
    here = changed
    for key in at[:-1]:
        here = here[key]
    here[at[-1]] = value
    return changed
