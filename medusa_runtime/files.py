"""Writing files whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` when all went well, removed when not.

    It has the same name in a hidden folder of its own, so that writers side by side do not meet, and that a writer that looks at
    the ending sees the right one. A new file gets the mode that any new file gets here, and one that was there keeps its own.

    Raises:
        InputError: the folder does not exist or cannot be written to.
    """
    try:
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name[:32]}.", suffix=".tmp", ignore_cleanup_errors=True
        ) as folder:
            beside = Path(folder) / path.name
            yield beside
            if path.is_file():
                shutil.copymode(path, beside)
            os.replace(beside, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); make the folder or choose another"
        ) from None
