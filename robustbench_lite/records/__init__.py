"""Runs on disk: what they hold, how they are written and read, and whether they prove what they say."""

from __future__ import annotations

from .check import check_run, shard_positions
from .run import Run, read_run, rows_sha256, run_path, seal, settle, write_run
from .schema import SCHEMA, SCHEMA_VERSION
from .shards import assemble
from .specification import (
    AttackRecord,
    ChecksRecord,
    CostsRecord,
    DatasetRecord,
    DefenseRecord,
    EnvironmentRecord,
    ExamplesRecord,
    ModelRecord,
    Specification,
    ThreatRecord,
    TimesRecord,
    eps_text,
    threat_text,
)
from .summary import summarize, wilson

__all__ = [
    "SCHEMA",
    "SCHEMA_VERSION",
    "AttackRecord",
    "ChecksRecord",
    "CostsRecord",
    "DatasetRecord",
    "DefenseRecord",
    "EnvironmentRecord",
    "ExamplesRecord",
    "ModelRecord",
    "Run",
    "Specification",
    "ThreatRecord",
    "TimesRecord",
    "assemble",
    "check_run",
    "eps_text",
    "read_run",
    "rows_sha256",
    "run_path",
    "seal",
    "settle",
    "shard_positions",
    "summarize",
    "threat_text",
    "wilson",
    "write_run",
]
