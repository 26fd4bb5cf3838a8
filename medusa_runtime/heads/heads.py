"""Medusa heads: H residual-block heads over the last hidden state, all in one batched product."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MedusaHeads(nn.Module):
    """H heads; head k (1..H) guesses the token k places after the model's own next token.

    Each head is J residual blocks ``x + SiLU(W x + b)`` followed by an output layer (Medusa, arXiv 2401.10774,
    §2.1.1): its own, or the model's, which all heads then share (:meth:`share_output`). With a ``token_map`` the heads
    propose only the tokens in it. The heads' weights are stacked along the first axis so that all heads are one
    batched matrix product, and the first n heads are a contiguous slice: a tree of depth n reads n heads' weights
    and no more.

    Parameters held (dtype and device as given):
        block_weight: (H, J, d, d), zero at the start, so that a fresh head repeats its output layer.
        block_bias: (H, J, d), zero at the start.
        output_weight: (H, R, d), R rows a token each; None where the model's output layer is shared.
        token_map: (R,) int64 buffer, the token that each row stands for; None where row i is token i.

    Args:
        hidden_size: d, the model's hidden size.
        vocab_size: V, the model's vocabulary.
        num_heads: H, at least 1.
        num_blocks: J, residual blocks a head.
        own_output: whether every head has an output layer of its own.
        token_map: (R,) distinct token ids; by default all V.
    """

    token_map: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        num_heads: int,
        num_blocks: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        *,
        own_output: bool = True,
        token_map: Tensor | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads is {num_heads}; Medusa needs at least one head")
        shape = (num_heads, num_blocks, hidden_size)
        self.vocab_size = vocab_size
        self.block_weight = nn.Parameter(torch.zeros(*shape, hidden_size, dtype=dtype, device=device))
        self.block_bias = nn.Parameter(torch.zeros(*shape, dtype=dtype, device=device))
        self.register_buffer("token_map", token_map)
        rows = vocab_size if token_map is None else len(token_map)
        self.output_weight: nn.Parameter | None = None
        if own_output:
            self.output_weight = nn.Parameter(torch.empty(num_heads, rows, hidden_size, dtype=dtype, device=device))
            nn.init.normal_(self.output_weight, std=hidden_size**-0.5)
        self._shared: tuple[Tensor, Tensor | None] | None = None

    @property
    def num_heads(self) -> int:
        return self.block_weight.shape[0]

    @property
    def num_blocks(self) -> int:
        return self.block_weight.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.block_weight.shape[2]

    @property
    def rows(self) -> int:
        """R, the tokens that the heads can propose."""
        return self.vocab_size if self.token_map is None else len(self.token_map)

    def init_from_output_layer(self, weight: Tensor) -> None:
        """Start every head's output layer as a copy of the model's own, ``weight`` (V, d) (§2.2.1)."""
        if self.output_weight is not None:
            with torch.no_grad():
                mine = weight if self.token_map is None else weight[self.token_map]
                self.output_weight.copy_(mine.expand_as(self.output_weight))

    def share_output(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Use the model's output layer, ``weight`` (V, d) and ``bias`` (V,); with a token map a copy of its rows is
        kept. Not a parameter of the heads. No effect on heads with output layers of their own."""
        if self.output_weight is None:
            if self.token_map is not None:
                weight, bias = weight[self.token_map], None if bias is None else bias[self.token_map]
            self._shared = (weight, bias)

    def forward(self, hidden: Tensor, num_heads: int | None = None) -> Tensor:
        """Logits of the first ``num_heads`` heads (all by default).

        Args:
            hidden: (T, d) last hidden states, after the model's final norm.
            num_heads: how many heads to evaluate, 1..H.

        Returns:
            (heads, T, R) logits in the heads' dtype; row r is token ``token_map[r]``.
        """
        n = self.num_heads if num_heads is None else num_heads
        x = hidden.expand(n, *hidden.shape)
        for j in range(self.num_blocks):
            w = self.block_weight[:n, j].transpose(1, 2)
            x = x + F.silu(torch.baddbmm(self.block_bias[:n, j, None], x, w))
        if self.output_weight is not None:
            return torch.bmm(x, self.output_weight[:n].transpose(1, 2))
        if self._shared is None:
            raise RuntimeError("these heads share the model's output layer; hand it over with share_output")
        return F.linear(x, *self._shared)

    def tokens(self, rows: Tensor) -> Tensor:
        """The token ids that rows of the logits stand for."""
        return rows if self.token_map is None else self.token_map[rows]
