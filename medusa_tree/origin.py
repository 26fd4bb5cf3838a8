"""Origin: what commands go by of a tree.json's provenance, read by type where it is needed.

The file keeps its provenance as it is, whatever stands in it: a tree from another drafter's trace has next to none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from medusa_runtime.reading import Flag, Integer, Object, Share, Text, Whole, read_as
from medusa_runtime.treefile import TreeFile


@dataclass(frozen=True)
class Named:
    """What has a name, perhaps, may come from a Hub repository at a commit, and may have weights, of which this is the digest."""

    name: Text | None = None
    commit: Text | None = None
    weights: Text | None = None


@dataclass(frozen=True)
class Planned:
    """How a tree was planned: its bounds (see :class:`medusa_tree.planning.budget.Budget`), the engine it is for, and how many nodes
    its order is the best for."""

    budget: Object = field(default_factory=dict)
    engine: Text | None = None
    swaps: Flag = False
    prefixes_to: Whole | None = None


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
    """The prompts calibrated on, and which of them were held out."""

    name: Text
    prompts: Whole
    digest: Text
    held_out: Share
    seed: Annotated[Integer, Field(ge=0)]
    max_new_tokens: Whole


@dataclass(frozen=True)
class Calibrated:
    """What a calibrated tree says, so that the same can be decoded again."""

    model: Model
    heads: Named
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
