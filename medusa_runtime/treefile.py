"""tree.json: read, check and write the file that carries a planned tree. NumPy only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from math import log
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, Strict, ValidationInfo

from .acceptance.rules import GREEDY, RuleJson, rule_json
from .book import Lookup, TreeBook
from .errors import InputError
from .files import write_beside
from .reading import Count, Number, Object, Share, Text, Whole, one_of, read_as, read_json, shown
from .tree import LONGEST_CHAIN, CandidateTree, check_paths

FORMAT, MAJOR, MINOR = "medusa-tree", 1, 3
MEND = "write the file again with medusa-tree calibrate or plan"


def _a_row_a_head(value: Any, info: ValidationInfo) -> Any:
    heads, candidates = info.data.get("heads"), info.data.get("candidates")
    rows = value if isinstance(value, list | tuple) else []
    lengths = [len(row) if isinstance(row, list | tuple) else -1 for row in rows]
    if None not in (heads, candidates) and (len(lengths) != heads or set(lengths) - {candidates}):
        raise InputError(f"must be a list of {heads} rows, one a head, of {candidates} numbers each")
    return value


# check_paths and _check_point see to what the schema says here.
Ordinal = Annotated[int, Strict(), Field(json_schema_extra={"minimum": 0})]
Paths = Annotated[
    tuple[Annotated[tuple[Ordinal, ...], Field(json_schema_extra={"minItems": 1})], ...],
    AfterValidator(check_paths),
    Field(json_schema_extra={"uniqueItems": True}),
]


@dataclass(frozen=True)
class Estimate:
    """A predicted figure and its interval."""

    value: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class BookTree:
    """One tree of a book: heads' paths, and behind the root a chain of looked-up tokens."""

    match: Annotated[Count, Field(description="Least match length from which it is used.")]
    paths: Annotated[
        tuple[Ordinal, ...],
        Field(description="Numbers of its paths, from 0.", json_schema_extra={"uniqueItems": True}),
    ]
    lookup: Annotated[Count, Field(le=LONGEST_CHAIN, description="Looked-up tokens in its chain.")]
    share: Annotated[Share, Field(description="Of the steps, predicted.")] = 0.0


@dataclass(frozen=True)
class Drafted:
    """Accepted tokens a step, predicted, by who drafted them: a step keeps the deeper of the two families."""

    both: Annotated[Number, Field(ge=0, description="By either alone.")]
    heads: Annotated[Number, Field(ge=0, description="By the heads alone.")]
    lookup: Annotated[Number, Field(ge=0, description="By the lookup alone.")]


@dataclass(frozen=True)
class Book:
    """Heads and lookup together: a few trees, each for a range of match lengths, and what to expect of them."""

    lookup: Lookup
    trees: Annotated[tuple[BookTree, ...], Field(min_length=1)]
    acceptance_length: Annotated[Estimate, Field(description="Tokens a step, by replay on held-out sequences.")]
    step_latency_ms: Annotated[Estimate, Field(description="Over the trees as they are used.")]
    tokens_per_s: Annotated[Estimate, Field(description="Over the whole batch.")]
    speedup: Annotated[Estimate, Field(description="Over plain decoding by the same runtime.")]
    over_heads: Annotated[Estimate, Field(description="Tokens/s over the point's own tree, paired.")]
    drafted: Drafted


