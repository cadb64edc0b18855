"""The classes of a data set put in the order of a list: that of a network's outputs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, close_names
from .dataset import Dataset
from .reading import shortened

NUMERIC = "numeric"
ARGUMENT = "--class-names"


def parse_classes(text: str) -> tuple[str, ...]:
    """The class list that `--class-names` names: a file, names with commas between, or "numeric".

    A file has a name a line, or is JSON: a list of names, `{"0": NAME, ...}` or `{NAME: 0, ...}` (torchvision's
    `class_to_idx`).

    Raises:
        UserError: Where there is no such file, or where it holds no such list.
    """
    path = Path(text).expanduser()
    if path.is_file():
        names = _read(path)
    elif re.search(r"[/\\]|\.(txt|json|csv)$", text):
        raise UserError(f"{ARGUMENT}: no such file {text!r}; give a file with one class name a line, or A,B,C")
    else:
        names = [name.strip() for name in text.split(",") if name.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1})[:1]:
        raise UserError(f"{ARGUMENT}: {twice[0]!r} is given twice; every class has one name")
    if names != [NUMERIC] and len(names) < 2:
        raise UserError(f"{ARGUMENT}: expected at least 2 class names, got {text!r}; give A,B,C or a file of names")
    return tuple(names)


def _read(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        return _ordered(json.loads(text))
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{ARGUMENT}: {path} is no list of class names ({reason}); give one name a line") from None


def _ordered(value: Any) -> list[str]:
    if isinstance(value, dict):
        by_index = all(isinstance(index, int) for index in value.values())
        pairs = {int(i): name for name, i in value.items()} if by_index else {int(i): n for i, n in value.items()}
        if sorted(pairs) != list(range(len(value))):
            raise ValueError(f"expected the indices 0..{len(value) - 1}")
        value = [pairs[i] for i in range(len(pairs))]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("expected a list of text, or an object with an index for each name")
    return value


def with_classes(data: Dataset, names: Sequence[str], *, argument: str = ARGUMENT) -> Dataset:
    """The data set with its classes in the order of `names`, which may hold more than it has.

    Names match exactly, else without regard to case, blanks, hyphens and underscores. A data set without names of its
    own (0, 1, 2, ...) takes these in order. A changed order changes the fingerprint.

    Args:
        data: The data set.
        names: The classes in the order of the network's outputs, or ("numeric",) for folders named by numbers.
        argument: What errors call the list.

    Raises:
        UserError: For a class of the data set that the list lacks or has twice.
    """
    names = _numeric(data, argument) if tuple(names) == (NUMERIC,) else tuple(names)
    if tuple(data.classes) == names:
        return data
    places = match(data.classes, names)
    if isinstance(places, str):
        if is_numbered(data.classes) and len(names) >= len(data.classes):
            return dataclasses.replace(data, classes=names)
        raise UserError(
            f"{argument}: the data set's class {places!r} is not in the list of {len(names)} once "
            f"({close_names(places, names) if len(names) < 50 else shortened(names)}); "
            f"the data set has {shortened(data.classes)}"
        )
    labels = torch.tensor(places)[data.labels]
    fingerprint = data.fingerprint
    if not torch.equal(labels, data.labels):
        fingerprint = hashlib.sha256(fingerprint.encode() + labels.numpy().astype("<i8").tobytes()).hexdigest()
    # A note on an order that is no longer that of the folders would be wrong.
    notes = tuple(note for note in data.reading.notes if not note.startswith("class order"))
    reading = dataclasses.replace(data.reading, notes=notes)
    return dataclasses.replace(data, classes=names, labels=labels, fingerprint=fingerprint, reading=reading)


def match(classes: Sequence[str], names: Sequence[str]) -> list[int] | str:
    """The place of each class in `names`; or the first class that is not there, or there more than once."""
    exact = _places(names)
    loose = _places([_key(name) for name in names])
    found = []
    for name in classes:
        at = exact.get(name) or loose.get(_key(name)) or []
        if len(at) != 1:
            return name
        found += at
    return found if len(set(found)) == len(found) else classes[0]


def is_numbered(classes: Sequence[str]) -> bool:
    """Whether the classes are only counted: 0, 1, 2, ..."""
    return list(classes) == [str(i) for i in range(len(classes))]


def _places(names: Sequence[str]) -> Mapping[str, list[int]]:
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    return places


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _numeric(data: Dataset, argument: str) -> tuple[str, ...]:
    wrong = next((name for name in data.classes if not name.isdecimal()), None)
    if wrong is not None:
        raise UserError(f"{argument}: numeric is for classes named by numbers, got {wrong!r}; give the names in order")
    return tuple(sorted(data.classes, key=int))
