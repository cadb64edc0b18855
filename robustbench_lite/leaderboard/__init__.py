"""Leaderboards: derived from run files, never edited; anybody can recompute them."""

from __future__ import annotations

from .board import FILE, Merged, build, derive, merge, verify
from .select import kept_by_each, select
from .table import reasons, to_csv, to_json, to_markdown, to_rich

__all__ = [
    "FILE",
    "Merged",
    "build",
    "derive",
    "kept_by_each",
    "merge",
    "reasons",
    "select",
    "to_csv",
    "to_json",
    "to_markdown",
    "to_rich",
    "verify",
]
