"""Printing: one table a part, for the terminal or as markdown, and the machine in words."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from robustbench_lite.environment import installed_version

from .measure import Measured, best_peer
from .parts import Part

# What the tables of each kind of comparison say of a contestant.
STEPS = ("seconds", "ratio to floor", "ratio to best peer", "robust accuracy", "forwards / image", "backwards / image")
PORTFOLIOS = (
    *("seconds", "ratio to best peer", "robust accuracy", "missed", "found alone"),
    *("forwards / image", "backwards / image"),
)
NEAREST = (
    "seconds",
    "ratio to best peer",
    "robust accuracy",
    "median distance",
    "forwards / image",
    "backwards / image",
)
PACKAGES = ("torch", "torchattacks", "foolbox", "adversarial-robustness-toolbox")


def machine(threads: int, cores: int) -> str:
    """Cores, processor and versions; nothing that names this one machine."""
    known = [f"{name} {version}" for name in PACKAGES if (version := installed_version(name))]
    return (
        f"{_processor()}, {cores} {'core' if cores == 1 else 'cores'}, {threads} "
        f"{'thread' if threads == 1 else 'threads'}, float32; Python {platform.python_version()}, {', '.join(known)}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def rows(found: Sequence[Measured], images: int, columns: Sequence[str] = STEPS) -> list[tuple[str, ...]]:
    """One row of text a contestant: its name and these columns; a dash where a number does not apply.

    missed: images that stand here and that the best peer fooled; found alone: the reverse.
    """
    floor, peer = next((m for m in found if m.kind == "floor"), None), best_peer(found)
    return [(m.name, *(_cell(column, m, floor, peer, images) for column in columns)) for m in found]


def _cell(column: str, m: Measured, floor: Measured | None, peer: Measured | None, images: int) -> str:
    """One number as text."""
    against = floor if column == "ratio to floor" else peer
    if column.startswith("ratio"):
        return "-" if against is None else f"{m.ratio(against):.3f}"
    if column in ("missed", "found alone"):
        if peer is None or peer.standing is None or m.standing is None:
            return "-"
        mine, theirs = (m.standing, peer.standing) if column == "missed" else (peer.standing, m.standing)
        return str(int((mine & ~theirs).sum()))
    if column == "seconds":
        return f"{statistics.median(m.seconds):.2f}"
    if column == "robust accuracy":
        return "-" if m.robust is None else f"{m.robust:.1%}"
    if column == "median distance":
        return "-" if m.distance is None else f"{m.distance:.4g}"
    return f"{(m.calls.forwards if column.startswith('forwards') else m.calls.backwards) / images:.2f}"


def title(part: Part, what: str, rounds: int) -> str:
    """What was compared, in one line."""
    turns = f"median of {rounds} turns" if rounds > 1 else "one turn"
    return f"{part.title}; {what}, {len(part.x)} images in batches of {part.batch_size}, {turns}"


def show(
    console: Console,
    part: Part,
    found: Sequence[Measured],
    *,
    what: str,
    columns: Sequence[str] = STEPS,
    rounds: int,
    markdown: bool,
) -> None:
    """The table of one part."""
    body, heads = rows(found, len(part.x), columns), ("", *columns)
    grid(console, title(part, what, rounds), heads, body, markdown=markdown)


def grid(
    console: Console,
    title: str,
    heads: Sequence[str],
    body: Sequence[Sequence[str]],
    *,
    left: Collection[str] = (),
    markdown: bool,
) -> None:
    """A table under its title; the first column and those in `left` begin at the left."""
    right = [i > 0 and head not in left for i, head in enumerate(heads)]
    if markdown:
        lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---:" if r else "---" for r in right) + " |"]
        lines += ["| " + " | ".join(row) + " |" for row in body]
        console.print(title, *["", *lines, ""], sep="\n", markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(title=title, title_justify="left")
    for head, at_right in zip(heads, right, strict=True):
        table.add_column(head, justify="right" if at_right else "left", no_wrap=not head)
    for row in body:
        table.add_row(*row)
    console.print(table)
