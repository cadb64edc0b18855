"""`rbl curve`: robust accuracy over what an attack spent, drawn from run files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """\
[bold]Examples[/]

rbl curve leaderboards/runs/RUN_ID.parquet --figure curve.png

rbl curve leaderboards/runs/small-cnn-none-digits-*.parquet --figure curve.png
"""


def curve(
    runs: Annotated[list[Path], typer.Argument(help="Run files, a line each.", metavar="RUN...")],
    figure: Annotated[Path, typer.Option(help="PATH.png of the picture.")] = Path("curve.png"),
) -> None:
    """Robust accuracy over forward and backward passes, and for minimal attacks over eps, as a picture.

    Nothing is computed again: each run file says when every image fell.
    """
    from ..curves import save_curves
    from ..records.run import read_run
    from .terminal import note

    save_curves(figure, [read_run(path) for path in runs])
    note(f"{figure}: {len(runs)} run{'s' if len(runs) > 1 else ''}")
