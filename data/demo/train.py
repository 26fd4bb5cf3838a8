"""The demo's backbone, a small Llama trained on the Python standard library's source, and the text for its heads.

    python data/demo/train.py -o data/demo/model --prompts data/prompts/demo.jsonl    # the backbone, from scratch
    python data/demo/train.py --text work                                             # what its heads are trained on

On whatever CPython runs it (the bundled weights: 3.11.7), in two stages: the backbone alone, then together with heads that are
dropped at the end (the joint objective of Medusa-2, arXiv 2401.10774 §2.2.2). The heads that are shipped are trained on
the finished backbone by `medusa-tree train`; README.md has the command. Files are split by a hash of their path; one in 16 is
never trained on, and gives the calibration and held-out prompts and the figures in the model card. The clock sets
the schedule (`--minutes`), so two runs differ in steps taken; the steps are recorded in the card.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import random
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medusa_runtime.heads.heads import MedusaHeads

END = "<|endoftext|>"
VOCAB, HIDDEN, LAYERS, HEADS = 3072, 320, 6, 4
DECAY = 0.8 ** torch.arange(1, HEADS + 1)  # weight of head k in the loss
# Generated tables and word lists: long, and unlike the code people write.
SKIP = (
    "site-packages/",
    "config-",
    "encodings/cp",
    "encodings/mac_",
    "encodings/iso",
    "encodings/koi",
    "pydoc_data/",
    "lib2to3/tests/data",
    "test/encoded_modules",
    "test/test_json/",
    "idlelib/Icons",
    "html/entities.py",
)


def source_files() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(training, held-out) lists of (path in the standard library, text)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    split: tuple[list, list] = ([], [])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith(SKIP) or not 500 < path.stat().st_size < 300_000:
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        held_out = hashlib.sha256(name.encode()).digest()[0] % 16 == 0
        split[held_out].append((name, text))
    return split


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of VOCAB entries."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END, model_max_length=1024)


def encode(tokenizer: PreTrainedTokenizerFast, files: list[tuple[str, str]]) -> np.ndarray:
    """All files as one stream of token ids, each ended by END; (tokens,) int64."""
    rows = tokenizer([text for _, text in files])["input_ids"]
    return np.concatenate([np.append(row, tokenizer.eos_token_id) for row in rows]).astype(np.int64)


def head_losses(heads: MedusaHeads, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(H,) cross-entropy of each head; hidden (B, S, d) and tokens (B, S): head k at s targets s+1+k."""
    _, length, width = hidden.shape
    losses = []
    usable = length - 1 - heads.num_heads
    logits = heads(hidden[:, :usable].reshape(-1, width))
    for k in range(heads.num_heads):
        target = tokens[:, 2 + k : 2 + k + usable].reshape(-1)
        losses.append(F.cross_entropy(logits[k].float(), target))
    return torch.stack(losses)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, heads: MedusaHeads, stream: np.ndarray, batches: int = 24) -> dict:
    """Held-out loss of the base and top-1 and top-5 accuracy of the base and each head, on reference text."""
    model.eval()
    loss, right1, right5, count = 0.0, np.zeros(1 + heads.num_heads), np.zeros(1 + heads.num_heads), 0
    starts = np.linspace(0, len(stream) - 513, batches * 8).astype(int)
    for i in range(batches):
        tokens = torch.stack([torch.from_numpy(stream[s : s + 512]) for s in starts[i * 8 : i * 8 + 8]])
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(tokens).last_hidden_state
            usable = hidden[:, : 511 - heads.num_heads]
            flat = usable.reshape(-1, HIDDEN)
            logits = [model.lm_head(flat), *heads(flat)]
        for k, out in enumerate(logits):
            target = tokens[:, 1 + k : 1 + k + usable.shape[1]].reshape(-1)
            if k == 0:
                loss += F.cross_entropy(out.float(), target, reduction="sum").item()
            top = out.topk(5).indices == target[:, None]
            right1[k] += top[:, 0].sum().item()
            right5[k] += top.any(1).sum().item()
        count += flat.shape[0]
    model.train()
    return {
        "held_out_loss": round(loss / count, 4),
        "base_top1": round(right1[0] / count, 4),
        "head_top1": [round(x / count, 4) for x in right1[1:]],
        "head_top5": [round(x / count, 4) for x in right5[1:]],
        "positions": count,
    }


