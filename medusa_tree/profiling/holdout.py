"""The held-out split: whole groups, drawn by a seed within each category, the same content never on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError


def hold_out_groups(
    groups: Sequence[str],
    contents: Sequence[Hashable],
    fraction: float,
    seed: int,
    categories: Sequence[str | None] | None = None,
) -> npt.NDArray[np.bool_]:
    """(S,) which of the items, of a group each, are kept from fitting: whole groups, drawn until ``fraction`` of the items is
    reached. Groups that share a content, however many others lie between them, are one: the same is never on both sides.

    With ``categories``, one an item, as much is drawn within each, where a group is of its first item's. A category that is one
    group is fitted on; where all are, the draw is from all of them, as without categories.

    Raises:
        InputError: a fraction outside (0, 1), or too few groups for both halves to have one.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--held-out {fraction}: give a fraction between 0 and 1, such as 0.25")
    whole = _joined(groups, contents)
    sizes = Counter(whole[g] for g in groups)
    if len(sizes) < 2:
        raise InputError(
            f"--held-out {fraction}: all is of one document, prompt or group; one is needed to fit on and another to hold out"
        )
    names = sorted(whole)
    order = list(dict.fromkeys(whole[names[i]] for i in np.random.default_rng(seed).permutation(len(names))))
    kinds: dict[str, str | None] = {}
    for group, kind in zip(groups, categories or [None] * len(groups), strict=True):
        kinds.setdefault(whole[group], kind)
    within: dict[str | None, list[str]] = {}
    for group in order:
        within.setdefault(kinds[group], []).append(group)
    chosen = {g for drawn in within.values() for g in _first(drawn, sizes, fraction)} or _first(order, sizes, fraction)
    return np.array([whole[g] in chosen for g in groups])


def _first(order: Sequence[str], sizes: Counter[str], fraction: float) -> set[str]:
    """The first of the groups until they have ``fraction`` of the items; never all of them."""
    counts = np.array([sizes[g] for g in order])
    enough = int(np.searchsorted(np.cumsum(counts), fraction * counts.sum())) + 1
    return set(order[: min(enough, len(order) - 1)])


def _joined(groups: Sequence[str], contents: Sequence[Hashable]) -> dict[str, str]:
    """Group -> the one that stands for all that it is joined with by contents that they share."""
    above = {g: g for g in groups}

    def top(group: str) -> str:
        while above[group] != group:
            above[group] = group = above[above[group]]
        return group

    first: dict[Hashable, str] = {}
    for group, content in zip(groups, contents, strict=True):
        above[top(group)] = top(first.setdefault(content, group))
    return {g: top(g) for g in above}
