"""An error's first words, turned into the argument as the user typed it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

# `eps must be >= 0`, `norm: unknown name`, `norm of attack noise: ...`, `attack option steps must be ...`
_FIRST = re.compile(r"(?:attack option |--[a-z]+-option )?(\w+)(?= must\b|:| of attack )")
_UNKNOWN = re.compile(r"attack option(?=: \S+ has no option '(\w+)')")
# What is checked under the name of the Python interface, and came from an option with a default.
_CAME_FROM = {"x": "--dataset", "y": "--dataset", "model": "--model"}


def as_typed(message: str, arguments: Sequence[str]) -> str:
    """A message of the Python interface with its argument as it stands in `arguments`, the words of the command line.

    >>> as_typed("eps must be >= 0, got -1", ["evaluate", "--eps=-1"])
    '--eps must be >= 0, got -1'
    >>> as_typed("bits must be in 1..16, got 99", ["--defense-option", "bits=99"])
    '--defense-option bits must be in 1..16, got 99'
    """
    found = _FIRST.match(message) or _UNKNOWN.match(message)
    typed = found and (_typed(found[1], arguments) or _CAME_FROM.get(found[1]))
    return typed + message[found.end() :] if found and typed else _without_folder(message, arguments)


def usage(message: str, arguments: Sequence[str]) -> str:
    """A usage error of the command-line library in one line, with the value that came where it leaves it out."""
    line = " ".join(message.split()).rstrip(".")
    found = re.match(r"Invalid value for '(--[a-z-]+)", line)
    came = dict(_pairs(arguments)).get(found[1]) if found else None
    return line if came is None or came in line else f"{line}, got {came!r}"


def _typed(name: str, arguments: Sequence[str]) -> str | None:
    option = f"--{name.replace('_', '-')}"
    pairs = list(_pairs(arguments))
    if any(word == option for word, _ in pairs):
        return option
    for word, value in pairs:
        if word.endswith(("-option", "-o")) and re.search(rf"\b{name}\s*=", value.replace("-", "_")):
            return f"{word} {name}"
    return None


def _without_folder(message: str, arguments: Sequence[str]) -> str:
    """`/home/me/net.py:mak: unknown name` as `--model net.py: unknown name`."""
    for option, value in _pairs(arguments):
        file, colon, name = value.rpartition(":")
        target = f"{Path(file).expanduser().resolve() if file.endswith('.py') else file}:{name}: "
        if colon and message.startswith(target):
            return f"{option} {file}: {message.removeprefix(target)}"
    return message


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every option with what follows it, after a blank or an equals sign."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word.startswith("--") and "=" in word:
            option, _, value = word.partition("=")
            yield option, value
        elif word.startswith("-"):
            yield word, following