def cut_prompts(files: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, count: int, seed: int) -> list[dict]:
    """Prompts of 32 to 128 tokens from files training did not see, at most one in every 3 kB of a file."""
    rng = random.Random(seed)
    prompts = []
    for name, text in files:
        lines = text.splitlines(keepends=True)
        for _ in range(max(1, len(text) // 3000)):
            start = rng.randrange(len(lines))
            prompt = "".join(lines[start : start + rng.randint(6, 14)])
            if 32 <= len(tokenizer(prompt)["input_ids"]) <= 128:
                prompts.append({"prompt": prompt, "source": f"Lib/{name}:{start + 1}", "group": name})
    rng.shuffle(prompts)
    return prompts[:count]


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained backbone."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=896, num_hidden_layers=LAYERS, num_attention_heads=5, num_key_value_heads=5,
        max_position_embeddings=1024, rope_theta=10000.0, tie_word_embeddings=True, initializer_range=0.02,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def batch_of(stream: np.ndarray, rng: np.random.Generator, rows: int, length: int) -> torch.Tensor:
    """(rows, length) windows at random places of the stream."""
    at = rng.integers(0, len(stream) - length - 1, rows)
    return torch.stack([torch.from_numpy(stream[s : s + length]) for s in at])


def train(model: LlamaForCausalLM, heads: MedusaHeads, stream: np.ndarray, minutes: float, log: list) -> int:
    """The backbone alone for 55% of the time, then with the heads: CE + 0.3 sum 0.8^k CE_k. Returns the steps taken."""
    rng = np.random.default_rng(0)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    groups = [{"params": rest}, {"params": heads.parameters()}]
    optimizers = [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    start = time.monotonic()
    step, shown, joint, progress = 0, 0.0, False, 0.0
    while progress < 1.0:
        progress = (time.monotonic() - start) / (60 * minutes)
        if progress > 0.55 and not joint:
            joint = True
            heads.init_from_output_layer(model.lm_head.weight)
        scale = min(1.0, (step + 1) / 100) * min(1.0, max(0.02, (1 - progress) / 0.5))
        for group in [g for o in optimizers for g in o.param_groups]:
            group["lr"] = 3e-3 * scale
        tokens = batch_of(stream, rng, *((4, 1024) if joint else (8, 512)))
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(tokens).last_hidden_state
            logits = model.lm_head(hidden[:, :-1])
            loss = base_loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
            if joint:
                per_head = head_losses(heads, hidden, tokens)
                loss = base_loss + 0.3 * (DECAY * per_head).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *heads.parameters()], 1.0)
        for opt in optimizers:
            opt.step()
            opt.zero_grad(set_to_none=True)
        step += 1
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            line = {"minutes": round((shown - start) / 60, 2), "step": step, "loss": round(base_loss.item(), 4)}
            if joint:
                line["heads"] = [round(x, 3) for x in per_head.tolist()]
            log.append(line)
            print(json.dumps(line), flush=True)
    return step


def write_text(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The training files' text, 4,000 prompts cut from them, and the middle 512 tokens of each held-out file."""
    folder.mkdir(parents=True, exist_ok=True)
    train_files, held_files = source_files()
    middles = []
    for name, text in held_files:
        ids = tokenizer(text, verbose=False)["input_ids"]
        start = max(0, min(len(ids) // 2, len(ids) - 512))
        middles.append((name, tokenizer.decode(ids[start : start + 512])))
    for name, files in (("train", train_files), ("held", middles)):
        rows = [{"text": text, "group": path} for path, text in files]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    prompts = cut_prompts(train_files, tokenizer, 6000, seed=1)[:4000]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=76)
    parser.add_argument("-o", "--out", type=Path, help="the backbone's folder")
    parser.add_argument("--prompts", type=Path, help="also write the held-out prompts here")
    parser.add_argument("--text", type=Path, help="only write the text that heads are trained on, into this folder")
    args = parser.parse_args()
    if args.text:
        write_text(args.text, PreTrainedTokenizerFast.from_pretrained(Path(__file__).parent / "model"))
        return
    if not args.out:
        parser.error("give -o FOLDER to train the backbone, or --text FOLDER")
    torch.manual_seed(0)

    train_files, held_files = source_files()
    tokenizer = train_tokenizer([text for _, text in train_files])
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(args.out)
    train_stream, held_stream = encode(tokenizer, train_files), encode(tokenizer, held_files)
    sizes = {
        "training_files": len(train_files),
        "training_tokens": len(train_stream),
        "held_out_tokens": len(held_stream),
    }
    print(json.dumps(sizes), flush=True)
    if args.prompts:
        rows = cut_prompts(held_files, tokenizer, 320, seed=0)
        args.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    model, heads, log = new_model(tokenizer), MedusaHeads(HIDDEN, VOCAB, HEADS), []
    steps = train(model, heads, train_stream, args.minutes, log)
    figures = evaluate(model, heads, held_stream)
    print(json.dumps(figures), flush=True)
    model.to(torch.bfloat16).save_pretrained(args.out)
    card = {
        "figures": figures, "perplexity": round(math.exp(figures["held_out_loss"]), 3), "steps": steps, "minutes": args.minutes,
        "training_tokens_seen": steps * 4096, **sizes, "python": platform.python_version(), "log": log,
        "parameters": sum(p.numel() for p in model.parameters()), "head_parameters": sum(p.numel() for p in heads.parameters()),
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
