"""One of the processes that test_big_models starts: decodes with the model's layers split over all of them."""

import json
import sys
from pathlib import Path

import torch.distributed
from conftest import BUSHY, random_prompts, tiny_heads, tiny_model
from transformers import AutoModelForCausalLM

from medusa_runtime import MedusaHeads, MedusaModel
from medusa_runtime.processes import agreed, process_group
from medusa_tree.validation.reference import Reference


def main(folder: str, told: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype="float32")
    split = base.model.layers[0].self_attn.q_proj.weight.to_local().shape[0]
    prompts, texts = random_prompts(3, seed=31), {}
    shared = MedusaHeads(32, 48, 4, own_output=False)
    for name, heads in {"own": tiny_heads(tiny_model().base), "shared": shared}.items():
        model = MedusaModel(base, heads, name="split llama")
        texts[name] = model.generate(prompts, tree=BUSHY, max_new_tokens=16, eos_token_id=[]).tokens
    rank = torch.distributed.get_rank()
    wide = Reference(model).logits(prompts[0], 2)[1].tolist()
    answer = {"rows": split, **texts, "wide": wide, "agreed": agreed(model, f"process {rank}")}
    (Path(told) / f"rank{rank}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    with process_group():
        main(*sys.argv[1:])
