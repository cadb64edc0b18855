"""A leaderboard folder: `leaderboard.parquet` derived from `runs/*.parquet`, merged and verified."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RecordError, UserError
from ..records.certificate import FOLDER, Certificate, certificate_files, sound_certificate, sound_certificates
from ..records.contradiction import certified_beside, refute
from ..records.files import board_folder, make_folder, write_in_board
from ..records.run import Run, differing_verdicts, settle
from ..records.schema import METADATA_KEY
from ..records.shards import assemble, incomplete, is_part, is_shard, run_files, sound_run
from ..records.summary import SUMMARY_SCHEMA, summarize
from ..records.verdict import has_checks

if TYPE_CHECKING:
    import pandas as pd

FILE = "leaderboard.parquet"
_METADATA = {METADATA_KEY: b'{"leaderboard": 1}'}
_ORDER = ("dataset", "split", "norm", "eps", "model", "defense", "attack", "target", "seed", "run_id")


@dataclass(frozen=True)
class Merged:
    """What a merge did: names of the files copied, the runs put together, the board, what was left out."""

    copied: list[str]
    assembled: list[Path]
    frame: pd.DataFrame
    problems: list[str]


def derive(directory: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """The leaderboard of all sound runs, one row a run, and the faults of the other files; writes nothing.

    Raises UserError where `directory` is no folder, RecordError where a run refutes a certificate.
    """
    table, problems = _derive(board_folder(directory))
    return table.to_pandas(), problems


def build(directory: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """Put shards together where all are there, derive the leaderboard and write it whole.

    Corrupt, foreign and faulty files are named in the problems and left alone, a foreign
    `leaderboard.parquet` too. Raises UserError where `directory` is no folder or cannot be written, RecordError where
    a run refutes a certificate.
    """
    folder = board_folder(directory)
    _, problems = assemble(folder)
    frame, others = _build(folder)
    return frame, list(dict.fromkeys(problems + others))


def _build(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    table, problems = _derive(folder)
    path = folder / FILE
    stored = _stored(path)
    if stored == "foreign":
        problems.append(f"{path}: corrupt, or not a leaderboard of robustbench-lite; move it away and build again")
    elif not isinstance(stored, pa.Table) or not stored.equals(table):
        write_in_board(path, lambda file: _write(file, table))
    return table.to_pandas(), problems


def _write(file: BinaryIO, table: pa.Table) -> None:
    pq.write_table(table.replace_schema_metadata(_METADATA), file, compression="zstd", write_page_checksum=True)


def _stored(path: Path) -> Any:
    """The table of a stored leaderboard, None where there is no file, "foreign" where it is not ours."""
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError, ValueError):
        return "foreign"
    ours = METADATA_KEY in (table.schema.metadata or {})
    return table.replace_schema_metadata(None) if ours else "foreign"


def _derive(folder: Path, *, as_written: bool = False) -> tuple[pa.Table, list[str]]:
    """The table and the faults; as_written: with the verdicts as the run files have them, in the words of their day."""
    certificates, problems = sound_certificates(folder)
    rows = []
    for path in run_files(folder):
        if is_shard(path):
            continue
        try:
            run = sound_run(path)
        except RecordError as error:
            problems.append(str(error))
            continue
        refute(certificates=certificates, runs=[run])
        row = {**summarize(run, run_id=path.stem), **certified_beside(run, certificates)}
        rows.append({**row, "verdict": run.specification.verdict} if as_written else row)
    rows.sort(key=lambda row: tuple((row[name] is not None, row[name]) for name in _ORDER))
    return pa.Table.from_pylist(rows, schema=SUMMARY_SCHEMA), problems


def merge(directory: str | Path, other: str | Path) -> Merged:
    """Copy the sound run files of another leaderboard folder that this one lacks, then put together and build.

    A file with a name that is here already is not copied: with the same verdicts it is the same run, with
    others it is a problem; a failed run gives way to one that is not, and sanity checks that a run
    here lacks are taken over. Raises UserError where `other` holds no runs, is this folder, or this one cannot be
    written.
    """
    source = Path(other).expanduser()
    if not (source / "runs").is_dir():
        raise UserError(f"merge OTHER must be a leaderboard folder (with a folder runs in it), got {str(other)!r}")
    folder = Path(directory).expanduser()
    if folder.exists():
        board_folder(folder)
        if folder.resolve() == source.resolve():
            raise UserError(f"merge OTHER must be another folder than --leaderboard, got {str(other)!r} for both")
    copied, problems = [], []
    for path in run_files(source):
        target = folder / "runs" / path.name
        try:
            run = sound_run(path)
            if _adds_checks(run, target):
                settle(folder, run)
                copied.append(path.name)
            elif not _is_here(folder, run, target):
                write_in_board(target, lambda file, path=path: _copy(path, file))  # type: ignore[misc]
                copied.append(path.name)
        except RecordError as error:
            problems.append(f"not copied: {error}")
    for path in certificate_files(source):
        target = folder / FOLDER / path.name
        try:
            if _is_new(sound_certificate(path), target):
                write_in_board(target, lambda file, path=path: _copy(path, file))  # type: ignore[misc]
                copied.append(path.name)
        except RecordError as error:
            problems.append(f"not copied: {error}")
    make_folder(folder)
    assembled, faults = assemble(folder)
    frame, others = _build(folder)
    return Merged(copied, assembled, frame, list(dict.fromkeys(problems + faults + others)))


def _copy(path: Path, file: BinaryIO) -> None:
    with open(path, "rb") as source:
        shutil.copyfileobj(source, file)


def _is_new(certificate: Certificate, target: Path) -> bool:
    """Whether this leaderboard lacks the certificate; RecordError where it holds the same with other rows."""
    if not target.exists():
        return True
    if sound_certificate(target).specification.rows_sha256 != certificate.specification.rows_sha256:
        raise RecordError(f"{certificate.path}: {target.name} is here with other rows")
    return False


def _adds_checks(run: Run, target: Path) -> bool:
    """Whether the same run is here with the same verdicts, and without the sanity checks that this one has."""
    if not target.exists() or not has_checks(run):
        return False
    here = sound_run(target)
    return not has_checks(here) and differing_verdicts(here, run)[0] == 0


def _is_here(folder: Path, run: Run, target: Path) -> bool:
    """Whether this leaderboard holds the run; RecordError where it holds the same with other verdicts."""
    if target.exists():
        here = sound_run(target)
        if here.specification.status == "failed" and run.specification.status != "failed":
            return False
        different, total = differing_verdicts(here, run)
        if different and run.specification.status != "failed":
            raise RecordError(f"{run.path}: {target.name} is here with {different} of {total} verdicts different")
        return True
    whole = folder / "runs" / f"{run.specification.run_id()}.parquet"
    if not is_shard(target) or not whole.exists():
        return False
    here = sound_run(whole)
    return here.specification.status == "complete" and is_part(run, here)


def verify(directory: str | Path) -> list[str]:
    """Every fault of a leaderboard folder; none where each number follows from the rows.

    Reads and checks each run file, names runs whose shards are not all there, derives the leaderboard again
    and compares it with the stored one. Changes nothing. Raises UserError where `directory` is no folder.
    """
    folder = board_folder(directory)
    table, problems = _derive(folder)
    for path in filter(is_shard, run_files(folder)):
        try:
            sound_run(path)
        except RecordError as error:
            problems.append(str(error))
    problems += incomplete(folder)
    path = folder / FILE
    stored = _stored(path)
    if stored is None:
        problems.append(f"{path}: not there; build it with rbl leaderboard build")
    elif isinstance(stored, str):
        problems.append(f"{path}: corrupt, or not a leaderboard of robustbench-lite")
    elif not stored.equals(table) and not stored.equals(_derive(folder, as_written=True)[0]):
        problems.append(f"{path}: {_difference(stored, table)}; build it again with rbl leaderboard build")
    return problems


def _difference(stored: pa.Table, derived: pa.Table) -> str:
    if not stored.schema.equals(derived.schema):
        return "its columns are not those of a leaderboard"
    rows = [{row["run_id"]: row for row in table.to_pylist()} for table in (stored, derived)]
    for word, (one, two) in (("lists runs that are not sound or not there", rows), ("lacks", rows[::-1])):
        if one.keys() - two.keys():
            return f"it {word}: {', '.join(sorted(one.keys() - two.keys())[:3])}"
    for run_id, row in rows[1].items():
        for name, value in row.items():
            if rows[0][run_id][name] != value:
                return f"{name} of {run_id} is {rows[0][run_id][name]}, its rows give {value}"
    return "its rows are in another order"
