"""TreeModel: a Hugging Face causal LM with its Medusa heads, run over the tokens of a tree in one pass."""

from __future__ import annotations

from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import attention
from .attention import TREE_ATTENTION, AttentionContext
from .cache.cache import TreeCache
from .errors import InputError
from .heads.heads import MedusaHeads

COMPILED = 64  # shapes of a pass
SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}


class TreeModel(nn.Module):
    """A causal LM run with tree attention, and the heads that guess ahead of it.

    Args:
        base: any transformers causal LM whose attention goes through the attention interface.
        heads: Medusa heads for it, or None for plain decoding only.
        tokenizer: its tokenizer, or None.
        name, heads_name: where they came from, for reports.
        commit, heads_commit: of the Hub repositories that they came from, by default the model's as transformers noted it;
            None where it was a folder.

    Raises:
        InputError: the model has an attention of its own or layers of other kinds, or the heads do not fit it.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        heads: MedusaHeads | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        name: str = "model",
        heads_name: str = "heads",
        commit: str | None = None,
        heads_commit: str | None = None,
    ) -> None:
        super().__init__()
        check_architecture(base, name)
        output = base.get_output_embeddings()
        self.heads: MedusaHeads | None = None
        if heads is not None:
            weight, bias = _whole(output.weight), _whole(getattr(output, "bias", None))
            _check_fit(heads, weight, name, heads_name)
            away = weight.device.type == "meta"  # kept on disk or in host memory until it is used
            if away and heads.output_weight is None:
                raise InputError(
                    f"{heads_name}: the heads share the output layer of {name}, which its device_map has offloaded; keep "
                    "the output layer on a device"
                )
            self.heads = heads.to(base.device if away else weight.device, base.dtype).eval()
            self.heads.share_output(weight, bias)
        attention.register()
        base.set_attn_implementation(TREE_ATTENTION)
        self.base = base.eval().requires_grad_(False)
        self.tokenizer: Any = tokenizer
        self.name, self.heads_name = name, heads_name
        self.commit: str | None = commit or getattr(base.config, "_commit_hash", None)
        self.heads_commit = heads_commit
        self.rope_switch = _rope_switch(base)  # tokens, behind which all of RoPE's frequencies are others; or None
        # The heads read what the output layer reads; catching it there holds for every architecture.
        self.catching = output.register_forward_pre_hook(self._catch_hidden)
        self._hidden: Tensor | None = None
        self._own: Tensor | None = None  # (B, n) the columns of each sequence that logits are wanted of
        self.turn = RLock()  # held for a pass, and for a step: what a pass leaves here is one request's at a time
        self.triton = attention.triton_serves(self.device)
        self.graphs = self.device.type == "cuda" and self._in_one_place()
        self.workspace: object | None = None  # what :mod:`medusa_runtime.graph` keeps from one request to the next
        self._tree_pass = self._pass

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which get a turn and a workspace of their own."""
        return {**self.__dict__, "turn": None, "workspace": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.turn = RLock()

    def _catch_hidden(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Keep what the output layer reads; where each sequence has columns of its own, let it read those alone."""
        hidden = self._hidden = args[0]
        if self._own is None:
            return None
        at = self._own.to(hidden.device)
        return hidden[torch.arange(len(at), device=at.device)[:, None], at], *args[1:]

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def dtype_name(self) -> str:
        """ "float32", "bfloat16", ..., as tree.json and ``--dtype`` have it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def medusa_heads(self) -> MedusaHeads:
        """The heads; an InputError where the model was loaded without."""
        if self.heads is None:
            raise InputError(f"{self.name} was loaded without Medusa heads; name them with --heads")
        return self.heads

    @property
    def num_heads(self) -> int:
        return 0 if self.heads is None else self.heads.num_heads

    @property
    def max_context(self) -> int | None:
        """Longest sequence the model's config allows, or None where it names none."""
        return getattr(self.base.config.get_text_config(), "max_position_embeddings", None)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table, padding included; a tokenizer may know fewer tokens, or have been given more."""
        return int(self.base.config.get_text_config().vocab_size)

    def positions(self, ceiling: int) -> int | None:
        """How many positions passes may use where no text grows longer than ``ceiling``: a text that stays before the RoPE's
        switch has those before it, and any other all that there are; None for no bound."""
        return self.rope_switch if self.rope_switch is not None and ceiling <= self.rope_switch else self.max_context

    @property
    def split_over_processes(self) -> bool:
        """Whether several processes hold a share of some weight each (tensor parallel), so that all must take the same steps."""
        return any(hasattr(w, "full_tensor") for w in self.base.parameters())

    def _in_one_place(self) -> bool:
        """Whether one device holds all weights whole: neither spread over devices, nor offloaded, nor split over processes."""
        return len({w.device for w in self.base.parameters()}) == 1 and not self.split_over_processes

    def compile(self, **kwargs: Any) -> None:
        """Compile the pass over a tree with ``torch.compile``, once for each batch size and number of nodes; prompts are
        not compiled. On a GPU compiled passes are captured in CUDA graphs like others. What it costs and gains:
        docs/runtime.md.

        Args:
            kwargs: for ``torch.compile``, such as ``mode``; shapes are static unless said otherwise.
        """
        if self.triton:  # first imports cannot be traced
            from .attention import triton_tree  # noqa: F401
            from .cache import kv_rows  # noqa: F401
        # A shape is a version of its own, and a tree for each load soon makes more than the compiler's usual few.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED)
        self._tree_pass = torch.compile(self._pass, **{"dynamic": False, **kwargs})
        self.workspace = None

    @property
    def fixed(self) -> bool:
        """Whether a step must not depend on what the host knows: where it is captured or compiled."""
        return self.graphs or self._tree_pass != self._pass

    def new_cache(self, batch: int, capacity: int, static: bool = False, passing: bool = False) -> TreeCache:
        """An empty KV cache of ``capacity`` slots for each of ``batch`` sequences; a ``passing`` one keeps nothing, for one pass."""
        layers = self.base.config.get_text_config().num_hidden_layers
        return TreeCache(layers, capacity, batch, self.device, static, self.fixed, self.triton, passing)

    def forward(
        self, tokens: Tensor, cache: TreeCache, context: AttentionContext, keep: Tensor | int = 0
    ) -> tuple[Tensor, Tensor]:
        """One pass over new tokens, whose keys and values go into the cache behind the accepted ones.

        Args:
            tokens: (B, Q) int64, a tree's or, right-padded, prompts.
            context: of the cache's slots, and what each token may look at.
            keep: columns to compute logits for, an index tensor; 0 for all. (B, n): n of each sequence's own; hidden states are
                then of all columns.

        Returns:
            hidden (B, kept, d), at what the output layer reads; logits (B, kept, V).
        """
        lengths = context.slots.lengths[:, None]
        if context.tree is None:
            run, positions = self._pass, lengths + torch.arange(tokens.shape[1], device=tokens.device)
        else:
            run, positions = self._tree_pass, lengths + context.tree.depths
            if (room := self.positions(context.slots.ceiling)) is not None:
                # No text reaches the nodes beyond: no position is used that does not exist.
                positions = positions.clamp(max=room - 1)
        with self.turn:
            if isinstance(keep, Tensor) and keep.ndim == 2:
                self._own, keep = keep, 0
            try:
                return run(tokens, positions, cache, context, keep)
            finally:
                self._own = None

    def _pass(
        self, tokens: Tensor, positions: Tensor, cache: TreeCache, context: AttentionContext, keep: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        out = self.base(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
            tree_context=context,
        )
        hidden, self._hidden = self._hidden, None
        if hidden is None:
            raise InputError(
                f"{self.name}: the model's output layer was never called, so its hidden states cannot be read"
            )
        if self.heads is not None:  # layers may be spread over devices
            hidden = hidden.to(self.heads.block_weight.device)
        return hidden, out.logits.to(tokens.device)


def check_architecture(base: PreTrainedModel, name: str) -> None:
    """InputError where tree attention cannot reach all layers of a model."""
    if not getattr(base, "_supports_attention_backend", False):
        raise InputError(
            f"{name}: {type(base).__name__} does not route its attention through transformers' attention interface, "
            "so tree attention cannot reach it; use a model that does (Llama, Mistral, Qwen, Gemma, GPT-NeoX, ...)"
        )
    if base.get_output_embeddings() is None:
        raise InputError(f"{name}: {type(base).__name__} has no output layer that hidden states could be read at")
    kinds = set(getattr(base.config.get_text_config(), "layer_types", None) or ())
    if kinds - SUPPORTED_LAYERS:
        raise InputError(
            f"{name}: has {', '.join(sorted(kinds - SUPPORTED_LAYERS))} layers, which tree attention cannot run; "
            f"it runs {' and '.join(sorted(SUPPORTED_LAYERS))}"
        )


def _rope_switch(base: PreTrainedModel) -> int | None:
    """The length behind which a model with longrope takes its long frequencies."""
    config = base.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}  # of all layers, or by their kind
    own = getattr(config, "original_max_position_embeddings", None)
    kinds = [r for r in (rope, *rope.values()) if isinstance(r, dict) and r.get("rope_type") == "longrope"]
    return min(filter(None, (r.get("original_max_position_embeddings") or own for r in kinds)), default=None)


def _whole(weight: Any) -> Any:
    """A weight that tensor parallelism has split (a DTensor), put together on every device; others as they are."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def _check_fit(heads: MedusaHeads, output: Tensor, name: str, heads_name: str) -> None:
    """The heads must read this model's hidden states and speak its vocabulary."""
    vocab, hidden = output.shape
    said = heads.vocab_size or vocab  # heads without output layers may not say
    if (said, heads.hidden_size) != (vocab, hidden):
        raise InputError(
            f"{heads_name}: the heads have hidden size {heads.hidden_size} and vocabulary {heads.vocab_size}, but {name} has "
            f"{hidden} and {vocab}; take the heads trained for this model"
        )
    heads.vocab_size = vocab
    if heads.token_map is not None and not 0 <= int(heads.token_map.min()) <= int(heads.token_map.max()) < vocab:
        raise InputError(f"{heads_name}: token_map names tokens outside of the {vocab} that {name} has")
