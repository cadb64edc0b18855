"""A certificate as one immutable Parquet file: for every image how far its class is proved to stand."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import RecordError
from .plain import canonical, decode, plain, slug, without
from .run import read_sealed, rows_sha256, write_sealed
from .schema import NORMS
from .specification import (
    DatasetRecord,
    DefenseRecord,
    EnvironmentRecord,
    ModelRecord,
    ThreatRecord,
    TimesRecord,
    complete_dataset,
    eps_text,
)

FOLDER = "certificates"
KEY = b"robustbench_lite_certificate"
VERSION = 2

CERTIFICATE_SCHEMA = pa.schema(
    [
        # position in the data set
        pa.field("index", pa.int64(), nullable=False),
        # SHA-256 of the image as float32 NCHW bytes
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        # null where the method abstains
        pa.field("prediction", pa.int64()),
        # prediction == label; false where it abstains
        pa.field("correct", pa.bool_(), nullable=False),
        # correct, and the radius is at least eps
        pa.field("certified", pa.bool_(), nullable=False),
        # within it, in the threat's norm, no image has another class; 0 where nothing is proved
        pa.field("radius", pa.float64(), nullable=False),
        # what the proof stands on: the least margin in logits, or share of the votes; null where none was made
        pa.field("bound", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class MethodRecord:
    """The method with its options as passed and as resolved; per_image: it finds a radius for every image."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    source_sha256: str | None = None
    per_image: bool


