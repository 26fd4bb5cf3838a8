"""Looking up: where the longest suffix of a text stood before, and the tokens that followed it, as drafts.

On a device in tensor operations of fixed shapes, linear in the text, so that a step can be captured in a CUDA graph; on the host by a
search that soon has few places left. Both find the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from .book import Lookup

NO_TOKEN = -1


def draft(
    text: Tensor, ends: Tensor, prompts: Tensor, beside: Tensor, lookup: Lookup, count: int, host: bool | None = None
) -> tuple[Tensor, Tensor]:
    """What the text proposes behind its end.

    Args:
        text: (B, N) int64 token ids, of which the first ``ends`` (B,) are the text, root included; what is behind them is not read.
        prompts: (B,) int64, how many of them are the prompt.
        beside: (F,) int64, the user's own text; empty where there is none.
        count: L, drafts wanted.
        host: whether to search on the host; by default where the text lies there.

    Returns:
        match (B,) int64: how many tokens before the end stood earlier, too, 0 to ``lookup.longest``;
        drafts (B, L) int64: the tokens behind their most recent occurrence, which run on into themselves where the text ends, and repeat the
        last token where the user's text does; where there is no match, any of the text's tokens.
    """
    host = text.device.type == "cpu" if host is None else host
    search = _on_host if host else _on_device
    match, at = search(text, ends, prompts, lookup)
    place = torch.arange(count, device=text.device)
    period = (ends - 1 - at).clamp(min=1)
    drafts = text.gather(1, (at[:, None] + 1 + place % period[:, None]).clamp(max=text.shape[1] - 1))
    if len(beside):
        other, there = _beside(text, ends, beside, lookup.longest, host)
        follows = beside[(there[:, None] + 1 + place).clamp(max=len(beside) - 1)]
        drafts = torch.where((other > match)[:, None], follows, drafts)
        match = torch.maximum(match, other)
    return match, drafts


def _bounds(ends: Tensor, prompts: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """(B,) the first place at which a match may end, and the one behind the last."""
    first = prompts if where == "output" else torch.zeros_like(prompts)
    return first, torch.minimum(ends - 1, prompts) if where == "prompt" else ends - 1


def _on_device(text: Tensor, ends: Tensor, prompts: Tensor, lookup: Lookup) -> tuple[Tensor, Tensor]:
    """(B,) match length, and the place of the last token of the most recent occurrence."""
    runs = _runs(text, _suffix(text, ends, lookup.longest))
    place = torch.arange(text.shape[1], device=text.device)
    first, behind = _bounds(ends, prompts, lookup.where)
    allowed = (place >= first[:, None]) & (place < behind[:, None])
    return _longest(torch.where(allowed, runs, 0))


def _beside(text: Tensor, ends: Tensor, beside: Tensor, longest: int, host: bool) -> tuple[Tensor, Tensor]:
    """The same in the user's text, which is one for all sequences."""
    if host:
        own, other = text.numpy(), beside.numpy()
        found = [_search(other, own[b, :end], 0, len(other), longest) for b, end in enumerate(ends.tolist())]
        return _pair(found, text.device)
    # A window a place would be much for a long text, and a token after the other is less work than it is for texts that differ.
    suffix, going = (
        _suffix(text, ends, longest),
        torch.ones(len(text), len(beside), dtype=torch.bool, device=text.device),
    )
    runs = torch.zeros_like(going, dtype=torch.int64)
    for back in range(min(longest, len(beside))):
        going[:, :back] = False
        going[:, back:] &= beside[: len(beside) - back] == suffix[:, -1 - back, None]
        runs += going
    return _longest(runs)


def _suffix(text: Tensor, ends: Tensor, longest: int) -> Tensor:
    """(B, longest): the last tokens, NO_TOKEN before the first."""
    place = ends[:, None] - longest + torch.arange(longest, device=text.device)
    return torch.where(place >= 0, text.gather(1, place.clamp(min=0)), NO_TOKEN)


def _runs(text: Tensor, suffix: Tensor) -> Tensor:
    """(B, N): how many tokens up to each place are those at the end of the suffix (B, M)."""
    longest = suffix.shape[1]
    windows = F.pad(text, (longest - 1, 0), value=NO_TOKEN - 1).unfold(1, longest, 1)
    same = (windows == suffix[:, None]).flip(2)
    return same.cumprod(dim=2, dtype=torch.uint8).sum(dim=2)


def _longest(runs: Tensor) -> tuple[Tensor, Tensor]:
    """The greatest run of each row, and its last place."""
    count = runs.shape[1]
    best = (runs * count + torch.arange(count, device=runs.device)).amax(dim=1)
    return best // count, best % count


def _on_host(text: Tensor, ends: Tensor, prompts: Tensor, lookup: Lookup) -> tuple[Tensor, Tensor]:
    rows, found = text.numpy(), []
    first, behind = _bounds(ends, prompts, lookup.where)
    for b, (low, high, end) in enumerate(zip(first.tolist(), behind.tolist(), ends.tolist(), strict=True)):
        own = rows[b, :end]
        found.append(_search(own, own, low, high, lookup.longest))
    return _pair(found, text.device)


def _pair(found: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    match, at = torch.tensor(found, dtype=torch.int64, device=device).T
    return match, at


def _search(
    text: npt.NDArray[np.int64], suffix: npt.NDArray[np.int64], low: int, high: int, longest: int
) -> tuple[int, int]:
    """Match length and last place of the most recent longest occurrence of the suffix's end, ending in ``text[low:high]``."""
    places = low + np.flatnonzero(text[low:high] == suffix[-1])
    if not len(places):
        return 0, 0
    length = 1
    while length < min(longest, len(suffix)):
        earlier = places[
            text[places - length] == suffix[-1 - length]
        ]  # place -1, the text's last, is looked at in vain
        if places[0] < length:
            earlier = earlier[earlier >= length]
        if not len(earlier):
            break
        places, length = earlier, length + 1
    return length, int(places[-1])
