"""What a calibration is asked for: which prompts to profile and how, and at which loads to time steps. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medusa_runtime.acceptance.rules import GREEDY, Rule

from ..bundled import DEMO
from .corpus import hold_out, read_prompts
from .prompt import Prompt


@dataclass(frozen=True)
class Profiling:
    """What to profile.

    corpora: files, datasets or "demo", see :func:`read_prompts`; of each its first ``prompts``, or all.
    max_new_tokens: positions a text.
    held_out: the share of the prompts kept from fitting, drawn by ``seed``.
    candidates: K, ranks kept a head.
    rule: how the text is made, and what the tree is for.
    answers: a file with the text, made elsewhere, see :mod:`medusa_tree.profiling.answers`; None: the model makes it.
    reference: the text is not the model's own, and need not agree with it.
    tokens: of prompts and texts held at once; None: as many as the free memory allows.
    """

    corpora: tuple[str, ...]
    prompts: int | None = None
    max_new_tokens: int = 128
    held_out: float = 0.25
    candidates: int = 10
    seed: int = 0
    rule: Rule = GREEDY
    answers: Path | None = None
    reference: bool = False
    tokens: int | None = None

    @property
    def corpus(self) -> str | list[str]:
        """The corpora as files have them."""
        return self.corpora[0] if len(self.corpora) == 1 else list(self.corpora)


@dataclass(frozen=True)
class Timing:
    """The loads to time steps at: each batch at each context; without contexts at the prompts' own middle."""

    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Asked:
    """The prompts that were read, (S,) which of them are held out, and what is to be said of them: what was skipped.

    Where answers are given, these are the prompts that a batch service's may belong to, if any, and the split is theirs to draw."""

    prompts: list[Prompt]
    held_out: npt.NDArray[np.bool_]
    told: str | None = None


def read_asked(profiling: Profiling) -> Asked:
    """Read the prompts.

    Raises:
        InputError: see :func:`read_prompts` and :func:`hold_out`.
    """
    if profiling.answers is not None and profiling.corpora == (DEMO,):
        return Asked([], np.zeros(0, dtype=np.bool_))
    # A batch service's answers come in an order of their own: the first ones are of any of the prompts.
    read = read_prompts(profiling.corpora, None if profiling.answers is not None else profiling.prompts)
    if profiling.answers is not None:
        return Asked(read.prompts, np.zeros(len(read.prompts), dtype=np.bool_))
    return Asked(read.prompts, hold_out(read.prompts, profiling.held_out, profiling.seed), read.told())
