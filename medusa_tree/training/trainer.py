"""HeadsTrainer: transformers' Trainer with the paper's learning rates, stages and per-head losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from medusa_runtime.errors import InputError

from .data import Row, collate
from .evaluate import score
from .model import TrainingModel
from .recipe import Recipe, cosine

Progress = Callable[[int, int], object]  # steps done, steps in all
ALONG_THE_WAY = 64  # held-out rows that are scored ten times a run, for the curves; all are before and after it


class HeadsTrainer(Trainer):
    """Trains a :class:`TrainingModel`; DDP, mixed precision, accumulation, resuming and loggers are the Trainer's."""

    optimizer: torch.optim.Optimizer | None
    lr_scheduler: LambdaLR | None

    def __init__(self, model: TrainingModel, recipe: Recipe, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.recipe = recipe
        self._sums: dict[str, torch.Tensor] = {}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW; the backbone's parameters in a group of their own, at ``backbone_rate`` of the heads' rate (§2.2.2)."""
        if self.optimizer is None:
            groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
            for name, p in self.model.named_parameters():
                if p.requires_grad:
                    groups.setdefault((name.startswith("heads."), p.ndim > 1), []).append(p)
            rate = self.recipe.learning_rate
            self.optimizer = torch.optim.AdamW(
                [
                    {
                        "params": params, "name": "heads" if heads else "backbone",
                        "lr": rate if heads else rate * self.recipe.backbone_rate,
                        "weight_decay": self.recipe.weight_decay if matrix else 0.0,
                    }
                    for (heads, matrix), params in groups.items()
                ],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
            )  # fmt: skip
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A cosine with warm-up for each group; the backbone's begins when its rest ends."""
        if self.lr_scheduler is None:
            r, optimizer = self.recipe, optimizer or self.optimizer
            rests = [r.heads_first if g["name"] == "backbone" else 0.0 for g in optimizer.param_groups]
            self.lr_scheduler = LambdaLR(optimizer, [cosine(num_training_steps, r.warmup, rest) for rest in rests])
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The model's own loss; what the heads and the backbone lost is kept for the log."""
        begin = round(self.recipe.heads_first * self.state.max_steps)
        self.accelerator.unwrap_model(model).resting = self.recipe.joint and self.state.global_step < begin
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        for name in ("head_sums", "head_tokens", "base_sum", "tokens"):
            self._sums[name] = self._sums.get(name, torch.zeros_like(outputs[name])) + outputs[name]
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Beside the loss, each head's and the backbone's own, nats a token, over all processes."""
        if "loss" in logs and self._sums:
            sums = {k: self.accelerator.reduce(v.detach().clone(), "sum") for k, v in self._sums.items()}
            self._sums = {}
            per_head = sums["head_sums"] / sums["head_tokens"].clamp(min=1)
            logs |= {f"head_{k}": round(x, 5) for k, x in enumerate(per_head.tolist(), start=1)}
            if self.recipe.joint and sums["base_sum"] > 0:
                name = "backbone_kl" if self.recipe.distill else "backbone"
                logs[name] = round(float(sums["base_sum"] / sums["tokens"].clamp(min=1)), 5)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Head accuracies and the backbone's loss on the first held-out rows, split over the processes."""
        model: TrainingModel = self.accelerator.unwrap_model(self.model)
        mine: Sequence[Row] = self.eval_dataset[self.args.process_index : ALONG_THE_WAY : self.args.world_size]
        with self.accelerator.autocast():
            scores = score(model, mine, self.args.per_device_eval_batch_size)
        scores = scores.summed(lambda x: self.accelerator.reduce(x.to(self.args.device), "sum").cpu())
        metrics = {"eval_backbone": scores.base_loss}
        for k, row in enumerate(scores.top_k().tolist(), start=1):
            metrics |= {f"eval_head_{k}_top_1": row[0], f"eval_head_{k}_top_5": row[min(4, len(row) - 1)]}
        self.log(metrics)
        return metrics


class _Tell(TrainerCallback):
    """Tells the caller how many steps are done."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)


def fit(
    model: TrainingModel,
    recipe: Recipe,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    folder: Path,
    pad: int,
    progress: Progress = lambda done, total: None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Train, from the newest whole checkpoint in ``folder`` if there is one, and return the log.

    Args:
        model: changed in place.
        folder: where checkpoints are kept while training.
        pad: token id that rows are padded with.
        settings: more of transformers' TrainingArguments (``report_to``, ``bf16``, ...).

    Raises:
        InputError: a loss that is not finite.
    """
    arguments: dict[str, Any] = {
        "output_dir": str(folder), "seed": recipe.seed, "data_seed": recipe.seed, "num_train_epochs": recipe.epochs, "max_steps": recipe.max_steps,
        "per_device_train_batch_size": recipe.batch_size, "per_device_eval_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.accumulate, "max_grad_norm": 1.0, "logging_steps": 0.01, "eval_strategy": "steps", "eval_steps": 0.1,
        "save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 2, "report_to": "none", "disable_tqdm": True, "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": torch.cuda.is_available(), "ddp_find_unused_parameters": recipe.joint, "remove_unused_columns": False,
    }  # fmt: skip
    trainer = HeadsTrainer(
        model, recipe, args=TrainingArguments(**{**arguments, **settings}), train_dataset=[row.example for row in rows], eval_dataset=held_out,
        data_collator=partial(collate, pad=pad), callbacks=[_Tell(progress)],
    )  # fmt: skip
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            trainer.remove_callback(type(callback))
    newest = newest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    log: list[dict[str, Any]] = trainer.state.log_history
    losses = [entry["loss"] for entry in log if "loss" in entry]
    if losses and not torch.isfinite(torch.tensor(losses[-1])):
        raise InputError(f"the loss became {losses[-1]}: train with a smaller --learning-rate")
    return log


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the trainer writes its state last."""
    whole = [p.parent for p in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)
