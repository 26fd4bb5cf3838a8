"""The prompts that a tree is validated on: the held-out ones of its calibration, or others. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from medusa_runtime.errors import InputError

from ..bundled import resolve_corpus
from ..origin import Corpus
from ..profiling.corpus import Prompt, corpus_digest, hold_out, read_corpus


@dataclass(frozen=True)
class HeldOut:
    """Prompts, and for each the stream of random numbers that it was calibrated with, so that the same seed samples the same
    text."""

    prompts: list[Prompt]
    streams: list[int]


def held_out_prompts(calibrated_on: Corpus, where: str, corpus: str | None = None) -> HeldOut:
    """The held-out prompts of a tree's calibration, or all of another ``corpus``.

    Args:
        where: the tree's file, for errors.

    Raises:
        InputError: what it was made on has changed since.
    """
    texts = read_corpus(resolve_corpus(corpus or calibrated_on.name))
    if corpus is not None:
        return HeldOut(texts, list(range(len(texts))))
    texts = texts[: calibrated_on.prompts]
    if corpus_digest(texts) != calibrated_on.digest:
        raise InputError(
            f"{calibrated_on.name}: has changed since {where} was made; calibrate again, or name prompts with --corpus"
        )
    held = hold_out(texts, calibrated_on.held_out, calibrated_on.seed).nonzero()[0].tolist()
    return HeldOut([texts[i] for i in held], held)
