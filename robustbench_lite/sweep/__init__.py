"""Sweeps: models x defenses x attacks x threats x seeds, stated in a TOML file, and the table made of their runs."""

from __future__ import annotations

from .marks import Evidence, marks
from .plan import Cell, Sweep
from .reading import read_sweep
from .running import Done, Watch, run_sweep
from .table import tabulate, write_table

__all__ = [
    "Cell",
    "Done",
    "Evidence",
    "Sweep",
    "Watch",
    "marks",
    "read_sweep",
    "run_sweep",
    "tabulate",
    "write_table",
]
