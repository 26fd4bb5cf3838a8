"""What heads are worth: top-k accuracy and the backbone's loss on held-out rows, and replay acceptance length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel

from ..planning.offers import estimate, full_order
from ..profiling.profile import profile
from ..progress import Progress
from ..traces.replay import replay
from .data import Row, collate
from .loss import CHUNK, IGNORE, autocast_weights, base_loss, head_targets
from .model import TrainingModel

TOP = 10
SIZES = (16, 32, 64)  # nodes of the trees whose acceptance length is reported


@dataclass(frozen=True)
class Scores:
    """Counts over held-out rows: ``hits`` (H, TOP), how often the text's token had rank i at head k; ``asked`` (H,);
    the backbone's summed cross-entropy in nats ``base_sum`` over ``tokens``."""

    hits: Tensor
    asked: Tensor
    base_sum: Tensor
    tokens: Tensor

    def top_k(self) -> Tensor:
        """(H, TOP) top-1 .. top-10 accuracy."""
        return self.hits.cumsum(dim=1) / self.asked.clamp(min=1)[:, None]

    @property
    def base_loss(self) -> float:
        """Nats a token; its exponential is the perplexity."""
        return float(self.base_sum / self.tokens.clamp(min=1))

    def summed(self, reduce: Callable[[Tensor], Tensor]) -> Scores:
        """Over all processes."""
        return Scores(reduce(self.hits), reduce(self.asked), reduce(self.base_sum), reduce(self.tokens))


@torch.no_grad()
def score(model: TrainingModel, rows: Sequence[Row], batch_size: int) -> Scores:
    """Score the heads and the backbone on the text of ``rows``."""
    was_training = model.training
    model.eval()
    heads = model.heads
    model.share_output()
    weights = autocast_weights(heads)
    width = min(TOP, heads.rows)
    hits = torch.zeros(heads.num_heads, TOP, dtype=torch.float64)
    asked = torch.zeros(heads.num_heads, dtype=torch.float64)
    base_sum, tokens = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    device = model.head_weights.device
    for i in range(0, len(rows), batch_size):
        batch = {k: v.to(device) for k, v in collate([r.example for r in rows[i : i + batch_size]], pad=0).items()}
        hidden, logits = model.hidden_states(batch["input_ids"], batch["attention_mask"], logits=True)
        if logits is not None:
            base_sum += float(base_loss(logits, batch["labels"]))
            tokens += int((batch["labels"][:, 1:] != IGNORE).sum())
        targets = head_targets(batch["labels"], heads.num_heads).flatten(1)
        flat = hidden.flatten(0, 1).to(heads.block_weight.dtype)
        step = max(1, CHUNK // heads.num_heads)
        for at in range(0, flat.shape[0], step):
            wanted = targets[:, at : at + step]
            guesses = heads.tokens(functional_call(heads, weights, flat[at : at + step]).topk(width, dim=-1).indices)
            found = (guesses == wanted[..., None]) & (wanted != IGNORE)[..., None]
            hits[:, :width] += found.sum(dim=1).cpu()
            asked += (wanted != IGNORE).sum(dim=1).cpu()
    model.train(was_training)
    return Scores(hits, asked, base_sum, tokens)


@dataclass(frozen=True)
class Acceptance:
    """Replay acceptance length of the best tree of ``nodes``, on prompts that took no part in choosing it, with its 95%
    interval over prompts."""

    nodes: int
    value: float
    low: float
    high: float


def held_out_prompts(rows: Sequence[Row], most: int, room: int | None) -> list[list[int]]:
    """The prompts of the first ``most`` rows, of each the last ``room`` tokens (None: all).

    Raises:
        InputError: fewer than two rows, or no room.
    """
    if len(rows) < 2:
        raise InputError(
            "acceptance length needs at least two held-out rows, one to choose trees on and one to replay them on, and there "
            f"is {len(rows)}: raise --held-out, or hold other data out with --eval FILE"
        )
    if room is not None and room < 1:
        raise InputError("the model has too few positions for a prompt and an answer to measure acceptance length on")
    return [row.prompt[-(room or 0) :] for row in rows[:most]]


def acceptance(
    model: MedusaModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    sizes: Sequence[int] = SIZES,
    progress: Progress = lambda done: None,
) -> list[Acceptance]:
    """Profile the model on its own greedy output, choose trees on every other prompt, replay them on the rest; see
    :func:`held_out_prompts`."""
    held_out = np.arange(len(prompts)) % 2 == 1
    trace = profile(model, prompts, held_out, max_new_tokens, progress=progress)
    fit, held = trace.split()
    order = full_order(estimate(fit), max(sizes), fit.heads)
    result = []
    for nodes in sizes:
        played = replay(order.cut(nodes), held)
        result.append(Acceptance(nodes, played.acceptance_length, *played.interval()))
    return result
