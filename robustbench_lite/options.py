"""Options as users write them (`eps=8/255`), made into the typed fields of a frozen dataclass."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeVar

from .errors import UserError, close_names

T = TypeVar("T")


def parse_number(argument: str, text: str | float) -> float:
    """A finite number from `0.03`, `8/255`, or a number already.

    >>> round(parse_number("eps", "8/255"), 6)
    0.031373
    """
    try:
        if isinstance(text, str):
            value = float(Fraction(text.replace(" ", ""))) if "/" in text else float(text)
        elif isinstance(text, bool):
            raise TypeError
        else:
            value = float(text)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        raise UserError(f"{argument} must be a number or a fraction such as 8/255, got {text!r}") from None
    if not math.isfinite(value):
        raise UserError(f"{argument} must be a finite number, got {text!r}")
    return value


def parse_pairs(argument: str, pairs: Iterable[str]) -> dict[str, str]:
    """`["steps=10", "loss=dlr"]` as a dictionary; dashes in a key are read as underscores."""
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UserError(f"{argument} must be KEY=VALUE, got {pair!r}")
        if key in options:
            raise UserError(f"{argument}: {key} is given twice")
        options[key] = value.strip()
    return options


def owner_of(
    key: str,
    names: Sequence[Collection[str]],
    options: Sequence[Collection[str]],
    labels: Sequence[str],
    *,
    argument: str,
    kind: str,
) -> tuple[int, str]:
    """Which of several things an option belongs to, and what that thing calls it.

    Args:
        key: `OWNER.OPTION`, or `OPTION` where only one of them has it; dashes and underscores are the same.
        names: What each of them answers to.
        options: The options that each of them has.
        labels: What an error calls each of them.
        argument: How the option is given, for errors.
        kind: What the owners are, for errors.

    Raises:
        UserError: For an owner or an option that none of them has, and for an option of several without an owner.
    """
    owner, dot, option = key.replace("-", "_").rpartition(".")
    if dot:
        for place, answers in enumerate(names):
            if owner in {answer.replace("-", "_") for answer in answers if isinstance(answer, str)}:
                return place, option
        raise UserError(f"{argument}: no {kind} {key.rpartition('.')[0]!r}; {close_names(owner, labels)}")
    places = [place for place, known in enumerate(options) if option in known]
    if len(places) == 1:
        return places[0], option
    if places:
        both = " and ".join(labels[place] for place in places)
        raise UserError(
            f"{argument} {option}: {both} both have it; say which, as {argument} {labels[places[0]]}.{option}=VALUE"
        )
    every = [known for each in options for known in each]
    hint = close_names(option, every) if every else f"no {kind} with options is given"
    raise UserError(f"{argument}: unknown option {option!r}; {hint}")


def option_types(cls: Any) -> Mapping[str, Any]:
    """The options that a dataclass takes, each with its type."""
    return _option_types(cls)


@functools.lru_cache(maxsize=512)
def _option_types(cls: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def configure(cls: type[T], options: Mapping[str, Any] | None = None, *, argument: str = "option") -> T:
    """An instance of the dataclass `cls` from options, whose strings are read by the fields' types.

    Raises UserError for an unknown option (with the close ones) and for a value of the wrong type;
    what else a class wants it checks itself in `__post_init__`.
    """
    known = option_types(cls)
    values: dict[str, Any] = {}
    for key, value in (options or {}).items():
        if key not in known:
            owner = getattr(cls, "name", cls.__name__)
            hint = close_names(key, known) if known else "it takes no options"
            raise UserError(f"{argument}: {owner} has no option {key!r}; {hint}")
        values[key] = _coerce(f"{argument} {key}", value, known[key])
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.init
        and f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{argument}: {getattr(cls, 'name', cls.__name__)} needs {', '.join(missing)}")
    return cls(**values)


def _coerce(argument: str, value: Any, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = typing.get_args(kind)
        nothing = value is None or (isinstance(value, str) and value.lower() == "none")
        if nothing and type(None) in kinds:
            return None
        kinds = tuple(k for k in kinds if k is not type(None))
        return _coerce(argument, value, kinds[0]) if len(kinds) == 1 else value
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise UserError(f"{argument} must be one of {', '.join(map(str, choices))}, got {value!r}")
        return value
    if kind is bool:
        return _coerce_bool(argument, value)
    if kind is int:
        try:
            number = parse_number(argument, value)
        except UserError:
            raise UserError(f"{argument} must be a whole number, got {value!r}") from None
        if number != int(number):
            raise UserError(f"{argument} must be a whole number, got {value!r}")
        if abs(number) >= 2**63:
            raise UserError(f"{argument} must be below 2**63, got {value!r}")
        return int(number)
    if kind is float:
        return parse_number(argument, value)
    if kind is str and not isinstance(value, str):
        raise UserError(f"{argument} must be text, got {value!r}")
    return value


def _coerce_bool(argument: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise UserError(f"{argument} must be true or false, got {value!r}") from None
