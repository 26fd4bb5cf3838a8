"""A text of the user's own that is looked up in: read, made tokens of, and known again by the digest of these."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medusa_runtime.book import Lookup
from medusa_runtime.decode import check_tokens
from medusa_runtime.errors import InputError
from medusa_runtime.model import MedusaModel
from medusa_runtime.treefile import TreeFile

from ..traces.beside import Beside
from .tokens import text_tokens


def read_beside(path: Path, model: MedusaModel) -> Beside:
    """The tokens of a text file by the model's tokenizer, without special ones.

    Raises:
        InputError: it cannot be read, is no UTF-8, or makes no tokens, or such as the model does not have.
    """
    here = f"--lookup-file {path}"
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{here}: byte {error.start} is not UTF-8; give a text file") from None
    except OSError as error:
        raise InputError(f"{here}: cannot be read ({error.strerror}); give a text file") from None
    ids = text_tokens(model.tokenizer, text, here, special=False)
    if not ids:
        raise InputError(
            f"{here}: makes no tokens, so that nothing could be looked up in it; give another, or leave it out"
        )
    check_tokens([ids], model.vocab_size, model.name, [here])
    return Beside(np.array(ids, dtype=np.int32), str(path))


def named_by(contents: TreeFile) -> Lookup | None:
    """The lookup of a tree's books that has such a text, if any."""
    lookups = [p.book.lookup for p in contents.operating_points if p.book is not None]
    return next((lookup for lookup in lookups if lookup.file is not None), None)


def read_again(named: Lookup | None, tree: str, given: Path | None, model: MedusaModel) -> tuple[int, ...]:
    """The tokens that a tree's books look up in besides: of the file ``given``, or of the one that is ``named``.

    Args:
        tree: its file, for errors.

    Raises:
        InputError: see :func:`read_beside`; a text of another digest, or one given that the tree knows nothing of.
    """
    if named is None or named.file is None:
        if given is not None:
            raise InputError(
                f"--lookup-file {given}: {tree} was planned without one; leave it out, or calibrate with it"
            )
        return ()
    found = read_beside(given or Path(named.file), model)
    if found.digest != named.digest:
        raise InputError(
            f'--lookup-file {found.file}: its tokens have digest {_short(found.digest)}, and {tree}, "book", "lookup", "digest", has '
            f"{_short(named.digest)}; give the text of then, or calibrate again"
        )
    return found.tokens


def _short(digest: str | None) -> str:
    return (digest or "none").removeprefix("sha256:")[:12]