@dataclass(frozen=True)
class OperatingPoint:
    """What to run at one batch and context, and what to expect of it.

    The tree is the first ``nodes`` paths no deeper than ``depth``, or the paths numbered in ``own`` where it needs an
    order of its own; 0 nodes: plain decoding is fastest. All figures are of this tree; of the ``book`` it has its own.
    """

    batch: Whole
    context: Annotated[Whole, Field(description="Tokens in the KV cache.")]
    nodes: Count
    depth: Count
    acceptance_length: Annotated[Estimate, Field(description="Tokens a step, by replay on held-out sequences.")]
    step_latency_ms: Estimate
    tokens_per_s: Annotated[Estimate, Field(description="Over the whole batch.")]
    speedup: Annotated[Estimate, Field(description="Over plain decoding by the same runtime.")]
    latency: Annotated[str, one_of("measured", "modelled"), Field(description="Where the times come from.")]
    limit: Annotated[
        Text, Field(description="Bounds of the budget without which another tree would be faster; empty: none.")
    ] = ""
    own: Annotated[
        tuple[Ordinal, ...] | None,
        Field(
            description="Numbers of the point's paths, from 0, where it is no prefix of the order; null where it is.",
            json_schema_extra={"uniqueItems": True},
        ),
    ] = None
    why_own: Annotated[Text, Field(description="Why it is no prefix.")] = ""
    engine: Annotated[Object, Field(description="Settings of the engine that it was planned for; empty: none.")] = (
        field(default_factory=dict, hash=False)
    )
    book: Annotated[
        Book | None,
        Field(
            description="Since 1.3, for runtimes that look up: what is faster than the tree alone; null where nothing is, or was asked for."
        ),
    ] = None


@dataclass(frozen=True)
class TreeFile:
    """The contents of tree.json; the descriptions of the fields are those of the published schema, see :mod:`medusa_runtime.schema`."""

    paths: Annotated[
        Paths,
        Field(
            description="Nodes in greedy order, so that every prefix is the best tree of its size, as far as it was planned and where no "
            "engine bounds it; each a list of ranks, one a head; 0 is a head's first guess. The root, the model's own next token, is implied."
        ),
    ]
    path_frequency: Annotated[
        tuple[Share, ...],
        Field(
            description="One a path: the estimated fraction of positions whose tokens follow it; never rising; under typical acceptance "
            "what the node adds to the accepted length, where it may rise behind an ancestor taken for its sake."
        ),
    ]
    heads: Annotated[Count, Field(description="H, heads profiled; 0 where lookup alone was planned, since 1.3.")]
    candidates: Annotated[Whole, Field(description="K, candidates kept a head.")]
    head_accuracy: Annotated[
        tuple[tuple[Share, ...], ...],
        BeforeValidator(_a_row_a_head),
        Field(description="(H, K): the fraction of positions at which the emitted token has that rank at that head."),
    ]
    operating_points: Annotated[tuple[OperatingPoint, ...], Field(min_length=1)]
    provenance: Annotated[
        Object, Field(description="Model, heads, corpus, device, versions and date: what is needed to make it again.")
    ] = field(default_factory=dict)
    acceptance: Annotated[
        RuleJson, Field(description="The rule under which it was calibrated; since 1.2, greedy where it is missing.")
    ] = GREEDY

    def point(self, batch: int = 1, context: int | None = None) -> OperatingPoint:
        """The operating point of the batch and context, or of the nearest ones planned for, as ratios (3 is nearer to 4
        than to 2, and of two as near the larger is taken: its tree is the more careful); without a context the shortest."""

        def away(p: OperatingPoint) -> tuple[float, ...]:
            from_context = 0.0 if context is None else abs(log(p.context / context))
            return abs(log(p.batch / batch)), -p.batch, from_context, p.context

        return min(self.operating_points, key=away)

    def tree(self, batch: int = 1, context: int | None = None) -> CandidateTree:
        """The heads' tree for this batch and context, for engines that do not look up; empty where plain decoding is fastest."""
        return self.tree_of(self.point(batch, context))

    def book(self, batch: int = 1, context: int | None = None, beside: tuple[int, ...] = ()) -> TreeBook:
        """What to run at this batch and context; ``beside`` are the tokens of the user's text that it looks up in, if it does."""
        return self.book_of(self.point(batch, context), beside)

    def tree_of(self, point: OperatingPoint) -> CandidateTree:
        """An operating point's tree."""
        if point.own is not None:
            return CandidateTree(tuple(self.paths[i] for i in point.own))
        return CandidateTree(self.paths).cut(point.nodes, point.depth)

    def book_of(self, point: OperatingPoint, beside: tuple[int, ...] = ()) -> TreeBook:
        """An operating point's book; that of its tree alone where it has none. ``beside``: the tokens of the text that it looks up in besides,
        if it does."""
        if point.book is None:
            return TreeBook.of(self.tree_of(point))
        trees = tuple(CandidateTree(tuple(self.paths[i] for i in t.paths), t.lookup) for t in point.book.trees)
        beside = beside if point.book.lookup.file is not None else ()  # another point's
        return TreeBook(trees, tuple(t.match for t in point.book.trees), point.book.lookup, beside)


