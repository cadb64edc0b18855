"""Which rows of a leaderboard, in which order: `COLUMN OP VALUE` and `-COLUMN`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import UserError, close_names
from ..options import parse_number
from ..records.specification import eps_text

if TYPE_CHECKING:
    import pandas as pd

# What the tables call it.
ALIASES = {"clean": "clean_accuracy", "robust": "robust_accuracy", "certified": "certified_accuracy"}
_SHARES = frozenset(
    (
        *(f"{name}_{part}" for name in ("clean", "robust", "certified") for part in ("accuracy", "low", "high")),
        *("false_positive_rate", "attack_success"),
    )
)
# Text that may be compared by < and >: ISO 8601 sorts as time does.
_TIMES = frozenset(("started",))
_OPERATOR = "==|!=|<=|>=|=|<|>|~"
_USAGE = "--where must be COLUMN OP VALUE with OP one of = != < <= > >= ~, in quotes"
_QUOTES = ("''", '""', "\u2018\u2019", "\u201c\u201d", "``")

_FEW = 4  # values that a message names

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
    may be a fraction (`eps=8/255`); accuracies lie in [0, 1], and 50% is 0.5; `none` is a missing value, which meets
    no other condition than `=none` and `!=`. A verdict is its first word, or the whole. `sort` is COLUMN, or -COLUMN
    for the largest first; missing values come last, and rows that are equal stay in their order. Raises UserError for
    what cannot be read, and for a comparison that no value of the column can decide.
    """
    for condition in where:
        frame = frame[_meets(frame, condition)]
    if sort is not None:
        column = _column(frame, sort.removeprefix("-"), "--sort")
        frame = frame.sort_values(column, ascending=not sort.startswith("-"), kind="stable", na_position="last")
    return frame.reset_index(drop=True)


def kept_by_each(frame: pd.DataFrame, where: Iterable[str]) -> list[str]:
    """How many rows each condition keeps of those that the ones before it kept, down to the one that keeps none.

    For that one, the values that its column has.
    """
    said: list[str] = []
    for condition in where:
        kept = frame[_meets(frame, condition)]
        told = f"{condition.strip()!r} keeps {len(kept)} of {len(frame)}"
        if not len(kept):
            return [*said, f"{told}, where {_values(frame, condition)}"]
        said.append(told)
        frame = kept
    return said


def _values(frame: pd.DataFrame, condition: str) -> str:
    """The values of a condition's column, in short."""
    name, _, _ = _read(frame, condition)
    values = frame[_column(frame, name, "--where")]
    known = sorted({value for value in values.tolist() if not _missing(value)})
    if not known:
        return f"{name} is missing"
    shown = [eps_text(value) if isinstance(value, float) else str(value) for value in known]
    if len(known) <= _FEW:
        return f"{name} is {' or '.join(shown)}"
    if values.dtype.kind in "iuf":
        return f"{name} is {shown[0]} to {shown[-1]}"
    return f"{name} is one of {len(known)}, such as {', '.join(shown[:_FEW])}"


def _meets(frame: pd.DataFrame, condition: str) -> list[bool]:
    name, operator, text = _read(frame, condition)
    column = _column(frame, name, "--where")
    values = frame[column]
    numeric = values.dtype.kind in "iuf"
    cells = [None if _missing(value) else value for value in values.tolist()]
    if text.lower() == "none" and operator in ("=", "==", "!=") and (numeric or None in cells):
        return [(cell is None) == (operator != "!=") for cell in cells]
    if numeric and operator == "~":
        raise UserError(f"--where: ~ is for text, and {name} is a number; use = != < <= > >=")
    if not numeric and operator[0] in "<>" and column not in _TIMES:
        raise UserError(f"--where: {operator} is for numbers, and {name} is text; use = != or ~ (contains)")
    wanted = _number(name, column, operator, text) if numeric else text
    test = _TESTS[operator]
    if column == "verdict" and operator in ("=", "==", "!="):
        cells = [cell if cell in (None, text) else cell.split(":")[0] for cell in cells]
    return [operator == "!=" if cell is None else test(cell, wanted) for cell in cells]


def _read(frame: pd.DataFrame, condition: str) -> tuple[str, str, str]:
    """Column, operator and value of a condition; the column as the user has it, in small letters."""
    match = re.fullmatch(rf"\s*(\w+(?:[ -]\w+)*)\s*({_OPERATOR})\s*(.*?)\s*", condition)
    if not match:
        turned = re.fullmatch(rf"\s*(\S+)\s*({_OPERATOR})\s*(\w+)\s*", condition)
        hint = f"; the column comes first: {_turned(*turned.groups())}" if turned else ""
        raise UserError(f"{_USAGE}, got {condition!r}{hint}")
    name, operator, text = match.groups()
    if text[:1] in tuple("=<>~!"):
        raise UserError(f"{_USAGE}, got {condition!r}")
    known = {*frame.columns, *ALIASES}
    name = next((each for each in (name, re.sub("[ -]", "_", name.lower())) if each in known), name)
    for word in re.finditer(rf"(?:\b(and|or)\b|&&?|\|\|?|[;,])\s*(\w+)\s*(?:{_OPERATOR})", text, re.IGNORECASE):
        if word[2].lower() not in known:
            continue
        if (word[1] or word[0][0]).lower() in ("or", "|"):
            raise UserError(f"--where: conditions cannot be joined by 'or', got {condition!r}; run it once for each")
        raise UserError(
            f"--where takes one condition, got {condition!r}; give each by a --where of its own: all must hold"
        )
    if len(text) > 1 and text[0] + text[-1] in _QUOTES:
        text = text[1:-1]
    return name, operator, text


def _turned(value: str, operator: str, name: str) -> str:
    return f"{name} {operator.translate(str.maketrans('<>', '><'))} {value}"


def _number(name: str, column: str, operator: str, text: str) -> float:
    """The number that a column is compared with, of a share in [0, 1] or with a %."""
    share = column in _SHARES
    if text.endswith("%"):
        if not share:
            raise UserError(f"--where {name}: % is for shares, such as robust, and {name} is none; got {text!r}")
        wanted = parse_number(f"--where {name}", text[:-1].rstrip()) / 100
    else:
        wanted = parse_number(f"--where {name}", text)
    if share and not 0 <= wanted <= 1:
        meant = (
            f"; for {text} % give {name} {operator} {wanted / 100:g}" if 1 < wanted <= 100 and "%" not in text else ""
        )
        raise UserError(f"--where {name} must be a share in [0, 1], got {text}{meant}")
    return wanted


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
