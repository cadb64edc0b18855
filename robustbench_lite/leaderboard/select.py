"""Which rows of a leaderboard, in which order: `COLUMN OP VALUE` and `-COLUMN`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import UserError, close_names
from ..options import parse_number

if TYPE_CHECKING:
    import pandas as pd

# What the tables call it.
ALIASES = {"clean": "clean_accuracy", "robust": "robust_accuracy", "certified": "certified_accuracy"}

_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: _same(a, b),
    "==": lambda a, b: _same(a, b),
    "!=": lambda a, b: not _same(a, b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a < b) or _same(a, b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a > b) or _same(a, b),
    "~": lambda a, b: b.lower() in a.lower(),
}


def select(frame: pd.DataFrame, where: Iterable[str] = (), sort: str | None = None) -> pd.DataFrame:
    """The rows that meet every condition, in the order asked for.

    A condition is `COLUMN OP VALUE` with = != < <= > >= or ~ (text holds VALUE, whatever the case); a number
    may be a fraction (`eps=8/255`); accuracies lie in [0, 1]; `none` is a missing value, which meets no other
    condition than `=none` and `!=`. `sort` is COLUMN, or -COLUMN for the largest first; missing values come
    last, and rows that are equal stay in their order. Raises UserError for what cannot be read.
    """
    for condition in where:
        frame = frame[_meets(frame, condition)]
    if sort is not None:
        column = _column(frame, sort.removeprefix("-"), "--sort")
        frame = frame.sort_values(column, ascending=not sort.startswith("-"), kind="stable", na_position="last")
    return frame.reset_index(drop=True)


def _meets(frame: pd.DataFrame, condition: str) -> list[bool]:
    match = re.fullmatch(r"\s*(\w+)\s*(==|!=|<=|>=|=|<|>|~)\s*(.*?)\s*", condition)
    if not match:
        raise UserError(f"--where must be COLUMN OP VALUE with OP one of = != < <= > >= ~, got {condition!r}")
    name, operator, text = match.groups()
    values = frame[_column(frame, name, "--where")]
    numeric = values.dtype.kind in "iuf"
    cells = [None if _missing(value) else value for value in values.tolist()]
    if text.lower() == "none" and operator in ("=", "==", "!=") and (numeric or None in cells):
        return [(cell is None) == (operator != "!=") for cell in cells]
    if numeric and operator == "~":
        raise UserError(f"--where: ~ is for text, and {name} is a number; use = != < <= > >=")
    wanted = parse_number(f"--where {name}", text) if numeric else text
    test = _TESTS[operator]
    return [operator == "!=" if cell is None else test(cell, wanted) for cell in cells]


def _column(frame: pd.DataFrame, name: str, argument: str) -> str:
    name = ALIASES.get(name, name)
    if name not in frame.columns:
        raise UserError(f"{argument}: unknown column {name!r}; {close_names(name, [*frame.columns, *ALIASES])}")
    return name


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    # 8/255 typed and 8/255 stored may differ in the last place.
    return math.isclose(one, other, rel_tol=1e-9)
