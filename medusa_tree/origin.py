"""Origin: what commands go by of a tree.json's provenance, read by type where it is needed.

The file keeps its provenance as it is, whatever stands in it: a tree from another drafter's trace has next to none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from medusa_runtime.reading import Flag, Integer, Object, Share, Text, Whole, one_of, read_as
from medusa_runtime.treefile import TreeFile


@dataclass(frozen=True)
class Named:
    """What has a name, perhaps, may come from a Hub repository at a commit, and may have weights, of which this is the digest."""

    name: Text | None = None
    commit: Text | None = None
    weights: Text | None = None


@dataclass(frozen=True)
class Planned:
    """How a tree was planned: its bounds (see :class:`medusa_tree.planning.budget.Budget`), the engine it is for, how many nodes
    its order is the best for, and by what: "heads", "lookup" or "both"; what is older than lookups does not say."""

    budget: Object = field(default_factory=dict)
    engine: Text | None = None
    swaps: Flag = False
    prefixes_to: Whole | None = None
    drafts: Annotated[str, one_of("heads", "lookup", "both")] | None = None


@dataclass(frozen=True)
class Origin:
    """What any tree may say of itself."""

    model: Named = Named()
    trace: Text | None = None
    estimator: Named = Named()
    plan: Planned = Planned()


@dataclass(frozen=True)
class Model:
    """The model that was profiled, and the dtype that it and its heads had then; a plan may be for another."""

    name: Text
    commit: Text | None = None
    weights: Text | None = None
    dtype: Text | None = None


@dataclass(frozen=True)
class Corpus:
    """The prompts calibrated on, of several corpora the first ``of_each`` or all, and which of them were held out. ``source``: whose
    text it is: "prompts", which the model answered then and there; given "answers", "reference text", or several "runs"."""

    name: Text | tuple[Text, ...]
    prompts: Whole
    digest: Text
    held_out: Share
    seed: Annotated[Integer, Field(ge=0)]
    max_new_tokens: Whole
    of_each: Whole | None = None
    source: Text = "prompts"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,) if isinstance(self.name, str) else self.name


@dataclass(frozen=True)
class Calibrated:
    """What a calibrated tree says, so that the same can be decoded again."""

    model: Model
    heads: Named | None  # None: lookup alone was planned
    corpus: Corpus
    device: Text
    dtype: Text


def origin(contents: TreeFile, where: str = "tree.json") -> Origin:
    """The origin of any tree.

    Args:
        where: the file, for errors.

    Raises:
        InputError: a field of it is of a wrong type.
    """
    return read_as(Origin, contents.provenance, f'{where}: field "provenance"')


def calibrated(contents: TreeFile, where: str) -> Calibrated:
    """The origin of a calibrated tree; InputError where a field is missing or of a wrong type."""
    return read_as(
        Calibrated,
        contents.provenance,
        f'{where}: field "provenance"',
        "write the file again with medusa-tree calibrate",
    )


def differ(now: str, then: str) -> bool:
    """Whether two digests are of other weights; of two kinds, as where weights are kept on disk, nothing can be said."""
    return now != then and now.partition(":")[0] == then.partition(":")[0]


@dataclass(frozen=True)
class _With:
    model: Model
    heads: Named | None


def profiled_with(provenance: Mapping[str, Any], where: str) -> tuple[Model, Named | None]:
    """The model that a trace was taken with, and its heads, if any, by its provenance; InputError, which names ``where``, where that does
    not say."""
    said = read_as(_With, provenance, f"{where}: provenance", "name the model with --model and --heads")
    return said.model, said.heads
