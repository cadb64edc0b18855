"""A leaderboard as people and programs read it: rich table, Markdown, CSV, JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from ..records.specification import eps_text

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

_COLUMNS = (
    ("model", "left"),
    ("defense", "left"),
    ("dataset", "left"),
    ("attack", "left"),
    ("threat", "left"),
    ("n", "right"),
    ("clean", "right"),
    ("robust", "right"),
    ("forwards", "right"),
    ("backwards", "right"),
    ("verdict", "left"),
)
CAPTION = "accuracy in % with 95 % Wilson interval; forwards and backwards: mean per sample"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows with missing values as None."""
    return [
        {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _accuracy(row: dict[str, Any], name: str) -> tuple[str, str]:
    if row[f"{name}_accuracy"] is None:
        return "-", ""
    share, low, high = (f"{100 * row[f'{name}_{part}']:.1f}" for part in ("accuracy", "low", "high"))
    return share, f"[{low}, {high}]"


def _mean(total: int, n: int) -> str:
    return f"{total / n:.1f}" if n else "-"


def _verdict(row: dict[str, Any]) -> str:
    words = [row["verdict"]] if row["status"] == "complete" else [row["status"]]
    if row["warnings"]:
        words.append(f"{row['warnings']} warning{'s' if row['warnings'] > 1 else ''}")
    return ", ".join(word for word in words if word) or "-"


def _cells(row: dict[str, Any], *, between: str) -> list[str]:
    return [
        row["model"],
        row["defense"],
        row["dataset"],
        row["attack"] + (f" target={row['target']}" if row["target"] is not None else ""),
        f"{row['norm']} {eps_text(row['eps'])}",
        str(row["n"]),
        between.join(filter(None, _accuracy(row, "clean"))),
        between.join(filter(None, _accuracy(row, "robust"))),
        _mean(row["forwards"], row["n"]),
        _mean(row["backwards"], row["n"]),
        _verdict(row),
    ]


def to_rich(frame: pd.DataFrame) -> Table:
    """A table for the terminal, whole in 100 columns: intervals stand under their accuracy, long names wrap."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=CAPTION, show_edge=False)
    for name, justify in _COLUMNS:
        numeric = justify == "right"
        # A heading is never broken; together they are narrower than 100 columns.
        table.add_column(
            name,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=numeric,
            min_width=len(name),
        )
    for row in _records(frame):
        # Text and not str: names of models may look like markup.
        table.add_row(*(Text(cell) for cell in _cells(row, between="\n")))
    return table


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table, and a line that says what its numbers are."""
    names, kinds = zip(*_COLUMNS, strict=True)
    rules = ("---:" if kind == "right" else "---" for kind in kinds)
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join(rules)} |"]
    for row in _records(frame):
        cells = (" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in _cells(row, between=" "))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{CAPTION[0].upper()}{CAPTION[1:]}.", ""])


def to_csv(frame: pd.DataFrame) -> str:
    """Every column, numbers in full; a missing value is empty."""
    return str(frame.to_csv(index=False, lineterminator="\n"))


def to_json(frame: pd.DataFrame) -> str:
    """A strict JSON list of one object a row; a missing value is null."""
    return json.dumps(_records(frame), allow_nan=False, indent=1)
