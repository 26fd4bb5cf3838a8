"""Recipe: every number of a training run, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from medusa_runtime.errors import InputError

RECIPES = ("medusa-1", "medusa-2")


@dataclass(frozen=True)
class Recipe:
    """How heads are trained.

    name: "medusa-1" freezes the backbone; "medusa-2" trains it along (§2.2.1, §2.2.2).
    heads, blocks: H heads of J residual blocks.
    own_output: an output layer a head; else all share the model's.
    draft_vocab: keep only so many of the most frequent tokens; None: all.
    decay: lambda; head k weighs lambda^k (the paper: 0.8).
    heads_weight: lambda_0 of the heads' loss beside the backbone's in medusa-2 (the paper: 0.2).
    learning_rate: of the heads, at its peak; cosine to nothing after a warm-up of ``warmup`` of the steps.
    backbone_rate: the backbone's share of it (the paper: a quarter).
    heads_first: share of the steps in which the backbone still rests, as the paper's first stage.
    lora_rank: train adapters of this rank on the backbone; 0 trains all of it.
    distill: the backbone's loss is KL to the model as it was (§2.3.2), not cross-entropy to the text.
    gradient_checkpointing: run the backbone's layers again for their gradients instead of keeping what they made.
    """

    name: str = "medusa-1"
    heads: int = 4
    blocks: int = 1
    own_output: bool = True
    draft_vocab: int | None = None
    decay: float = 0.8
    heads_weight: float = 0.2
    learning_rate: float = 1e-3
    backbone_rate: float = 0.25
    heads_first: float = 0.3
    warmup: float = 0.05
    weight_decay: float = 0.0
    lora_rank: int = 32
    distill: bool = False
    gradient_checkpointing: bool = False
    epochs: float = 1.0
    max_steps: int = -1
    batch_size: int = 8
    accumulate: int = 1
    max_length: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise InputError(f"--recipe {self.name!r} is not known; recipes: {', '.join(RECIPES)}")
        bounds: dict[str, tuple[float, float]] = {
            "heads": (1, 64), "blocks": (1, 16), "decay": (0.0, 1.0), "heads_weight": (0.0, 100.0), "learning_rate": (1e-8, 10.0),
            "backbone_rate": (0.0, 10.0), "heads_first": (0.0, 1.0), "warmup": (0.0, 1.0), "lora_rank": (0, 4096), "epochs": (1e-6, 1e6),
            "batch_size": (1, 1 << 20), "accumulate": (1, 1 << 20), "max_length": (8, 1 << 24),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be from {low:g} to {high:g}")
        if self.draft_vocab is not None and self.draft_vocab < 1:
            raise InputError(f"--draft-vocab {self.draft_vocab}: keep at least one token")

    @property
    def joint(self) -> bool:
        """Whether the backbone learns along."""
        return self.name == "medusa-2"

    @property
    def full(self) -> bool:
        """Whether all of the backbone's weights are trained."""
        return self.joint and self.lora_rank == 0

    def head_weights(self) -> list[float]:
        """lambda^k of head k = 1..H, times lambda_0 in medusa-2."""
        scale = self.heads_weight if self.joint else 1.0
        return [scale * self.decay**k for k in range(1, self.heads + 1)]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cosine(steps: int, warmup: float, rest: float = 0.0) -> Callable[[int], float]:
    """Share of the peak learning rate at each step: nothing for ``rest`` of the steps, a linear warm-up over ``warmup``
    of what is left, and a cosine to nothing."""
    begin = round(rest * steps)
    rise = max(1, round(warmup * (steps - begin)))

    def share(step: int) -> float:
        if step < begin:
            return 0.0
        if step < begin + rise:
            return (step - begin + 1) / (rise + 1)
        progress = (step - begin - rise) / max(1, steps - begin - rise)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return share
