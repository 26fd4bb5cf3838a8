"""TrainingModel: a backbone and its heads as one module, whose forward pass gives the loss."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from medusa_runtime.errors import InputError
from medusa_runtime.heads.heads import MedusaHeads

from .loss import IGNORE, base_loss, distillation_loss, head_losses, head_targets
from .recipe import Recipe


class TrainingModel(nn.Module):
    """What the trainer trains. Frozen weights stay out of its state dict, so that checkpoints hold what was learnt.

    Args:
        base: the backbone; adapters are put on it where the recipe says so.
        heads: the heads, started by :func:`new_heads`.

    Attributes:
        resting: the backbone sits out the present step, as the paper's first stage; the trainer's to set.
    """

    _keys_to_ignore_on_save = None  # the trainer asks when it resumes
    accepts_loss_kwargs = True  # the trainer hands over the tokens of a whole step, so that means are over all of them
    head_weights: Tensor
    rows: Tensor | None

    def __init__(self, base: PreTrainedModel, heads: MedusaHeads, recipe: Recipe) -> None:
        super().__init__()
        self.recipe, self.resting = recipe, False
        base.requires_grad_(recipe.full)
        self.teacher: PreTrainedModel | None = None
        if recipe.full and recipe.distill:
            self.teacher = copy.deepcopy(base).requires_grad_(False)
        if recipe.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        output = base.get_output_embeddings()
        if output is None:
            raise InputError(f"{type(base).__name__} has no output layer, so heads have nothing to start from")
        self.base: Any = with_adapters(base, recipe.lora_rank) if recipe.joint and recipe.lora_rank else base
        self.heads = heads.requires_grad_(True)
        self.register_buffer("head_weights", torch.tensor(recipe.head_weights()), persistent=False)
        rows = None
        if heads.token_map is not None:
            rows = torch.full((heads.vocab_size,), IGNORE, device=heads.token_map.device)
            rows[heads.token_map] = torch.arange(heads.rows, device=heads.token_map.device)
        self.register_buffer("rows", rows, persistent=False)
        output.register_forward_pre_hook(self._catch_hidden)
        self._hidden: Tensor | None = None
        self._body_is_enough = self._output_layer_reads_last_hidden_state()

    @property
    def output_layer(self) -> Any:
        """The backbone's, adapters or not."""
        return self.base.get_output_embeddings()

    def _catch_hidden(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._hidden = args[0]

    @torch.no_grad()
    def _output_layer_reads_last_hidden_state(self) -> bool:
        """Whether the backbone without its output layer gives what the heads read (some models scale it in between)."""
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=self.heads.block_weight.device)
        self.base(input_ids=tokens, use_cache=False)
        read = self._take_hidden()
        last = self.base.get_base_model() if hasattr(self.base, "get_base_model") else self.base
        return torch.allclose(last.base_model(input_ids=tokens, use_cache=False).last_hidden_state, read)

    def state_dict(self, *, prefix: str = "", **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Only what is trained, each tensor once though it may be tied."""
        state: dict[str, Any] = super().state_dict(prefix=prefix, **kwargs)
        trained = {prefix + name for name, p in self.named_parameters() if p.requires_grad}
        for name in [name for name in state if name.startswith(prefix) and name not in trained]:
            del state[name]
        return state

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor, logits: bool) -> tuple[Tensor, Tensor | None]:
        """What the output layer reads, (B, S, d), and, if asked for, the backbone's logits (B, S, V)."""
        if not logits and self._body_is_enough:
            body = self.base.get_base_model() if hasattr(self.base, "get_base_model") else self.base
            out = body.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            return out.last_hidden_state, None
        out = self.base(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return self._take_hidden(), out.logits

    def share_output(self) -> None:
        """Hand the output layer, as it now is, to heads that share it."""
        self.heads.share_output(self.output_layer.weight, getattr(self.output_layer, "bias", None))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch, (B, S) each: sums over tokens divided by ``num_items_in_batch`` (by default the labels here).

        Returns:
            loss; and detached sums for the log: head_sums and head_tokens (H,), base_sum (), tokens ().
        """
        joint = self.recipe.joint and not self.resting
        self.base.train(joint and self.training)  # a backbone that does not learn drops nothing out
        with torch.set_grad_enabled(joint and torch.is_grad_enabled()):
            hidden, logits = self.hidden_states(input_ids, attention_mask, logits=joint)
        tokens = (labels[:, 1:] != IGNORE).sum()
        items = tokens.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        targets = head_targets(labels, self.heads.num_heads).flatten(1)
        used = (targets != IGNORE).any(dim=0)
        self.share_output()
        read = hidden.flatten(0, 1)[used].to(self.heads.block_weight.dtype)
        sums = head_losses(self.heads, read, targets[:, used], self.rows)
        loss = (self.head_weights * sums).sum()
        base_sum = loss.new_zeros(())
        if logits is not None and joint:
            if self.recipe.distill:
                base_sum = distillation_loss(logits, self._teacher_logits(input_ids, attention_mask), labels)
            else:
                base_sum = base_loss(logits, labels)
            loss = loss + base_sum
        return {
            "loss": loss / items, "head_sums": sums.detach(), "head_tokens": (targets != IGNORE).sum(dim=1),
            "base_sum": base_sum.detach(), "tokens": tokens,
        }  # fmt: skip

    def _take_hidden(self) -> Tensor:
        hidden, self._hidden = self._hidden, None
        if hidden is None:
            raise InputError("the model's output layer was never called, so its hidden states cannot be read")
        return hidden

    @torch.no_grad()
    def _teacher_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The model as it was, nothing dropped out: with its adapters off, no second copy; trained in full, a frozen copy."""
        teacher = self.base if self.teacher is None else self.teacher
        learning = teacher.training
        teacher.eval()
        with teacher.disable_adapter() if self.teacher is None else nullcontext():
            logits: Tensor = teacher(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        teacher.train(learning)
        self._hidden = None
        return logits

    def trained_base(self) -> PreTrainedModel:
        """The backbone as it now is, adapters merged into it; to be called once, at the end."""
        merged: PreTrainedModel = self.base.merge_and_unload() if hasattr(self.base, "merge_and_unload") else self.base
        return merged


def with_adapters(base: PreTrainedModel, rank: int) -> Any:
    """LoRA on every linear layer of the backbone but its output layer (Hu et al., 2021; peft)."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def new_heads(base: PreTrainedModel, recipe: Recipe, token_map: Tensor | None = None) -> MedusaHeads:
    """Heads that start by repeating the model: blocks of zeros, output layers copied from its own (§2.2.1)."""
    weight = base.get_output_embeddings().weight
    vocab, hidden = weight.shape
    heads = MedusaHeads(
        hidden, vocab, recipe.heads, recipe.blocks, torch.float32, weight.device, own_output=recipe.own_output,
        token_map=None if token_map is None else token_map.to(weight.device),
    )  # fmt: skip
    heads.init_from_output_layer(weight.float())
    return heads


def check_draft_vocab(keep: int, vocab: int) -> None:
    """InputError where as many tokens are to be kept as there are, or more."""
    if keep >= vocab:
        raise InputError(f"--draft-vocab {keep}: the vocabulary has {vocab} tokens; keep fewer, or leave it out")


def frequent_tokens(rows: Sequence[Sequence[int]], vocab: int, keep: int) -> Tensor:
    """(keep,) the most frequent tokens of the training rows, in id order; ties go to the lower id.

    Raises:
        InputError: see :func:`check_draft_vocab`.
    """
    check_draft_vocab(keep, vocab)
    counts = torch.zeros(vocab, dtype=torch.int64)
    for row in rows:
        counts += torch.bincount(torch.tensor(row, dtype=torch.int64), minlength=vocab)[:vocab]
    return torch.argsort(counts, descending=True, stable=True)[:keep].sort().values