@dataclass(frozen=True, kw_only=True)
class CertificateSpecification:
    """A certificate without its rows."""

    schema_version: int = VERSION
    version: str
    model: ModelRecord
    defenses: tuple[DefenseRecord, ...] = ()
    dataset: DatasetRecord
    method: MethodRecord
    threat: ThreatRecord
    seed: int
    batch_size: int
    device: str
    environment: EnvironmentRecord
    times: TimesRecord
    rows_sha256: str = ""

    def to_json(self) -> str:
        """Strict JSON in the order of the fields."""
        return json.dumps(plain(self, "specification"), allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> CertificateSpecification:
        """The specification that `to_json` wrote. Raises RecordError as that of a run does."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"specification is not strict JSON ({str(error).splitlines()[0]})") from None
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > VERSION:
            raise RecordError(f"written by a newer robustbench-lite (schema version {version}); upgrade to read it")
        if version == 1:
            complete_dataset(raw)
        specification: CertificateSpecification = decode(cls, raw, "specification")
        if specification.threat.norm not in NORMS:
            raise RecordError(f"threat.norm must be one of {', '.join(NORMS)}, got {specification.threat.norm!r}")
        return specification

    def identity(self) -> dict[str, Any]:
        """What makes two certificates the same: all that decides the rows, by content and not by place."""
        told = plain(self, "specification")
        kept: dict[str, Any] = {key: told[key] for key in ("threat", "seed")}
        kept["dataset"] = without(told["dataset"], "class_names", "framing")
        kept["model"] = without(told["model"], "weights", "recipe")
        kept["defenses"] = [without(defense, "spec", "options") for defense in told["defenses"]]
        kept["method"] = without(told["method"], "options")
        return kept

    def certificate_id(self) -> str:
        """`MODEL-DEFENSE-DATASET-METHOD-NORM-EPS-HASH`, safe as a file name anywhere."""
        import hashlib

        parts = [self.model.name, self.defense, self.dataset.name, self.method.name]
        words = [*map(slug, parts), slug(self.threat.norm), slug(eps_text(self.threat.eps))]
        text = json.dumps(canonical(self.identity()), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return f"{'-'.join(words)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def defense(self) -> str:
        """The names of the defenses in order, or `none`."""
        return " + ".join(defense.name for defense in self.defenses) or "none"


@dataclass(frozen=True)
class Certificate:
    """A specification and its rows; `path` is the file it was read from."""

    specification: CertificateSpecification
    table: pa.Table
    path: Path | None = field(default=None, compare=False)


def seal_certificate(specification: CertificateSpecification, table: pa.Table) -> Certificate:
    """The certificate of these rows, in the order of their index, with their hash."""
    table = table.select(CERTIFICATE_SCHEMA.names).cast(CERTIFICATE_SCHEMA).sort_by("index").combine_chunks()
    return Certificate(dataclasses.replace(specification, rows_sha256=rows_sha256(table)), table)


def certificate_path(directory: Path | str, specification: CertificateSpecification, *, suffix: str = "") -> Path:
    """`DIRECTORY/certificates/CERTIFICATE_ID[SUFFIX].parquet`."""
    return Path(directory) / FOLDER / f"{specification.certificate_id()}{suffix}.parquet"


def settle_certificate(directory: Path | str, certificate: Certificate) -> tuple[Path, str]:
    """Put a certificate into a leaderboard folder beside what is there; nothing is written over.

    Returns the file, and `written`, or `reproduced` where one with the same rows is there already.
    """
    number = 1
    while True:
        suffix = f"-{number}" if number > 1 else ""
        path = certificate_path(directory, certificate.specification, suffix=suffix)
        if not path.exists():
            break
        try:
            if read_certificate(path).specification.rows_sha256 == certificate.specification.rows_sha256:
                return path, "reproduced"
        except RecordError:
            pass  # what is no certificate is left alone
        number += 1
    text = certificate.specification.to_json()
    CertificateSpecification.from_json(text)  # what cannot be read back must not be written
    return write_sealed(path, certificate.table, KEY, text), "written"


def read_certificate(path: Path | str) -> Certificate:
    """The certificate in a file. Raises RecordError that names the file for one that is corrupt or foreign."""
    specification, table = read_sealed(
        Path(path), KEY, CERTIFICATE_SCHEMA, CertificateSpecification.from_json, what="certificate"
    )
    return Certificate(specification, table, Path(path))


def certificate_files(directory: Path | str) -> list[Path]:
    """The files among the certificates of a leaderboard folder, in the order of their names."""
    return sorted(p for p in (Path(directory) / FOLDER).glob("*.parquet") if not p.name.startswith("."))


def sound_certificate(path: Path) -> Certificate:
    """The certificate in a file, read and checked. Raises RecordError that names the file and its first faults."""
    certificate = read_certificate(path)
    faults = list(certificate_faults(certificate))
    if faults:
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        raise RecordError(f"{path}: does not prove what it says: {'; '.join(faults[:2])}{more}")
    return certificate


def sound_certificates(directory: Path | str) -> tuple[list[Certificate], list[str]]:
    """The sound certificates of a leaderboard folder, and the faults of the other files."""
    found, problems = [], []
    for path in certificate_files(directory):
        try:
            found.append(sound_certificate(path))
        except RecordError as error:
            problems.append(str(error))
    return found, problems


def certificate_faults(certificate: Certificate) -> Iterator[str]:
    """Every fault that rows and specification show without the model, one line each."""
    specification, table = certificate.specification, certificate.table
    if certificate.path is not None:
        suffix = certificate.path.stem.removeprefix(specification.certificate_id())
        if not re.fullmatch(r"(-[1-9]\d*)?", suffix):
            yield f"the file's name is not that of its specification, {specification.certificate_id()}.parquet"
    if rows_sha256(table) != specification.rows_sha256:
        yield "the rows are not those that were hashed (rows_sha256)"
    if table.num_rows != specification.dataset.samples:
        yield f"{table.num_rows} rows where {specification.dataset.samples} samples were to be certified"
    index = table["index"].to_numpy()
    for rule, broken in _row_rules(specification, table):
        count = int(np.count_nonzero(broken))
        if count:
            yield f"{rule}: {count} rows, index {', '.join(map(str, index[broken][:3]))}{', ...' if count > 3 else ''}"


def _row_rules(specification: CertificateSpecification, table: pa.Table) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    classes, eps = specification.dataset.classes, specification.threat.eps
    index, label, radius = (table[name].to_numpy() for name in ("index", "label", "radius"))
    correct, certified = (table[name].to_numpy() for name in ("correct", "certified"))
    prediction = table["prediction"].fill_null(-1).to_numpy()
    bound = table["bound"].fill_null(math.nan).to_numpy()
    hashes = table["content_hash"].to_pylist()
    yield "index is negative or not unique", (index < 0) | np.array([n > 1 for n in _counts(index)], bool)
    yield "content_hash is no SHA-256", np.array([not re.fullmatch("[0-9a-f]{64}", text) for text in hashes], bool)
    yield "label is outside the classes", (label < 0) | (label >= classes)
    yield "prediction is outside the classes", prediction >= classes
    yield "correct does not follow from prediction and label", correct != (prediction == label)
    yield "radius is negative or not finite", ~(np.isfinite(radius) & (radius >= 0))
    yield (
        "certified does not follow from correct, radius and eps",
        certified != (correct & (radius >= eps) & proved(bound, specification)),
    )
    yield "a radius without a proof", (radius > 0) & ~proved(bound, specification)
    yield "a radius although it abstains", (radius > 0) & (prediction < 0)
    if not specification.method.per_image:
        yield "radius is neither 0 nor eps", (radius != 0) & (radius != eps)


def proved(bound: npt.NDArray[np.float64], specification: CertificateSpecification) -> npt.NDArray[np.bool_]:
    """Where the bound is on the right side: a margin above 0, a share above 1/2."""
    with np.errstate(invalid="ignore"):
        proved: npt.NDArray[np.bool_] = bound > (0.5 if "sigma" in specification.method.resolved else 0.0)
    return proved


def _counts(index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    _, inverse, counts = np.unique(index, return_inverse=True, return_counts=True)
    result: npt.NDArray[np.int64] = counts[inverse]
    return result
