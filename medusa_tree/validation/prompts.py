"""The prompts that a tree is validated on: the held-out ones of its calibration, or others; and their trace. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Book, TreeFile

from ..origin import Corpus
from ..planning.calibration import calibration_path, load_calibration
from ..planning.played import Contender, looked_up, lookups
from ..profiling.corpus import corpus_digest, hold_out, read_prompts
from ..profiling.prompt import Prompt
from ..traces.bookreplay import replay_book
from ..traces.replay import Replay, replay
from ..traces.trace import RankTrace


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
    if corpus is not None:
        texts = read_prompts([corpus]).prompts
        return HeldOut(texts, list(range(len(texts))))
    if calibrated_on.source != "prompts":
        raise InputError(
            f"{where}: was planned on {calibrated_on.source}, whose prompts are known from its calibration alone; keep that beside it, "
            "leave out --model, or name prompts with --corpus"
        )
    texts = read_prompts(calibrated_on.names, calibrated_on.of_each).prompts[: calibrated_on.prompts]
    if corpus_digest(texts) != calibrated_on.digest:
        raise InputError(
            f"{', '.join(calibrated_on.names)}: has changed since {where} was made; calibrate again, or name prompts with --corpus"
        )
    held = hold_out(texts, calibrated_on.held_out, calibrated_on.seed).nonzero()[0].tolist()
    return HeldOut([texts[i] for i in held], held)


def held_out_trace(tree_json: Path, contents: TreeFile) -> RankTrace | None:
    """The held-out part of the trace that a tree was planned on, where its calibration lies beside it as calibrate leaves it.

    Raises:
        InputError: what lies there cannot be read as a calibration.
    """
    path = calibration_path(tree_json)
    if not path.is_file():
        return None
    calibration = load_calibration(path)
    made, planned = calibration.provenance, contents.provenance
    same = all(made.get(key) == planned.get(key) for key in ("model", "heads", "corpus", "date"))
    return calibration.trace.split()[1] if same else None


def looked_up_text(tree_json: Path, book: Book | None) -> tuple[int, ...]:
    """Tokens of the user's own text that a book looks up in, from the calibration beside the tree; none where it looks in none, or the
    calibration is not there.

    Raises:
        InputError: what lies there cannot be read as a calibration.
    """
    path = calibration_path(tree_json)
    named = book is not None and book.lookup.file is not None
    return looked_up(load_calibration(path)) if named and path.is_file() else ()


def kept(trace: RankTrace, sequences: int, positions: int) -> npt.NDArray[np.bool_]:
    """(P,) which positions of a trace :func:`beginning` takes."""
    place = np.arange(trace.positions) - np.repeat(trace.starts[:-1], trace.lengths)
    return (place < positions) & (np.arange(trace.positions) < trace.starts[min(sequences, len(trace.lengths))])


def beginning(trace: RankTrace, sequences: int, positions: int) -> RankTrace:
    """The first positions of the first sequences: the trace of a shorter run, whose texts are the beginnings of the same."""
    inside = kept(trace, sequences, positions)
    rows: dict[str, Any] = {name: array[inside] for name, array in trace.per_position().items()}
    starts = np.concatenate([[0], np.minimum(trace.lengths[:sequences], positions).cumsum()])
    return replace(trace, **rows, starts=starts, held_out=trace.held_out[:sequences], text=None, categories=None)


def replay_beginning(what: Contender, trace: RankTrace, sequences: int, positions: int) -> Replay | None:
    """The tree's or the book's replay on the beginnings; what the text proposes is looked up in the whole trace, as these have none. None
    where the text, or that of the user's own, is not at hand."""
    short = beginning(trace, sequences, positions)
    if isinstance(what, CandidateTree):
        return replay(what, short)
    if what.lookup is not None and (trace.text is None or (what.lookup.file and not what.beside)):
        return None
    found = lookups(what, trace)
    return replay_book(what, short, None if found is None else found.at(kept(trace, sequences, positions)))
