"""An error's first words, turned into the argument as the user typed it."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

# `eps must be >= 0`, `norm: unknown name`, `norm of attack noise: ...`, `attack option steps must be ...`
_FIRST = re.compile(r"(?:(?:attack|method) option |--[a-z]+-option )?(\w+)(?= must\b|:| of attack )")
_UNKNOWN = re.compile(r"(?:attack|method) option(?=: (?:\S+ has no|unknown) option '(\w+)')")
# Of one of several attacks: `attack option pgd.steps must be ...`, and what is to be given in its place.
_OWNED = re.compile(r"attack option (\S+)\.(\w+)(?= must\b|: it is given|: unknown name)")
_IN_PLACE = re.compile(r"\battack option(?=: no attack| \S+=VALUE)")
# Of the command-line library, which says it less plainly than errors of ours.
_WHOLE = re.compile(r"valid int(eger)?\b")
_CHOICE = re.compile(r"Invalid value for '\[?([\w-]+)\]?': (?:Value error, )?('.*') is not one of (.+)")
# What is checked under the name of the Python interface, and came from an option with a default.
_CAME_FROM = {"x": "--dataset", "y": "--dataset", "model": "--model", "method": "--method"}


def as_typed(message: str, arguments: Sequence[str]) -> str:
    """A message of the Python interface with its argument as it stands in `arguments`, the words of the command line.

    >>> as_typed("eps must be >= 0, got -1", ["evaluate", "--eps=-1"])
    '--eps must be >= 0, got -1'
    >>> as_typed("bits must be in 1..16, got 99", ["--defense-option", "bits=99"])
    '--defense-option bits must be in 1..16, got 99'
    """
    message = _of_several(message, arguments)
    found = _FIRST.match(message) or _UNKNOWN.match(message)
    typed = found and (_typed(found[1], arguments) or _CAME_FROM.get(found[1]))
    return typed + message[found.end() :] if found and typed else _without_folder(message, arguments)


def _of_several(message: str, arguments: Sequence[str]) -> str:
    """An error about an option of one of several attacks, which may be written with the attack's name or without."""
    message = _IN_PLACE.sub("--attack-option", message)
    owned = _OWNED.match(message)
    if not owned:
        return message
    written = rf"\S+\.{owned[2]}\s*="
    if any(re.match(written, value.replace("-", "_")) for _, value in _pairs(arguments)):
        return message.replace("attack option", "--attack-option", 1)
    return message.replace(f"{owned[1]}.", "", 1)


def place_of(error: BaseException) -> str:
    """`net.py:4`: where in the caller's own code an error came up, innermost; empty where none of it is.

    Neither this package nor an installed one nor Python's own is the caller's. A SyntaxError names its place itself.
    """
    if isinstance(error, SyntaxError):
        return ""
    others = [str(Path(__file__).parents[1]), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", *others))]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def usage(message: str, arguments: Sequence[str]) -> str:
    """A usage error of the command-line library in one line, with the value that came where it leaves it out."""
    line = " ".join(message.split()).rstrip(".")
    found = re.match(r"Invalid value for '(--[a-z-]+)", line)
    came = dict(_pairs(arguments)).get(found[1]) if found else None
    if found and _WHOLE.search(line):
        return f"{found[1]} must be a whole number, got {came!r}"
    if wrong := _CHOICE.fullmatch(line):
        choices = wrong[3].replace("'", "")
        return f"{wrong[1]} must be one of {choices}, got {wrong[2]}"
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
        if colon and message.startswith(f"importing {Path(file).name} raised "):
            return f"{option}: {message}"
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
