"""One of the processes that test_big_models starts: decodes with the model's layers split over all of them."""

import json
import sys
from pathlib import Path

import torch.distributed
from conftest import BUSHY, random_prompts, tiny_heads, tiny_model
from transformers import AutoModelForCausalLM

from medusa_runtime import MedusaHeads, MedusaModel
from medusa_runtime.processes import process_group


def main(folder: str, told: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype="float32")
    split = base.model.layers[0].self_attn.q_proj.weight.to_local().shape[0]
    prompts, texts = random_prompts(3, seed=31), {}
    shared = MedusaHeads(32, 48, 4, own_output=False)
    for name, heads in {"own": tiny_heads(tiny_model().base), "shared": shared}.items():
        model = MedusaModel(base, heads, name="split llama")
        texts[name] = model.generate(prompts, tree=BUSHY, max_new_tokens=16, eos_token_id=[]).tokens
    (Path(told) / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps({"rows": split, **texts}))


if __name__ == "__main__":
    with process_group():
        main(*sys.argv[1:])
