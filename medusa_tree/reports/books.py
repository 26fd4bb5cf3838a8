"""A point's book, shown: the ranges of match lengths with their trees, and who drafted what is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Book, Drafted, OperatingPoint, TreeFile

from .charts import TreeChart, percent, tree_chart
from .tables import narrow_table, path_frequencies

if TYPE_CHECKING:
    from rich.table import Table

OFTEN = "how often all text follows its path, whatever the match length"  # the figures of a book's nodes
DRAFTERS = ("heads and lookup alike", "heads alone", "lookup alone")


@dataclass(frozen=True)
class Range:
    """The match lengths, in words, at which one of a book's trees is used; its share of the steps; and the tree."""

    name: str
    share: float
    tree: CandidateTree

    @property
    def title(self) -> str:
        """What stands above its tree."""
        match = f"match of {self.name}" if self.name[0].isdecimal() else self.name
        return f"{match}, {percent(self.share)}% of steps"


def ranges(contents: TreeFile, point: OperatingPoint) -> list[Range]:
    """Of a point's book, from no match on; none where it has no book."""
    if point.book is None:
        return []
    trees = contents.book_of(point).trees
    ends = [*(t.match for t in point.book.trees[1:]), None]
    return [
        Range(range_name(told.match, end), told.share, tree)
        for told, end, tree in zip(point.book.trees, ends, trees, strict=True)
    ]


def range_name(first: int, end: int | None) -> str:
    """Match lengths from ``first`` up to ``end``, which is the next tree's; None: all that are longer."""
    if end is None:
        return f"{first} and more" if first else "any match or none"
    last = end - 1
    if first == last:
        return str(first) if first else "no match"
    return f"{first} to {last}" if first else f"up to {last}"


def reads_heads(book: Book) -> bool:
    """Whether any of a book's trees has paths of heads; where none has, there is nothing to say of heads."""
    return any(tree.paths for tree in book.trees)


def drafters(book: Book) -> str:
    """Who drafts in a book, in words."""
    return "heads and lookup" if reads_heads(book) else "lookup"


def drafted_by(drafted: Drafted, heads: bool = True) -> list[tuple[str, float]]:
    """Accepted tokens a step by who drafted them; by the lookup alone where no ``heads`` are read."""
    told = list(zip(DRAFTERS, (drafted.both, drafted.heads, drafted.lookup), strict=True))
    return told if heads else told[-1:]


def drafted_line(drafted: Drafted, heads: bool = True) -> str:
    """The same in words."""
    told = ", ".join(f"{tokens:.2f} by {who}" for who, tokens in drafted_by(drafted, heads))
    return f"accepted tokens a step behind the root: {told}"


def lookup_line(book: Book) -> str:
    """Where is looked, in a sentence."""
    places = {"both": "prompt and output", "prompt": "the prompt", "output": "the output"}[book.lookup.where]
    beside = f", and in {book.lookup.file}" if book.lookup.file else ""
    return f"Match length: tokens at the end of the text that stood earlier, too, counted to {book.lookup.longest}; looked for in {places}{beside}."


def book_table(contents: TreeFile, point: OperatingPoint) -> Table:
    """What is used at which match lengths."""
    heads = point.book is not None and reads_heads(point.book)
    table = narrow_table(
        f"Tree book at batch {point.batch}, context {point.context}",
        "match length", "steps, %", "nodes", *["heads read"] * heads, "lookup chain",
    )  # fmt: skip
    for row in ranges(contents, point):
        tree = row.tree
        read = [str(tree.heads)] * heads
        table.add_row(row.name, percent(row.share), str(tree.nodes or "plain"), *read, str(tree.lookup))
    return table


def what_numbers_say(book: Book) -> str:
    """What the numbers in pictures of a book's trees are, in a sentence."""
    chain = "n a chain a token's place behind the root."
    return f"In a node its rank among the head's guesses, and {OFTEN}; i{chain}" if reads_heads(book) else f"I{chain}"


def book_charts(contents: TreeFile, point: OperatingPoint, most: int | None = None) -> list[TreeChart]:
    """Each of a book's trees, drawn; of paths, at most ``most``."""
    drawn = []
    for row in ranges(contents, point):
        tree = CandidateTree(row.tree.paths[:most], row.tree.lookup)
        heads = f"{row.tree.heads} head{'s' * (row.tree.heads > 1)}"
        parts = [
            f"{len(row.tree.paths)} paths of {heads}" if tree.paths else "",
            f"lookup of {tree.lookup}" if tree.lookup else "",
        ]
        what = " and ".join(filter(None, parts)) or "plain decoding"
        drawn.append(tree_chart(tree, path_frequencies(contents, tree), f"{row.title}: {what}"))
    return drawn
