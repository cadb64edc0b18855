"""The blocks of a build that is under way: a file each, checked when it goes on, put together at the end."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.dataset import Dataset
from ..errors import RecordError, UserError
from . import storage

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 512  # rows of a row group in what is put together


class Parts:
    """The blocks of an unfinished build, a file each, beside the folder that they will make."""

    def __init__(self, folder: Path, said: dict[str, Any], classes: tuple[str, ...]) -> None:
        self.folder = folder
        self.said = said
        self.classes = classes

    def file(self, number: int) -> Path:
        """Of a block."""
        return self.folder / f"block-{number:05d}.parquet"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within: no other process is at this build. UserError where one is."""
        try:
            self.folder.mkdir(exist_ok=True)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise UserError(f"--out: cannot write {self.folder}: {error.strerror}; give another folder") from error
        with lock:
            try:
                import fcntl
            except ImportError:  # Windows has no flock; there the lock is the user's care.
                yield
                return
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"--out: another process is at this build ({self.folder}); wait for it, or stop it"
                ) from None
            yield

    def has(self, number: int) -> bool:
        """Whether the block is there, made the same way; UserError or RecordError, naming it, for anything else."""
        file = self.file(number)
        if not file.exists():
            return False
        if {**storage.read_said(file), "block": number} != {
            **json.loads(json.dumps({"format": storage.FORMAT, **self.said})),
            "block": number,
        }:
            raise UserError(f"--out: {file} is of another build; it is left alone: move it away to begin anew")
        return True

    def add(self, number: int, columns: dict[str, Any]) -> None:
        """Store a block."""
        kind = self.schema(columns)
        storage.write_table(self.file(number), [storage.table_of(columns, kind)], kind)

    def schema(self, columns: dict[str, Any]) -> pa.Schema:
        """Of a block's rows, with what the build says of itself."""
        import pyarrow as pa

        own = ("image", "label", "source_index", "source_label")
        notes = {name: pa.from_numpy_dtype(values.dtype) for name, values in columns.items() if name not in own}
        return storage.schema(self.classes, self.said, notes)

    def finish(self, folder: Path, test: Dataset | None) -> None:
        """Put the blocks together and let go of them; the training file comes last, so that it says all is there."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        files = sorted(self.folder.glob("block-*.parquet"))
        try:
            tables = [pq.read_table(file) for file in files]
        except (pa.ArrowException, OSError) as error:
            raise RecordError(
                f"a block in {self.folder} cannot be read ({str(error).splitlines()[0]}); move it away to make it again"
            ) from None
        whole = pa.concat_tables(tables)
        if not whole.num_rows:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UserError(
                f"--kind: {self.said['construction']} kept none of {self.said['dataset']['samples']} images; "
                "the network gets them all right: train it less"
            )
        if test is not None:
            real = {**self.said, "construction": "none", "options": {}, "dataset": {"fingerprint": test.fingerprint}}
            storage.write_real(folder / storage.TEST, test, real)
        groups = [whole.slice(start, GROUP) for start in range(0, whole.num_rows, GROUP)]
        storage.write_table(folder / storage.TRAIN, groups, tables[0].schema)
        shutil.rmtree(self.folder, ignore_errors=True)
