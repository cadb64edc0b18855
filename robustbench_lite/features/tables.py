"""Tables of results as files: CSV, or Parquet with what decided them in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import check_output, write_whole
from .storage import KEY

if TYPE_CHECKING:
    import pandas as pd

ARGUMENT = "--out"


def check_table(path: Path) -> None:
    """Raise UserError, before a long run, where its table could not be written after it."""
    check_output(path, argument=ARGUMENT, suffix=(".parquet", ".csv"))


def save_table(path: Path, frame: pd.DataFrame, said: Mapping[str, Any]) -> None:
    """Write the rows whole or not at all; CSV has the rows alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".csv":
        write_whole(path, lambda temporary: frame.to_csv(temporary, index=False))
        return
    table = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = {**(table.schema.metadata or {}), KEY: json.dumps(said, sort_keys=True).encode()}
    write_whole(path, lambda temporary: pq.write_table(table.replace_schema_metadata(metadata), temporary))


def load_table(path: Path, *, argument: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of a Parquet file that `save_table` wrote, and what decided them. UserError for any other file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        said = json.loads((table.schema.metadata or {})[KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise UserError(f"{argument}: {str(path)!r} is no table that rbl features wrote; give one of --out") from None
    return table.to_pandas(), said


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain JSON values; what is not a number is null."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows
