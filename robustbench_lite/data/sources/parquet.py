"""Image data sets in Parquet, as the Hugging Face hub lays them out."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from ...errors import UserError
from ..dataset import Dataset, StreamDataset, listing_hash
from ..decode import Framing, choose_fit, framing_used
from ..labels import classes_in, read_labels
from ..layout import WANTED, split_name
from ..reading import Reading
from ..source import path_argument, recorded_name

IMAGE_COLUMNS = ("image", "img", "images")
LABEL_COLUMNS = ("label", "labels", "fine_label")
MEMORY = 2_000_000_000  # bytes decoded; a larger set is streamed


class Parquet:
    """PATH is a folder with {split}-*.parquet (also in data/), or one file; decoded into memory up to 2 GB.

    Columns: `image` (or `img`), struct<bytes, path> or binary; `label` (or `labels`, `fine_label`), int64.
    Classes from the schema's `huggingface` metadata, else the largest label of all splits plus one.
    Images of several sizes and colours are brought to one shape as `folder` does.
    """

    name: ClassVar[str] = "parquet"
    summary: ClassVar[str] = "Hugging Face image data sets: parquet:PATH, a folder with {split}-*.parquet or a file."
    source: ClassVar[str] = (
        "Lhoest et al. 2021, Datasets: a community library for NLP, arXiv:2109.02846 (its Image feature)"
    )

    @staticmethod
    def load(
        argument: str | None,
        *,
        split: str,
        data_dir: Path | None,
        download: bool,
        image_size: int | None,
        workers: int,
        framing: Framing | None = None,
    ) -> Dataset:
        """The images of PATH."""
        del data_dir, download
        path = path_argument("parquet", argument)
        files, others = find_files(path, split)
        tables = [_Table.read(file) for file in files]
        if len({(table.image, table.label) for table in tables}) > 1:
            raise UserError(f"--dataset: the files {files[0].name} ... in {path} differ in their columns")
        where = f"--dataset: parquet:{argument}: {tables[0].label}"
        values = np.concatenate([table.labels for table in tables])
        if not len(values):
            raise UserError(f"--dataset: parquet:{argument} must hold at least one image, got 0 rows")
        names, notes, question = _classes(where, tables, others)
        labels, of_labels = read_labels(where, values, count=len(values), classes=len(names), names=names)
        rows = ParquetRows(tuple(files), tables[0].image, tuple(g for t in tables for g in t.groups(files)))
        fit = choose_fit(rows, len(labels), image_size=image_size, framing=framing)
        used = framing_used(fit, framing)
        reading = Reading(notes=(*notes, *of_labels), question=question, framing=used)
        sizes = [file.stat().st_size for file in files]
        fingerprint = listing_hash([file.name for file in files], sizes, labels, fit)
        name = recorded_name("parquet", path)
        stream = StreamDataset(
            name, split, tuple(names), fit.shape, labels, fingerprint, rows, fit, workers, reading=reading
        )
        return stream.in_memory() if len(labels) * np.prod(fit.shape) <= MEMORY else stream


@dataclass(frozen=True)
class ParquetRows:
    """The encoded images of Parquet files, by number over all of them."""

    files: tuple[Path, ...]
    column: str
    groups: tuple[tuple[int, int, int], ...] = field(repr=False)  # file, group in it, rows

    @functools.cached_property
    def _ends(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.cumsum([rows for _, _, rows in self.groups])

    def _find(self, i: int) -> tuple[Path, int, int]:
        g = int(np.searchsorted(self._ends, i, side="right"))
        file, group, rows = self.groups[g]
        return self.files[file], group, i - int(self._ends[g]) + rows

    def open(self, i: int) -> BinaryIO:
        """The i-th image's bytes."""
        file, group, row = self._find(i)
        data = _row_group(file, file.stat().st_mtime_ns, group, self.column)[row].as_py()
        if not data:
            raise OSError("its bytes are not in the file; embed them")
        return io.BytesIO(data)

    def where(self, i: int) -> str:
        """Its file, and its row there."""
        file, group, row = self._find(i)
        before = sum(rows for f, g, rows in self.groups if self.files[f] == file and g < group)
        return f"row {before + row} of {file}"


