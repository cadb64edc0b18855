"""A run as one immutable Parquet file: written whole, read with suspicion, never overwritten by another result."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import RecordError
from .files import write_in_board
from .schema import METADATA_KEY, SCHEMA, VERDICT_COLUMNS
from .specification import Specification

S = TypeVar("S")


@dataclass(frozen=True)
class Run:
    """A specification and its rows; `path` is the file it was read from."""

    specification: Specification
    table: pa.Table
    path: Path | None = field(default=None, compare=False)


def seal(specification: Specification, table: pa.Table) -> Run:
    """The run of these rows: columns in the order and types of SCHEMA, sorted by index, hash noted."""
    table = _canonical(table.select(SCHEMA.names).cast(SCHEMA))
    return Run(dataclasses.replace(specification, rows_sha256=rows_sha256(table)), table)


def rows_sha256(table: pa.Table) -> str:
    """SHA-256 of the values, whatever the order of rows, the chunks and the version of the storage.

    Per column, in the order of SCHEMA: its name and type, which values are null (one byte each), then the
    values as little-endian bytes (null as zero); text as its lengths, then all of it in UTF-8.
    """
    table = _canonical(table)
    digest = hashlib.sha256(str(table.num_rows).encode())
    for column in table.schema:
        values = table[column.name].combine_chunks()
        digest.update(f"|{column.name}:{column.type}|".encode())
        digest.update(np.asarray(values.is_null().to_numpy(zero_copy_only=False), "u1").tobytes())
        if pa.types.is_string(column.type):
            words = [(word or "").encode() for word in values.to_pylist()]
            digest.update(np.asarray([len(word) for word in words], "<i8").tobytes())
            digest.update(b"".join(words))
        else:
            zero = pa.scalar(False if pa.types.is_boolean(column.type) else 0, column.type)
            numbers = values.fill_null(zero).to_numpy(zero_copy_only=False)
            digest.update(numbers.astype("u1" if numbers.dtype == bool else numbers.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _canonical(table: pa.Table) -> pa.Table:
    # The other sort keys decide nothing in a sound run, whose indices are unique.
    keys = [(name, "ascending") for name in table.schema.names]
    return table.take(pc.sort_indices(table, sort_keys=keys)).combine_chunks().replace_schema_metadata(None)


def run_path(directory: Path | str, specification: Specification, *, suffix: str = "") -> Path:
    """`DIRECTORY/runs/RUN_ID[SUFFIX][.shard-I-of-N].parquet`."""
    shard = specification.shard
    tail = f".shard-{shard[0]}-of-{shard[1]}" if shard else ""
    return Path(directory) / "runs" / f"{specification.run_id()}{suffix}{tail}.parquet"


def base_name(path: Path) -> str:
    """The name of a run file without its ending and its shard: RUN_ID, or RUN_ID-2."""
    return re.sub(r"(\.shard-\d+-of-\d+)?\.parquet$", "", path.name)


def name_fault(path: Path, specification: Specification) -> str | None:
    """Why a file's name is not that of its run: it was renamed, or the specification was changed."""
    suffix = base_name(path).removeprefix(specification.run_id())
    # Not merely a prefix: the name is built again from the specification and compared whole.
    if re.fullmatch(r"(-[1-9]\d*)?", suffix) and run_path(Path(), specification, suffix=suffix).name == path.name:
        return None
    return f"the file's name is not that of its specification, {run_path(Path(), specification).name}"


def write_run(directory: Path | str, run: Run, *, suffix: str = "") -> Path:
    """Write the run file below the leaderboard folder, whole or not at all; the bytes depend on the run alone.

    Raises UserError naming --leaderboard where it cannot be written.
    """
    text = run.specification.to_json()
    # What cannot be read back must not be written.
    Specification.from_json(text)
    return write_sealed(run_path(directory, run.specification, suffix=suffix), run.table, METADATA_KEY, text)


def write_sealed(path: Path, table: pa.Table, key: bytes, text: str) -> Path:
    """A table with its specification as a file of a leaderboard folder, whole or not at all."""
    table = table.combine_chunks().replace_schema_metadata({key: text.encode()})

    def write(file: BinaryIO) -> None:
        pq.write_table(table, file, compression="zstd", row_group_size=1 << 16, write_page_checksum=True)

    return write_in_board(path, write)


