"""Printing: one table a part, for the terminal or as markdown, and the machine in words."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from robustbench_lite.environment import installed_version

from .measure import Measured, best_peer
from .parts import Part

HEADS = (
    "",
    "seconds",
    "ratio to floor",
    "ratio to best peer",
    "robust accuracy",
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


def rows(found: Sequence[Measured], images: int) -> list[tuple[str, ...]]:
    """One row of text a contestant, under HEADS; a dash where a number does not apply."""
    floor, peer = next(m for m in found if m.kind == "floor"), best_peer(found)
    return [
        (
            m.name,
            f"{statistics.median(m.seconds):.2f}",
            f"{m.ratio(floor):.3f}",
            "-" if peer is None else f"{m.ratio(peer):.3f}",
            "-" if m.robust is None else f"{m.robust:.1%}",
            f"{m.calls.forwards / images:.2f}",
            f"{m.calls.backwards / images:.2f}",
        )
        for m in found
    ]


def title(part: Part, rounds: int) -> str:
    """What was compared, in one line."""
    return (
        f"{part.name}, {part.title}, PGD of {part.steps} steps from a random start, {len(part.x)} images in batches "
        f"of {part.batch_size}, median of {rounds} turns"
    )


def show(console: Console, part: Part, found: Sequence[Measured], *, rounds: int, markdown: bool) -> None:
    """The table of one part."""
    body = rows(found, len(part.x))
    if markdown:
        lines = ["| " + " | ".join(HEADS) + " |", "| --- |" + " ---: |" * (len(HEADS) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in body]
        console.print(title(part, rounds), *["", *lines, ""], sep="\n", markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(title=title(part, rounds), title_justify="left")
    for i, head in enumerate(HEADS):
        table.add_column(head, justify="right" if i else "left", no_wrap=not i)
    for row in body:
        table.add_row(*row)
    console.print(table)
