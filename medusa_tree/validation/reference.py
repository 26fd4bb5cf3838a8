"""Reference: a model's own weights in a wider type, through transformers' own forward: what a parting is judged by.

Widening is exact, so these are the same weights: bfloat16 and float16 become float32, float32 becomes float64. Nothing of ours
takes part: neither cache nor tree attention, and no step; the text goes through as one input. The model itself is not touched,
as the wide weights stand in for its own for a call; they are as much memory again as the model twice over, taken only while a
:class:`Reference` lives, and on the CPU where the device has no room for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from medusa_runtime.errors import InputError, out_of_memory
from medusa_runtime.tree_model import TreeModel

WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
SPARE = 1.25  # times the wide weights, for what a pass needs beside them


class Reference:
    """A model in a wider type.

    dtype: the wider type. device: where its weights are.

    Raises:
        InputError: no room for the wide weights, or the model's own are offloaded.
    """

    def __init__(self, model: TreeModel) -> None:
        self.model = model
        self.dtype = WIDER.get(model.dtype, torch.float64)
        held = {**dict(model.base.named_parameters()), **dict(model.base.named_buffers())}
        if any(t.device.type == "meta" for t in held.values()):
            raise InputError(
                f"{model.name}: its device_map has offloaded weights, so texts cannot be judged; load it whole, on a larger device or on the CPU"
            )
        size = sum(t.numel() for t in held.values()) * self.dtype.itemsize
        # Over several devices or processes each weight stays where it is.
        spread = len({t.device for t in held.values()}) > 1 or model.split_over_processes
        self.device = model.device if spread else _room_for(size, model)
        with out_of_memory(f"the weights of {model.name} in {self.name} take {size / 2**30:.2f} GiB", self.device):
            self.weights = {
                name: t.to(t.device if spread else self.device, self.dtype if t.is_floating_point() else t.dtype)
                for name, t in held.items()
            }

    @property
    def name(self) -> str:
        """For reports: the type, and where the passes run if not where the model's do."""
        name = str(self.dtype).removeprefix("torch.")
        return name if self.device.type == self.model.device.type else f"{name} on the CPU"

    @torch.inference_mode()
    def logits(self, text: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        """What transformers' own forward says behind each of the last ``count`` tokens of a text.

        Returns:
            (count, V) twice, on the CPU: in the model's own type, as float32 or wider, and in the reference's.
        """
        base, ids = self.model.base, torch.tensor([text])
        given = {"use_cache": False, "logits_to_keep": count}
        with (
            out_of_memory(f"a pass over {len(text)} tokens in {self.name}", self.device),
            self.model.turn,
            _untouched(base),
        ):
            own = base(input_ids=ids.to(base.device), **given).logits[0]
            wide = functional_call(base, self.weights, (), {"input_ids": ids.to(self.device), **given}).logits[0]
        return own.to("cpu", torch.promote_types(own.dtype, torch.float32)), wide.cpu()


@contextmanager
def _untouched(base: PreTrainedModel) -> Iterator[None]:
    """The model with transformers' own attention, and afterwards with the one that it had."""
    before = base.config._attn_implementation
    # transformers' SDPA leaves out a soft cap on the scores (Gemma-2); eager attention is as the model is written.
    capped = getattr(base.config.get_text_config(), "attn_logit_softcapping", None)
    base.set_attn_implementation("sdpa" if base._supports_sdpa and not capped else "eager")
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def _room_for(size: int, model: TreeModel) -> torch.device:
    """The model's device if it has room for so many bytes, else the CPU."""
    device = model.device
    if device.type == "cuda":
        with model.turn:
            model.workspace = None  # cache and graphs of the last request; the next one makes its own
        torch.cuda.empty_cache()
        if SPARE * size < torch.cuda.mem_get_info(device)[0]:
            return device
    return torch.device("cpu")
