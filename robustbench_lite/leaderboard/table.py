"""A leaderboard as people and programs read it: rich table, Markdown, CSV, JSON."""

from __future__ import annotations

import json
import math
import re
import textwrap
from typing import TYPE_CHECKING, Any

from ..records.specification import threat_text
from ..reliability import MEANING, Word

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
    ("certified", "right"),
    ("forwards", "right"),
    ("backwards", "right"),
    ("verdict", "left"),
)
# Shown only where a row has it.
_SELDOM = "certified"
# Told once below a table: they belong to the attack or to the command, not to what was found.
_EXPLAINED = (Word.UPPER_BOUND, Word.UNCHECKED)
CAPTION = "accuracy in % with 95 % Wilson interval; forwards and backwards: mean per sample"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows with missing values as None."""
    return [
        {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _shown(records: list[dict[str, Any]]) -> list[str]:
    """The columns that a table of these rows has."""
    seldom = any(row.get(f"{_SELDOM}_accuracy") is not None for row in records)
    return [name for name, _ in _COLUMNS if seldom or name != _SELDOM]


def _accuracy(row: dict[str, Any], name: str) -> tuple[str, str]:
    if row.get(f"{name}_accuracy") is None:
        return "-", ""
    share, low, high = (f"{100 * row[f'{name}_{part}']:.1f}" for part in ("accuracy", "low", "high"))
    return share, f"[{low}, {high}]"


def _mean(total: int, n: int) -> str:
    return f"{total / n:.1f}" if n else "-"


def _verdict(row: dict[str, Any], *, between: str) -> str:
    words = [row["verdict"]] if row["status"] == "complete" else [row["status"]]
    if row["warnings"]:
        words.append(f"{row['warnings']} warning{'s' if row['warnings'] > 1 else ''}")
    return (", " if between == " " else between).join(word for word in words if word) or "-"


def _target(row: dict[str, Any]) -> str:
    return "" if row["target"] is None else f"target={row['target']}"


def _cells(row: dict[str, Any], *, between: str) -> list[str]:
    return [
        row["model"],
        between.join(filter(None, (row["defense"], row["defense_options"]))),
        row["dataset"],
        between.join(filter(None, (row["attack"], row["attack_options"], _target(row)))),
        threat_text(row["norm"], row["eps"]),
        str(row["n"]),
        between.join(filter(None, _accuracy(row, "clean"))),
        between.join(filter(None, _accuracy(row, "robust"))),
        between.join(filter(None, _accuracy(row, "certified"))),
        _mean(row["forwards"], row["n"]),
        _mean(row["backwards"], row["n"]),
        _verdict(row, between=between),
    ]


# What stands in one cell of the terminal's table, one under the other, how wide it is in 80 columns, and how much wider
# it may get where there is room.
_STACKS = (
    (("model", "defense"), 12, 10),
    (("attack", "threat"), 11, 10),
    (("dataset", "n"), 8, 8),
    (("clean",), 12, 0),
    (("robust", "certified"), 12, 0),
    (("forwards", "backwards"), 9, 0),
    (("verdict",), 10, 0),
)
NARROWEST = sum(width for _, width, _ in _STACKS) + len(_STACKS) - 1


def to_rich(frame: pd.DataFrame, width: int = NARROWEST) -> Table:
    """A table for the terminal, whole in 80 columns: cells share a column where they fit, long names wrap.

    Of a verdict that has reasons it shows the first word; `reasons` has the rest.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    justify = dict(_COLUMNS)
    table = Table(box=box.SIMPLE_HEAD, padding=0, caption=CAPTION, show_edge=False)
    widths, spare = [], max(0, width - NARROWEST)
    for _, least, more in _STACKS:
        widths.append(least + min(more, spare))
        spare -= min(more, spare)
    records = _records(frame)
    shown = _shown(records)
    stacked = [[name for name in names if name in shown] for names, _, _ in _STACKS]
    for names in stacked:
        numeric = justify[names[0]] == "right"
        table.add_column("\n".join(names), justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in records:
        row["verdict"] = _first_word(row)
        cells = dict(zip(justify, _cells(row, between="\n"), strict=True))
        # Text and not str: names of models may look like markup.
        stacks = ([cells[name] for name in names] for names in stacked)
        table.add_row(*(Text(stacked_text(stack, room)) for stack, room in zip(stacks, widths, strict=True)))
    return table


def reasons(frame: pd.DataFrame) -> list[str]:
    """A line for each run with a verdict that says why, and what the words mean that hold no mistake."""
    records = _records(frame)
    told = [
        f"{row['model']}, {row['defense']}, {row['attack']}, {threat_text(row['norm'], row['eps'])}: {row['verdict']}"
        for row in records
        if row["verdict"] and row["verdict"] != _first_word(row) and _first_word(row) not in _EXPLAINED
    ]
    words = {_first_word(row) for row in records}
    return told + [f"{word}: {MEANING[word].replace('`', '')}" for word in _EXPLAINED if word in words]


def _first_word(row: dict[str, Any]) -> Any:
    verdict = row["verdict"]
    return verdict.split(": ")[0] if isinstance(verdict, str) else verdict


def stacked_text(cells: list[str], width: int) -> str:
    """Cells one below the other, each wrapped to the width."""
    return "\n".join(part for cell in cells for line in cell.splitlines() for part in wrapped(line, width))


def wrapped(line: str, width: int) -> list[str]:
    """Lines of at most `width`, broken behind a blank or a sign between words; inside a word only where it must be."""
    lines = [""]
    for word in re.findall(r"[^\s\-:_/=,+]*[\s\-:_/=,+]*", line):
        if lines[-1] and len((lines[-1] + word).rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return [part for whole in lines for part in textwrap.wrap(whole, width, break_on_hyphens=False)]


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table, and a line that says what its numbers are."""
    records, justify = _records(frame), dict(_COLUMNS)
    names = _shown(records)
    rules = ("---:" if justify[name] == "right" else "---" for name in names)
    lines = [f"| {' | '.join(names)} |", f"| {' | '.join(rules)} |"]
    for row in records:
        every = zip(justify, _cells(row, between=" "), strict=True)
        kept = (cell for name, cell in every if name in names)
        cells = (" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in kept)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{CAPTION[0].upper()}{CAPTION[1:]}.", ""])


def to_csv(frame: pd.DataFrame) -> str:
    """Every column, numbers in full; a missing value is empty."""
    return str(frame.to_csv(index=False, lineterminator="\n"))


def to_json(frame: pd.DataFrame) -> str:
    """A strict JSON list of one object a row; a missing value is null."""
    return json.dumps(_records(frame), allow_nan=False, indent=1)
