"""TreeBook: a few candidate trees, and the match lengths of the lookup at which each is used. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from .errors import InputError
from .reading import Text, Whole, check_fields, one_of
from .tree import CandidateTree

LONGEST = 16  # tokens that a match is counted up to
LARGEST_LONGEST = 64
Name = Annotated[Text, Field(min_length=1)]


@dataclass(frozen=True)
class Lookup:
    """How the text itself drafts: the longest suffix of it, root included, that stood earlier is looked for, and what followed its
    most recent occurrence is proposed. Where that runs into the end of the text it goes on from its own beginning.

    Raises:
        InputError: names the field that is out of range.
    """

    where: Annotated[
        str,
        one_of("both", "prompt", "output"),
        Field(
            description="Where the suffix's last token must have stood: in the prompt, in what was generated, or in either."
        ),
    ] = "both"
    longest: Annotated[
        Whole,
        Field(
            le=LARGEST_LONGEST,
            description="Match lengths are counted up to this; of longer ones the most recent counts.",
        ),
    ] = LONGEST
    file: Annotated[
        Name | None,
        Field(description="A text of the user's own that is searched besides, where it has a longer match."),
    ] = None
    digest: Annotated[Name | None, Field(description="Of that text's tokens; only where there is a file.")] = None

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.file is None) != (self.digest is None):
            raise InputError("a lookup has the file of a text and the digest of its tokens, or neither")


@dataclass(frozen=True)
class TreeBook:
    """Trees, and the least match length from which each is used; ``matches`` rise from 0, where nothing was found.

    lookup: None where no tree has a chain and there is one tree.
    beside: tokens of the user's own text that is searched besides.

    Raises:
        InputError: no tree, match lengths that do not rise from 0 to the longest counted, or a chain where nothing may be found.
    """

    trees: tuple[CandidateTree, ...]
    matches: tuple[int, ...] = (0,)
    lookup: Lookup | None = None
    beside: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        most = 0 if self.lookup is None else self.lookup.longest
        rising = all(a < b for a, b in zip(self.matches, self.matches[1:], strict=False))
        if (
            not self.trees
            or len(self.trees) != len(self.matches)
            or self.matches[0] != 0
            or not rising
            or self.matches[-1] > most
        ):
            raise InputError(
                f"a book of {len(self.trees)} trees at match lengths {list(self.matches)}: there must be one for each, rising from 0 to {most} at most"
            )
        if self.trees[0].lookup:
            raise InputError("the tree for match length 0 has a chain of looked-up tokens, and nothing is found there")

    @classmethod
    def of(cls, tree: CandidateTree | TreeBook) -> TreeBook:
        """The book of one tree, without a chain, which is used at every step; a book as it is."""
        return tree if isinstance(tree, TreeBook) else cls((tree,))

    @property
    def nodes(self) -> int:
        """Of the largest tree."""
        return max(tree.nodes for tree in self.trees)

    @property
    def heads(self) -> int:
        """Heads read, of the tree that reads most."""
        return max(tree.heads for tree in self.trees)

    @property
    def depth(self) -> int:
        """Tokens behind the root that a step can accept."""
        return max(tree.depth for tree in self.trees)

    @property
    def width(self) -> int:
        """Candidates needed of each head."""
        return max(tree.width for tree in self.trees)

    @property
    def chain(self) -> int:
        """Tokens of the longest chain."""
        return max(tree.lookup for tree in self.trees)

    def numbers(self) -> npt.NDArray[np.int64]:
        """(longest + 1,) match length -> which tree."""
        longest = 0 if self.lookup is None else self.lookup.longest
        return np.searchsorted(self.matches, np.arange(longest + 1), side="right").astype(np.int64) - 1