@functools.lru_cache(maxsize=2)
def _row_group(file: Path, _changed: int, group: int, column: str) -> Any:
    """A row group's encoded images, kept until the file changes: neighbours are asked for one after the other."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        images = parquet.read_row_group(group, columns=[column], use_threads=False).column(0)
    return images if _is_bytes(images.type) else pc.struct_field(images, "bytes")


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@dataclass(frozen=True)
class _Table:
    """What one file says besides its images."""

    file: Path
    image: str
    label: str
    labels: np.ndarray[Any, np.dtype[Any]]
    classes: list[str] | None
    rows: tuple[int, ...]

    def groups(self, files: Sequence[Path]) -> list[tuple[int, int, int]]:
        return [(files.index(self.file), group, rows) for group, rows in enumerate(self.rows)]

    @staticmethod
    def read(file: Path) -> _Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(file) as parquet:
                schema = parquet.schema_arrow
                image = _column(file, schema, IMAGE_COLUMNS, "images, struct<bytes, path>")
                label = _column(file, schema, LABEL_COLUMNS, "labels, int64")
                column = parquet.read(columns=[label]).column(0)
                metadata = parquet.metadata
                rows = tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"--dataset: {file} is not a readable Parquet file ({reason})") from error
        kind = schema.field(image).type
        if not _is_bytes(kind) and not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
            raise UserError(f"--dataset: {file}: {image} must be struct<bytes, path> or binary, got {kind}")
        if column.null_count:
            raise UserError(f"--dataset: {file}: {label} must not be null, got {column.null_count} nulls")
        values = np.asarray(column.to_pylist()) if pa.types.is_nested(column.type) else column.to_numpy()
        return _Table(file, image, label, values, _class_names(schema, label), rows)


def _column(file: Path, schema: Any, names: Sequence[str], what: str) -> str:
    for name in names:
        if name in schema.names:
            return name
    has = ", ".join(schema.names)
    raise UserError(f"--dataset: {file} must have a column {' or '.join(names)} ({what}); it has {has}")


def _class_names(schema: Any, label: str) -> list[str] | None:
    """The names that the hub keeps with a ClassLabel, where they are there and are names."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (TypeError, KeyError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def _classes(
    where: str, tables: Sequence[_Table], others: Sequence[Path]
) -> tuple[list[str], tuple[str, ...], str | None]:
    """The classes' names: those of the schema, else of the labels of all splits; with notes and an open question."""
    if tables[0].classes:
        return tables[0].classes, (), None
    every = [table.labels for table in (*tables, *map(_Table.read, others)) if len(table.labels)]
    classes, notes, question = classes_in(where, every)
    return [str(i) for i in range(classes or 0)] if not isinstance(classes, list) else classes, notes, question


def find_files(path: Path, split: str) -> tuple[list[Path], list[Path]]:
    """The files of a split, sorted, and those of the other splits. Raises UserError where there are none."""
    if path.is_file():
        if split == "train" and _split_of(path) != "train":
            raise UserError(
                f"--dataset: parquet:{path} is one file, taken for test, so nothing to train on; "
                "give the folder that holds train-*.parquet too"
            )
        return [path], []
    folder = next((f for f in (path, path / "data") if f.is_dir() and any(f.glob("*.parquet"))), None)
    if folder is None:
        raise UserError(f"--dataset: parquet:{path} must hold {{split}}-*.parquet, there or in data/; found none")
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        files.setdefault(_split_of(file), []).append(file)
    for name in WANTED[split]:
        if name in files:
            return files[name], [f for other, fs in files.items() if other != name for f in fs]
    wanted = " or ".join(f"{name}-*.parquet" for name in WANTED[split])
    has = ", ".join(file.name for fs in files.values() for file in fs[:1])
    raise UserError(f"--dataset: parquet:{path} must hold {wanted} for split {split}; it holds {has}")


def _split_of(file: Path) -> str:
    name = file.stem.partition("-")[0]
    return split_name(name) or name
