"""Tables of rows by the libraries that know their forms: Hugging Face datasets, and Parquet files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medusa_runtime.errors import InputError

DATASET = "hf:"
NEEDED = "needs a library: pip install 'medusa-tree[datasets]'"
BATCH = 256  # rows of a Parquet file in memory at a time


def read_dataset(name: str) -> Iterator[tuple[str, Any]]:
    """(where it stands, the row) of a Hugging Face dataset: ``hf:OWNER/NAME[@CONFIG][:SPLIT]``, the split as the datasets library
    writes it (``train[:500]``); without one its only split. A folder of data files serves for OWNER/NAME.

    Raises:
        InputError: the library is not installed, the dataset is not to be had, or it has several splits.
    """
    match = re.fullmatch(rf"{DATASET}(?P<name>[^@:]+)(@(?P<config>[^:]+))?(:(?P<split>.+))?", name)
    if match is None:
        raise InputError(f"{name}: is no hf:OWNER/NAME[@CONFIG][:SPLIT]")
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name}: reading datasets {NEEDED}") from None
    try:
        found = datasets.load_dataset(match["name"], match["config"], split=match["split"])
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{name}: cannot be loaded ({str(error.__cause__ or error).splitlines()[0]})") from None
    if match["split"] is None:
        if len(found) > 1:
            raise InputError(f"{name}: has the splits {', '.join(found)}; name one, as in {name}:{next(iter(found))}")
        (found,) = found.values()
    for i, row in enumerate(found):
        yield f"{name}, row {i}", row


def read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, the row) of each row of a Parquet file, a batch of them in memory at a time.

    pyarrow comes with the datasets library, which reads such files by it; here nothing is copied into a cache first.

    Raises:
        InputError: the library is not installed, or the file cannot be read.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{path}: reading Parquet {NEEDED}") from None
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(BATCH) for row in batch.to_pylist())
            for i, row in enumerate(rows):
                yield f"{path}, row {i}", row
    except (OSError, ValueError, ArrowException) as error:
        raise InputError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
