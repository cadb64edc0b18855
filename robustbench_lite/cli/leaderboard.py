"""`rbl leaderboard`: show, build, merge and verify the table that is derived from run files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .app import App

app = App(
    no_args_is_help=True,
    help="The table that is derived from run files: show, build, merge, verify.",
    rich_markup_mode="rich",
    epilog="[bold]Example[/]  rbl leaderboard show --leaderboard results",
)


def _say(problems: list[str]) -> None:
    from .terminal import warn

    for problem in problems:
        warn(problem)


@app.command(
    epilog="[bold]Example[/]\n\nrbl leaderboard show --where 'norm = linf' --where 'robust < 0.5' --sort -robust"
)
def show(
    leaderboard: o.Leaderboard = Path("results"),
    sort: Annotated[str | None, typer.Option(help="COLUMN, or -COLUMN from the largest.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="COLUMN OP VALUE, with = != < <= > >= or ~ (contains); repeat for more.")
    ] = None,
    style: Annotated[str, typer.Option("--format", help="rich, markdown, csv or json.")] = "rich",
) -> None:
    """The runs of a leaderboard with 95 % Wilson intervals, recomputed from the run files."""
    from ..errors import unknown_name
    from ..leaderboard import derive, kept_by_each, reasons, select, to_csv, to_json, to_markdown, to_rich
    from ..records.certificate import certificate_files

    writers = {"markdown": to_markdown, "csv": to_csv, "json": to_json}
    if style != "rich" and style not in writers:
        raise unknown_name("--format", style, ["rich", *writers])
    frame, problems = derive(leaderboard)
    _say(problems)
    chosen = select(frame, where or [], sort)
    if not len(chosen) and (len(frame) or style == "rich"):
        from .terminal import note

        proved = len(list(certificate_files(leaderboard)))
        beside = f" (certificates: {proved}; rbl evaluate puts a run beside each)" if proved else ""
        none = f"no run of {len(frame)} matches: {'; '.join(kept_by_each(frame, where or []))}"
        note(none if len(frame) else f"no finished run in {leaderboard}{beside}")
    if style != "rich":
        typer.echo(writers[style](chosen).rstrip("\n"))
        return
    from rich.console import Console

    console = Console(emoji=False, highlight=False)
    console.print(to_rich(chosen, console.width))
    for reason in reasons(chosen):
        console.print(reason, markup=False)


@app.command(epilog="[bold]Example[/]\n\nrbl leaderboard build --leaderboard results")
def build(leaderboard: o.Leaderboard = Path("results")) -> None:
    """Derive leaderboard.parquet anew from all run files."""
    from ..leaderboard import FILE
    from ..leaderboard import build as derive_and_write

    frame, problems = derive_and_write(leaderboard)
    _say(problems)
    typer.echo(f"{leaderboard / FILE}: {len(frame)} runs")


@app.command(epilog="[bold]Example[/]\n\nrbl leaderboard merge results-of-machine-2 --leaderboard results")
def merge(
    other: Annotated[Path, typer.Argument(help="Another leaderboard's folder.")],
    leaderboard: o.Leaderboard = Path("results"),
) -> None:
    """Take in the run files of another folder, put shards together, and build."""
    from ..leaderboard import merge as take_in

    merged = take_in(leaderboard, other)
    _say(merged.problems)
    typer.echo(f"{leaderboard}: {len(merged.copied)} run files taken in, {len(merged.frame)} runs in all")


@app.command(epilog="[bold]Example[/]\n\nrbl leaderboard verify --leaderboard results")
def verify(leaderboard: o.Leaderboard = Path("results")) -> None:
    """Recompute every number from the rows; check hashes, distances and sums."""
    from ..errors import RecordError
    from ..leaderboard import derive
    from ..leaderboard import verify as check

    problems = check(leaderboard)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise RecordError(f"{leaderboard}: {len(problems)} problems found")
    frame, _ = derive(leaderboard)
    typer.echo(f"{leaderboard}: {len(frame)} runs, every number follows from the rows")
