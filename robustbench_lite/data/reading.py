"""What was read of a data set, and its description in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dataset import Dataset
    from .decode import Framing

SHOWN = 6  # names listed in full; of a longer list the first three and the last
_WIDTH = 24  # characters of a name
_SPLITS = {"test": "test", "train": "training"}


@dataclass(frozen=True)
class Reading:
    """How a source read its files.

    counts: images by split, "test" and "train", as far as they are known. ignored: files left out, by extension.
    notes: how what was found was understood, where that needed a decision. question: what must be answered before the
    labels can be trusted; None where nothing is open. framing: how images were resized and cropped, where that is a
    network's own configuration.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    question: str | None = None
    framing: Framing | None = None


def reading_line(spec: str, *read: Dataset) -> str:
    """One line on the splits of a data set that were read, e.g. `digits: 10 classes (0 to 9), 360 test images`.

    Args:
        spec: The data set as the user named it.
        read: Its splits, at least one.
    """
    first = read[0]
    counts: dict[str, int] = {}
    ignored: dict[str, int] = {}
    for data in read:
        counts = {**data.reading.counts, **counts, data.split: len(data)}
        for extension, number in data.reading.ignored.items():
            ignored[extension] = ignored.get(extension, 0) + number
    parts = [f"{spec}: {_classes(first)}"]
    order = [split for split in _SPLITS if split in counts] + [split for split in counts if split not in _SPLITS]
    parts += [_count(counts[split], f"{_SPLITS.get(split, split)} image") for split in order if counts[split]]
    if ignored:
        parts.append(f"{_count(sum(ignored.values()), 'file')} ignored: {shortened(sorted(ignored))}")
    notes = dict.fromkeys(note for data in read for note in data.reading.notes)
    return "; ".join([", ".join(parts), *notes])


def shortened(names: Sequence[str]) -> str:
    """Names with commas between: all of a few, else the first three and the last.

    >>> shortened(["a", "b"]), shortened([str(i) for i in range(9)])
    ('a, b', '0, 1, 2, ..., 8')
    """
    cut = [name if len(name) <= _WIDTH else f"{name[: _WIDTH - 3]}..." for name in map(_printable, names)]
    return ", ".join(cut if len(cut) <= SHOWN else [*cut[:3], "...", cut[-1]])


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def _classes(data: Dataset) -> str:
    names = data.classes
    numbered = len(names) > 2 and list(names) == [str(i) for i in range(len(names))]
    told = f"0 to {len(names) - 1}" if numbered else shortened(names)
    present = len(set(data.labels.tolist()))
    without = f", images of {present:,} of them" if present < len(names) else ""
    return f"{len(names):,} class{'' if len(names) == 1 else 'es'} ({told}){without}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
