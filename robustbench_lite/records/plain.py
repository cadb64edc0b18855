"""Records as plain JSON values and back, and as parts of names."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from pathlib import PurePath
from typing import Any

from ..errors import RecordError


def plain(value: Any, where: str) -> Any:
    """A record as dicts, lists, text and finite numbers. TypeError, naming the place, for what is none of these."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: a key must be text, got {key!r}")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    raise TypeError(f"{where} must be plain, finite JSON, got {value!r}")


def canonical(value: Any) -> Any:
    """Equal numbers written alike, so that eps 1 and eps 1.0 are one identity."""
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    """All but these keys."""
    return {key: value for key, value in record.items() if key not in names}


def slug(text: str) -> str:
    """A part of a file's name: no path, no sign that a file system minds, at most 32 characters."""
    if "/" in text and not re.fullmatch(r"[\d.]+/\d+", text):
        # A factory or a folder by path: what it is called says enough, where it lies does not travel.
        scheme, colon, rest = text.partition(":")
        text = f"{scheme}:{PurePath(rest).name}" if colon and "/" not in scheme else PurePath(text).name
    return re.sub(r"[^A-Za-z0-9.+]+", "_", text).strip("_.")[:32] or "x"


def decode(kind: Any, value: Any, where: str) -> Any:
    """`value` as the type `kind`, or RecordError; the types are those of the dataclass that a record is of."""
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        inner = next(k for k in arguments if k is not type(None))
        return None if value is None else decode(inner, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _record(kind, value, where)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(decode(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise RecordError(f"{where} must be {getattr(kind, '__name__', kind)}, got {value!r}")


def _record(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    missing, foreign = sorted(set(hints) - set(value)), sorted(set(value) - set(hints))
    if missing:
        raise RecordError(f"{where} lacks {', '.join(missing)}")
    if foreign:
        raise RecordError(f"{where} has unknown fields {', '.join(foreign)}")
    return kind(**{name: decode(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
