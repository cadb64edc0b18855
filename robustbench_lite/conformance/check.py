"""One check and its outcome, and the list that turns whatever a plug-in raises into a failed one."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import AccessError, PluginError, UserError
from .samples import one_thread, random_state_kept


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `detail` is one line: what was seen, or what is wrong and the way out."""

    name: str
    ok: bool
    detail: str = ""


class Failed(Exception):
    """What a check raises when the thing under test is not as it should be."""


class Checks:
    """The checks of one plug-in so far."""

    def __init__(self, thing: type) -> None:
        self.done: list[Check] = []
        self._file = _file_of(thing)

    def run(self, name: str, check: Callable[[], str | None]) -> bool:
        """Carry out `check`, which returns its detail or raises; whether it passed."""
        try:
            with random_state_kept(), one_thread():
                self.done.append(Check(name, True, check() or ""))
        except Failed as error:
            self.done.append(Check(name, False, _line(str(error))))
        except Exception as error:
            self.done.append(Check(name, False, self._raised(error)))
        return self.done[-1].ok

    def _raised(self, error: Exception) -> str:
        cause = error.__cause__ if isinstance(error, PluginError) and error.__cause__ else error
        own = [f for f in traceback.extract_tb(cause.__traceback__) if f.filename == self._file]
        where = f" (line {own[-1].lineno})" if own and not isinstance(error, AccessError) else ""
        if isinstance(cause, UserError):
            return _line(str(cause)) + where
        return f"it raised {type(cause).__name__}: {_line(str(cause))}{where}"


def failed(checks: list[Check]) -> list[Check]:
    """Those that did not pass."""
    return [check for check in checks if not check.ok]


def plural(count: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _file_of(thing: Any) -> str | None:
    try:
        return inspect.getfile(thing)
    except (TypeError, OSError):
        return None


def check_description(cls: type, *, base: type, hint: str) -> None:
    """Raise Failed unless `cls` is a frozen dataclass that says its name, summary and source."""
    if not issubclass(cls, base):
        raise Failed(f"{cls.__name__} is no subclass of {hint}")
    parameters = cls.__dict__.get("__dataclass_params__")
    if parameters is None:
        raise Failed(f"{cls.__name__} is no dataclass of its own: write @dataclass(frozen=True) above it")
    if not parameters.frozen:
        raise Failed(f"{cls.__name__} can be changed after it was made: write @dataclass(frozen=True)")
    for attribute in ("name", "summary", "source"):
        value = getattr(cls, attribute, None)
        if not isinstance(value, str) or not value.strip():
            raise Failed(f"{attribute} must be a text of the class, got {value!r}")
        if "\n" in value:
            raise Failed(f"{attribute} must be one line, got {value!r}")
