"""The prompts that a tree is validated on: the held-out ones of its calibration, or others. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from medusa_runtime.errors import InputError
from medusa_runtime.treefile import TreeFile

from ..bundled import resolve_corpus
from ..profiling.corpus import Prompt, corpus_digest, hold_out, read_corpus


@dataclass(frozen=True)
class HeldOut:
    """Prompts, and for each the stream of random numbers that it was calibrated with, so that the same seed samples the same
    text; ``max_new_tokens`` as calibrated."""

    prompts: list[Prompt]
    streams: list[int]
    max_new_tokens: int


def held_out_prompts(contents: TreeFile, where: str, corpus: str | None = None) -> HeldOut:
    """The held-out prompts of a tree's calibration, or all of another ``corpus``.

    Args:
        where: the tree's file, for errors.

    Raises:
        InputError: the file does not say what it was made on, or that has changed since.
    """
    try:
        source = contents.provenance["corpus"]
        tokens = source["max_new_tokens"]
        texts = read_corpus(resolve_corpus(corpus or source["name"]))
        if corpus is not None:
            return HeldOut(texts, list(range(len(texts))), tokens)
        texts = texts[: source["prompts"]]
        if corpus_digest(texts) != source["digest"]:
            raise InputError(
                f"{source['name']}: has changed since {where} was made; calibrate again, or name prompts with --corpus"
            )
        held = hold_out(texts, source["held_out"], source["seed"]).nonzero()[0].tolist()
        return HeldOut([texts[i] for i in held], held, tokens)
    except (KeyError, TypeError) as error:
        raise InputError(f'{where}: field "provenance" lacks {error}; write the file again with calibrate') from None
