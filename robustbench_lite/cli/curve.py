"""`rbl curve`: robust accuracy over what an attack spent, drawn from run files alone, and which came nearest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..optimality import Standing
    from ..records.run import Run

EPILOG = """\
[bold]Examples[/]

rbl curve results/runs/RUN_ID.parquet --figure curve.png

rbl curve results/runs/small_cnn-none-digits-*.parquet --figure curve.png

rbl evaluate --model small-cnn --attack ddn --norm l2 --samples 100 --leaderboard nearest

rbl evaluate --model small-cnn --attack fmn --norm l2 --samples 100 --leaderboard nearest

rbl curve nearest/runs/*.parquet --figure nearest.png
"""

HEADS = ("attack", "clean", "median", "mean", "found", "forwards", "backwards", "optimality")
CAPTION = (
    "clean and found in %; median over all images, mean over those found; "
    "optimality: 1 as near as the nearest here on every image, 0 nothing found"
)


def curve(
    runs: Annotated[list[Path], typer.Argument(help="Run files, a line each.", metavar="RUN...")],
    figure: Annotated[Path, typer.Option(help="PATH.png of the picture.")] = Path("curve.png"),
) -> None:
    """Robust accuracy over forward and backward passes, and for minimal attacks over eps, as a picture.

    A table compares minimal attacks on the same model, norm and images: distances, cost and AttackBench's optimality.
    Nothing is computed again: each run file says when every image fell.
    """
    from ..curves import labels, save_curves
    from ..optimality import comparable, compare
    from ..records.run import read_run
    from .terminal import note

    read = [read_run(_run_file(path)) for path in runs]
    save_curves(figure, read)
    groups = comparable(read)
    for places in groups:
        together = [read[place] for place in places]
        _show(together[0], labels(together), compare(together))
    _say_alone(read, {place for places in groups for place in places})
    note(f"{figure}: {len(runs)} run{'s' if len(runs) > 1 else ''}")


def _run_file(path: Path) -> Path:
    """The path itself. UserError for a folder and for the table that is made of run files."""
    from ..errors import UserError
    from ..leaderboard import FILE

    if path.is_dir() or path.name == FILE:
        board = path if path.is_dir() else path.parent
        raise UserError(f"RUN: {str(path)!r} is no run file; run files are in {board / 'runs'}")
    return path


def _show(run: Run, names: Sequence[str], standings: Sequence[Standing]) -> None:
    """A headline and a row a run, from the nearest."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    s = run.specification
    n = run.table.num_rows
    head = (
        f"{s.model.name} on {s.dataset.name}, defense {s.defense}, {s.threat.norm}, {n:,} image{'s' if n > 1 else ''}"
    )
    Console(emoji=False, highlight=False, soft_wrap=True).print(head, markup=False, style="bold")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, caption=CAPTION, pad_edge=False)
    for name in HEADS:
        table.add_column(name, justify="left" if name == HEADS[0] else "right", overflow="fold")
    ranked = sorted(zip(names, standings, strict=True), key=lambda one: (-(one[1].optimality or 0.0), one[0]))
    for name, standing in ranked:
        table.add_row(Text(name), *_cells(standing))
    Console(emoji=False, highlight=False).print(table)


def _cells(standing: Standing) -> list[str]:
    def shown(value: float | None, form: str, *, times: int = 1) -> str:
        return "-" if value is None else format(times * value, form)

    return [
        shown(standing.clean_accuracy, ".1f", times=100),
        shown(standing.median_distance, ".4g"),
        shown(standing.mean_distance, ".4g"),
        shown(standing.found, ".1f", times=100),
        shown(standing.forwards, ".1f"),
        shown(standing.backwards, ".1f"),
        shown(standing.optimality, ".3f"),
    ]


def _say_alone(runs: Sequence[Run], shown: set[int]) -> None:
    """Why a minimal run is in no table, where another of its norm could have stood beside it."""
    from ..errors import UserError
    from ..optimality import compare
    from .terminal import note

    minimal = [place for place, run in enumerate(runs) if run.specification.attack.minimal]
    said: set[frozenset[int]] = set()
    for place in minimal:
        norm = runs[place].specification.threat.norm
        others = [p for p in minimal if p != place and runs[p].specification.threat.norm == norm]
        pair = frozenset({place, *others[:1]})
        if place in shown or not others or pair in said:
            continue
        said.add(pair)
        try:
            compare([runs[others[0]], runs[place]])
        except UserError as error:
            note(str(error))
