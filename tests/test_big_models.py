"""Models too large for one device: layers placed by a device_map, or split by tensor parallelism."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BUSHY, random_prompts, tiny_base, tiny_heads, tiny_model
from transformers import AutoModelForCausalLM

from medusa_runtime import InputError, MedusaHeads, MedusaModel
from medusa_tree.validation.reference import Reference

PLACES = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("llama")
    tiny_base("llama").save_pretrained(where)
    return where


@pytest.mark.parametrize("output", ["cpu", "disk"])
def test_a_device_map_decodes_the_same(folder, tmp_path, output):
    """A layer, and the output layer, that are brought in from disk when they are used, as from another device."""
    pytest.importorskip("accelerate")
    places = {**PLACES, "model.layers.1": "disk", "lm_head": output}
    base = AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=tmp_path, dtype=torch.float32)
    assert next(base.model.layers[1].parameters()).is_meta
    model, prompts = MedusaModel(base, tiny_heads(tiny_base("llama"))), random_prompts(3, seed=30)
    want = tiny_model().generate(prompts, tree=BUSHY, max_new_tokens=20)
    assert model.generate(prompts, tree=BUSHY, max_new_tokens=20) == want
    if output == "disk":
        with pytest.raises(InputError, match="share the output layer of tiny, which its device_map has offloaded"):
            MedusaModel(base, MedusaHeads(32, 48, 2, own_output=False), name="tiny")


def test_tensor_parallel_decodes_the_same(folder, tmp_path):
    """Two processes, half of every layer each, as torchrun starts them; heads with outputs of their own and shared."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["tensor_parallel.py", str(folder), str(tmp_path)]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=300)
    files = [tmp_path / f"rank{rank}.json" for rank in range(2)]
    assert done.returncode == 0, done.stderr[-6000:]
    told = [json.loads(f.read_text()) for f in files]
    prompts = random_prompts(3, seed=31)
    whole = tiny_model()
    want, wide = whole.generate(prompts, max_new_tokens=16).tokens, Reference(whole).logits(prompts[0], 2)[1]
    for t in told:
        assert t["rows"] == 16  # of 32
        assert t["own"] == t["shared"] == want
        assert t["agreed"] == "process 0"
        torch.testing.assert_close(torch.tensor(t["wide"], dtype=torch.float64), wide)
