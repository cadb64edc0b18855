"""An error's first words, turned into the argument as the user typed it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

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
    if found is None:
        return message
    typed = _typed(found[1], arguments) or _CAME_FROM.get(found[1])
    return message if typed is None else typed + message[found.end() :]


def _typed(name: str, arguments: Sequence[str]) -> str | None:
    option = f"--{name.replace('_', '-')}"
    pairs = list(_pairs(arguments))
    if any(word == option for word, _ in pairs):
        return option
    for word, value in pairs:
        key = value.partition("=")[0].replace("-", "_")
        if word.endswith(("-option", "-o")) and key.rpartition(".")[2] == name and "=" in value:
            return f"{word} {name}"
    return None


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every option with what follows it, after a blank or an equals sign."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word.startswith("--") and "=" in word:
            option, _, value = word.partition("=")
            yield option, value
        elif word.startswith("-"):
            yield word, following
