"""Where a command's answer goes, and what text its streams take."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

_answer: list[TextIO] = []


def stream() -> TextIO:
    """Where the answer of a command goes: stdout, also while `alone` keeps what others print from it."""
    return _answer[-1] if _answer else sys.stdout


@contextlib.contextmanager
def alone(arguments: Sequence[str]) -> Iterator[None]:
    """Context manager: under `--json` only the answer reaches stdout, and what a user's code prints goes to stderr."""
    if "--json" not in arguments or _answer:
        yield
        return
    _answer.append(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _answer.pop()


def keep_stdout() -> None:
    """Of a process: only what `stream` is given reaches stdout under `--json`, to the end of the process.

    Extensions, child processes and what runs at exit write to file descriptor 1, which becomes that of stderr.
    """
    if "--json" not in sys.argv:
        return
    with contextlib.suppress(OSError, ValueError):  # a stream that is closed, or no file
        sys.stdout.flush()
        kept = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _answer.append(os.fdopen(kept, "w", encoding="utf-8"))


def drop() -> None:
    """Let the answer go nowhere, quietly: its reader has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for one in {id(one): one for one in (stream(), sys.stdout)}.values():
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, one.fileno())


def speak_utf8() -> None:
    """Start the program again in Python's UTF-8 mode where the locale has another encoding.

    There names of files, classes and functions cannot be read as they were written (PEP 540).
    """
    if sys.getfilesystemencoding() != "utf-8":
        with contextlib.suppress(OSError):
            os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def take_any_text() -> None:
    """Have the streams write what their encoding lacks as escapes, so that no name of a file ends a command."""
    for one in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            one.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