def write_tree(path: Path, tree: TreeFile) -> None:
    """Write tree.json, one path a line, so that it can be read and compared."""
    body = {"format": FORMAT, "version": f"{MAJOR}.{MINOR}", **asdict(tree), "acceptance": rule_json(tree.acceptance)}
    lines = [f"  {json.dumps(key)}: {_layout(key, value)}" for key, value in body.items()]
    with write_beside(path) as beside:
        beside.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def _layout(key: str, value: Any) -> str:
    if key in ("paths", "head_accuracy", "operating_points"):
        return "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
    return json.dumps(value, indent=2).replace("\n", "\n  ") if key == "provenance" else json.dumps(value)


def read_tree(path: Path | str) -> TreeFile:
    """Read and check tree.json.

    Raises:
        InputError: names the file, the field or path, and the mend: not there, not JSON or cut short, another
            format or major version, a field that is missing, of a wrong type or out of range, a path without its
            parent, a duplicate path, a path deeper than the heads, an operating point beyond the paths.
    """
    path = Path(path)
    data = read_json(path, MEND)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f'{path}: field "format" is not "{FORMAT}"; this is no tree.json of medusa-tree')
    version = data.get("version")
    if not isinstance(version, str) or version.split(".")[0] != str(MAJOR):
        raise InputError(
            f'{path}: field "version" is {shown(version)}, this medusa-tree reads {MAJOR}.x; update it, or plan the tree again'
        )
    tree = read_as(TreeFile, data, str(path), MEND)
    _check_ranks(tree, path)
    for i, point in enumerate(tree.operating_points):
        _check_point(point, tree, f'{path}: field "operating_points", entry {i}')
    return tree


def _check_ranks(tree: TreeFile, path: Path) -> None:
    for i, p in enumerate(tree.paths):
        if max(p) >= tree.candidates:
            raise InputError(
                f'{path}: field "paths": path {i}, {list(p)}, uses rank {max(p)}, but only {tree.candidates} candidates a head were profiled; drop it'
            )
        if len(p) > tree.heads:
            raise InputError(
                f'{path}: field "paths": path {i}, {list(p)}, is {len(p)} deep, but there are {tree.heads} heads; drop it'
            )
    if len(tree.path_frequency) != len(tree.paths):
        raise InputError(f'{path}: field "path_frequency" must be a list of {len(tree.paths)} numbers, one a path')


def _check_point(point: OperatingPoint, tree: TreeFile, here: str) -> None:
    nodes = len(tree.paths)
    if point.nodes > nodes or point.depth > tree.heads:
        raise InputError(
            f"{here}: {point.nodes} nodes, depth {point.depth}, but the file has {nodes} paths and {tree.heads} heads"
        )
    own = point.own
    if own is not None and not (len(own) == len(set(own)) == point.nodes and all(0 <= i < nodes for i in own)):
        raise InputError(f'{here}: "own" must be {point.nodes} different numbers of paths, 0..{nodes - 1}')
    try:
        tree.tree_of(point)
    except InputError as error:
        raise InputError(f'{here}: "own": {error}') from None
    if point.book is None:
        return
    for t, told in enumerate(point.book.trees):
        mine = f'{here}: "book", "trees", entry {t}'
        if any(not 0 <= i < nodes for i in told.paths):
            raise InputError(f'{mine}: "paths" must be numbers of paths, 0..{nodes - 1}; {MEND}')
        if (
            orphan := next(
                (
                    i
                    for i in told.paths
                    if len(p := tree.paths[i]) > 1 and p[:-1] not in {tree.paths[j] for j in told.paths}
                ),
                None,
            )
        ) is not None:
            raise InputError(f'{mine}: "paths" has {orphan}, {list(tree.paths[orphan])}, without its parent; {MEND}')
    try:
        tree.book_of(point)
    except InputError as error:
        raise InputError(f'{here}: "book": {error}; {MEND}') from None