def read_run(path: str | os.PathLike[str]) -> Run:
    """The run in a file.

    Raises RecordError, in one line that names the file, for one that is corrupt, truncated or foreign, of a
    newer schema version, or whose columns are not those of SCHEMA. What the rows say is for `check_run`.
    """
    specification, table = read_sealed(Path(path), METADATA_KEY, SCHEMA, Specification.from_json, what="run")
    return Run(specification, table, Path(path))


def read_sealed(
    path: Path, key: bytes, schema: pa.Schema, decode: Callable[[bytes], S], *, what: str
) -> tuple[S, pa.Table]:
    """The specification under `key` in a file, and its table with these columns; RecordError as for a run."""
    try:
        with open(path, "rb") as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            text = (file.schema_arrow.metadata or {}).get(key)
            if text is None:
                raise RecordError(f"{path}: a Parquet file, but not a {what} of robustbench-lite")
            specification = decode(text)
            fault = _schema_fault(file.schema_arrow, schema)
            if fault:
                raise RecordError(f"wrong columns: {fault}")
            table = file.read().replace_schema_metadata(None)
            table.validate(full=True)
    except RecordError as error:
        message = str(error)
        raise RecordError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    except FileNotFoundError:
        raise RecordError(f"{path}: no such {what} file") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecordError(f"{path}: corrupt, truncated or no Parquet file ({reason[:120]})") from None
    return specification, table


def _schema_fault(schema: pa.Schema, wanted: pa.Schema) -> str | None:
    missing, foreign = set(wanted.names) - set(schema.names), set(schema.names) - set(wanted.names)
    if missing or foreign:
        words = (("no", missing), ("unknown", foreign))
        return "; ".join(f"{word} {', '.join(sorted(names))}" for word, names in words if names)
    for ours, theirs in zip(wanted, schema, strict=True):
        if not theirs.equals(ours):
            return f"expected {ours}, got {theirs}"
    return None


def settle(directory: Path | str, run: Run) -> tuple[Path, str]:
    """Put a run into a leaderboard folder beside what is there.

    Returns the file and `written`; `reproduced` where a file with the same verdicts is there already (it is
    left as it is); `checked` where this one adds the sanity checks that it lacks; `differs: k of n verdicts` where
    the run is there with others (this one is written beside it under the next free number). A failed run of the same
    name is replaced, and so are the rows of one with the same verdicts where this one names saved examples, which are
    of its own rows. Checks are never lost: of two with the same verdicts those of the one that has them are kept.
    """
    from .verdict import has_checks, take_checks

    path = run_path(directory, run.specification)
    status, number = "written", 1
    while path.exists():
        there = _read_or_none(path)
        if there is not None:
            if there.specification.status == "failed":
                break
            different, total = differing_verdicts(there, run)
            if different == 0:
                known, more = has_checks(there), has_checks(run)
                if run.specification.examples:  # the same verdicts, and now the images of these rows are at hand
                    run = take_checks(run, there) if known and not more else run
                elif known or not more:
                    return path, "reproduced"
                else:
                    run, status = take_checks(there, run), "checked"
                break
            status = f"differs: {different} of {total} verdicts" if status == "written" else status
        number += 1
        path = run_path(directory, run.specification, suffix=f"-{number}")
    return write_run(directory, run, suffix=f"-{number}" if number > 1 else ""), status


def _read_or_none(path: Path) -> Run | None:
    try:
        return read_run(path)
    except RecordError:
        return None


def differing_verdicts(one: Run, other: Run) -> tuple[int, int]:
    """On how many samples two runs disagree, of how many either has."""
    rows = [
        dict(zip(run.table["index"].to_pylist(), zip(*columns, strict=True), strict=True))
        for run in (one, other)
        for columns in [[run.table[name].to_pylist() for name in VERDICT_COLUMNS]]
    ]
    indices = rows[0].keys() | rows[1].keys()
    return sum(rows[0].get(i) != rows[1].get(i) for i in indices), len(indices)
