"""Who drafts, on the command line: the model's heads, the text itself, or both; and a text of the user's own beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import FILE, stderr
from .model import ModelSource

if TYPE_CHECKING:
    from medusa_runtime.model import MedusaModel
    from medusa_runtime.treefile import TreeFile
    from medusa_tree.traces.beside import Beside

from medusa_tree.drafters import BOTH, DRAFTS, HEADS, LOOKUP

drafts_option = click.option(
    "--drafts",
    type=click.Choice(DRAFTS),
    default=BOTH,
    show_default=True,
    help="Who drafts: the heads, lookup in the text itself, or both, where a model without heads has lookup alone.",
)
lookup_file_option = click.option(
    "--lookup-file", type=FILE, help="A text of your own to look up in, besides prompt and output."
)
used_lookup_file_option = click.option(
    "--lookup-file", type=FILE, help="The text of your own that the tree looks up in.  [default: where the tree says]"
)


def load_drafting(source: ModelSource, drafts: str) -> MedusaModel:
    """The model with the heads that ``drafts`` asks for: with both, those that there are.

    Raises:
        InputError: see :meth:`ModelSource.load`; or heads are named that are not to draft.
    """
    from medusa_runtime.errors import InputError

    if drafts == LOOKUP and source.heads is not None:
        raise InputError(f"--heads {source.heads}: --drafts lookup loads none; leave out one of the two")
    model = source.load({HEADS: True, LOOKUP: False, BOTH: None}[drafts])
    if drafts == BOTH and model.heads is None:
        stderr().print(
            f"No Medusa heads lie with {source.model}, and --heads names none: going on with lookup alone.",
            soft_wrap=True,
        )
    return model


def own_text(path: Path | None, model: MedusaModel) -> Beside | None:
    """The text of --lookup-file, if it is given."""
    from medusa_tree.profiling.beside import read_beside

    return None if path is None else read_beside(path, model)


def tree_text(
    contents: TreeFile, tree: str, given: Path | None, model: MedusaModel, kept: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """The tokens of the user's own text that a tree looks up in: of the file ``given``, or as they were ``kept`` with its calibration, or of the
    file that it names; none where it has none, or where that is gone, which is said.

    Raises:
        InputError: it is another text, or one is given that the tree knows nothing of.
    """
    from medusa_tree.profiling.beside import named_by, read_again

    named = named_by(contents)
    if given is None and kept:
        return kept
    if given is None and named is not None and named.file is not None and not Path(named.file).is_file():
        stderr().print(
            f"[yellow]{named.file}, which {tree} looks up in, is gone: lookup goes on in the text alone; --lookup-file says where it is.[/yellow]",
            soft_wrap=True,
        )
        return ()
    return read_again(named, tree, given, model)
