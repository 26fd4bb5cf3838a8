"""What a calibration is asked for: which prompts to profile and how, and at which loads to time steps. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medusa_runtime.acceptance.rules import GREEDY, Rule

from ..bundled import resolve_corpus
from .corpus import Prompt, hold_out, read_corpus


@dataclass(frozen=True)
class Profiling:
    """What to profile.

    corpus: a file, a dataset or "demo", see :func:`read_corpus`; its first ``prompts``, or all.
    max_new_tokens: positions a prompt.
    held_out: the share of the prompts kept from fitting, drawn by ``seed``.
    candidates: K, ranks kept a head.
    rule: how the text is made, and what the tree is for.
    """

    corpus: str
    prompts: int | None = None
    max_new_tokens: int = 128
    held_out: float = 0.25
    candidates: int = 10
    seed: int = 0
    rule: Rule = GREEDY

    def read(self) -> tuple[list[Prompt], npt.NDArray[np.bool_]]:
        """The prompts, and (S,) which of them are held out.

        Raises:
            InputError: see :func:`read_corpus` and :func:`hold_out`.
        """
        texts = read_corpus(resolve_corpus(self.corpus))[: self.prompts]
        return texts, hold_out(texts, self.held_out, self.seed)


@dataclass(frozen=True)
class Timing:
    """The loads to time steps at: each batch at each context; without contexts at the prompts' own middle."""

    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = ()
