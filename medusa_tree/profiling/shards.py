"""Run: the folder of a profiling job: what it was begun with, and a shard for each batch, written whole or not at all. No torch."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar
from uuid import uuid4

import numpy as np
from pydantic import Field

from medusa_runtime.errors import InputError
from medusa_runtime.reading import Object, Whole, read_as, read_json

from ..origin import differ
from ..traces.probetrace import ProbeTrace
from ..traces.text import TURN
from ..traces.trace import RankTrace
from ..traces.tracefile import read_trace

FILE = "run.json"
FORMAT, VERSION = "medusa-tree run", 1
MEND = "give the folder that medusa-tree profile wrote"
Process = tuple[int, int]  # this one's number, and how many there are
ALONE: Process = (0, 1)
STALE = 3600.0  # seconds
Made = TypeVar("Made")


@dataclass(frozen=True)
class Run:
    """A job as it was begun; see docs/formats.md.

    settings: what must be the same for the shards to go together, by the name of the option.
    tokens: held at once, from which the shards follow.
    shards: how many each stage has; the last stage's are the result.
    provenance: of the trace.
    """

    format: Annotated[str, Field(pattern=FORMAT)]
    version: Annotated[int, Field(ge=VERSION, le=VERSION)]
    settings: Object
    tokens: Whole
    shards: Annotated[dict[str, Whole], Field(min_length=1)]
    provenance: Object


def begin(folder: Path, settings: Mapping[str, Any], begun: Run) -> Run:
    """Go on with the job in a folder, or begin it there, as ``begun``.

    Of several processes that begin one, the first to write decides, and all go on with what it wrote.

    Raises:
        InputError: the folder cannot be made, holds something else, or its job has other settings, by name.
    """
    path = folder / FILE
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            beside = folder / f".{FILE}.{uuid4().hex}"
            beside.write_text(json.dumps(asdict(begun), indent=1) + "\n", "utf-8")
            try:
                os.link(beside, path)
            except FileExistsError:
                pass
            finally:
                beside.unlink()
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from None
    run = read_run(folder)
    if (name := other_setting(run, settings)) is not None:
        raise InputError(
            f"{folder}: was begun with {_said(name, run.settings.get(name), settings[name])}; give the same, or another folder"
        )
    if list(run.shards) != list(begun.shards):
        raise InputError(
            f'{folder / FILE}: field "shards" has {", ".join(run.shards)}, not {", ".join(begun.shards)}; {MEND}'
        )
    return run


def other_setting(run: Run, settings: Mapping[str, Any]) -> str | None:
    """The first setting that is not the run's."""
    known = json.loads(json.dumps(dict(settings)))
    return next((name for name, wanted in known.items() if _other(name, run.settings.get(name), wanted)), None)


def _other(name: str, before: Any, wanted: Any) -> bool:
    if name in ("weights", "heads") and isinstance(before, str) and isinstance(wanted, str):
        return differ(wanted, before)
    return bool(before != wanted)


def _said(name: str, before: Any, wanted: Any) -> str:
    """The setting that is another one now."""
    if name == "heads" and (before is None or wanted is None):
        return "no heads, not with these" if before is None else "heads, not without"
    if name in ("weights", "heads", "prompts"):
        return {"weights": "another model", "heads": "other heads", "prompts": "other prompts or answers"}[name]
    return f"{name} {before}, not {wanted}"


def check_folder(folder: Path) -> None:
    """InputError where a run's folder could not be written to, before any work."""
    above = next((p for p in (folder, *folder.resolve().parents) if p.exists()), folder)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"-o {folder}: cannot be written to; choose another folder")
    if folder.is_dir() and not (folder / FILE).exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise InputError(f"-o {folder}: is there already and is no run; give another folder")


def read_run(folder: Path) -> Run:
    """What a job was begun with.

    Raises:
        InputError: no run, or one of another version.
    """
    if not (folder / FILE).is_file():
        raise InputError(f"{folder}: holds no {FILE}; {MEND}")
    return read_as(Run, read_json(folder / FILE, MEND), str(folder / FILE), MEND)


def shard(folder: Path, stage: str, number: int) -> Path:
    """The file of a stage's shard."""
    return folder / f"{stage}-{number:05d}.npz"


def drop_remains(folder: Path) -> None:
    """Remove what writers left behind that were killed, long enough ago that nobody is writing it."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir() and time.time() - path.stat().st_mtime > STALE:
            shutil.rmtree(path, ignore_errors=True)


def complete(
    folder: Path,
    stage: str,
    make: Callable[[int], Made],
    save: Callable[[Path, Made], object],
    todo: Sequence[int],
    process: Process = ALONE,
    writes: bool = True,
    look: bool = True,
) -> None:
    """Make the shards of a stage that are missing, ``todo``. All stand there when this returns, whoever made them.

    Each process makes its share, from the beginning, and then what others have not made yet, from their end. So none waits for
    another; where one has died the others do its work, and at worst two make the same shard, which comes out the same.

    Args:
        make: shard number -> what is in it. save: writes that, whole or not at all.
        writes: whether this process writes what it makes: of several that run one model together, one does.
        look: whether to leave out what has been made since by another; all that run one model together make the same.
    """
    rank, world = process
    shares = [list(todo[(rank + i) % world :: world]) for i in range(world)]
    for n in (*shares[0], *(n for others in shares[1:] for n in reversed(others))):
        if look and shard(folder, stage, n).exists():
            continue
        one = make(n)
        if writes:
            save(shard(folder, stage, n), one)


def made(folder: Path, stage: str, count: int) -> Iterator[RankTrace]:
    """The shards of a stage that are there, in order."""
    for n in range(count):
        if not (path := shard(folder, stage, n)).exists():
            continue
        try:
            yield read_trace(path, part=True)
        except InputError as error:
            raise InputError(f"{error}; remove the file, and go on by the same command") from None


def collect(folder: Path, partial: bool = False) -> RankTrace:
    """The trace of a run, sequences in the order of the prompts, the turns of a conversation one behind the other.

    Args:
        partial: take what is there of a run that is not complete.

    Raises:
        InputError: shards are missing, or nothing is there.
    """
    run = read_run(folder)
    stage, count = list(run.shards.items())[-1]
    traces = list(made(folder, stage, count))
    if not traces or (len(traces) < count and not partial):
        hint = "go on with it by the same medusa-tree profile" + (
            ", or take what is there with --partial" if traces else ""
        )
        raise InputError(f"{folder}: is not complete: {len(traces)} of {count} batches are there; {hint}")
    return in_order(joined(traces))


def joined(traces: Sequence[RankTrace]) -> RankTrace:
    """One trace of several of a kind."""
    kind = ProbeTrace if isinstance(traces[0], ProbeTrace) else RankTrace
    return kind.merge(traces)


def in_order(trace: RankTrace) -> RankTrace:
    """The sequences by prompt and turn, as their streams number them."""
    if trace.text is None:
        return trace
    numbers = trace.text.streams
    return trace.take(np.lexsort((numbers // TURN, numbers % TURN)))
