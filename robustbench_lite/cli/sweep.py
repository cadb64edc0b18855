"""`rbl sweep`: models x defenses x attacks x threats x seeds from a TOML file, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from ..sweep import Cell, Done
    from ..sweep.running import Bench

EPILOG = """\
[bold]Examples[/]

rbl sweep defenses.toml --dry-run

rbl sweep defenses.toml --leaderboard results --only "defense ~ trades" --only "seed = 0"

defenses.toml:

datasets = ["digits"]\n
models = ["small-cnn"]\n
threats = ["linf 0.1"]\n
attacks = ["pgd", "auto", "adaptive"]\n
defenses = ["none", "bit-depth", {{ use = ["trades"], options = {{ eps = "threat" }} }}]\n
seeds = \\[0, 1]
""".replace("{{", "{").replace("}}", "}")


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="What to combine; see docs/sweep.md.")],
    leaderboard: o.Leaderboard = Path("results"),
    only: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN OP VALUE over dataset, model, defense, defense_options, attack, norm, eps, seed."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained and run, and do nothing.")
    ] = False,
    data_dir: o.DataDir = None,
    download: o.Download = False,
    workers: o.Workers = 2,
    device: o.Device = "auto",
    as_json: o.AsJson = False,
) -> int:
    """Run every combination that a TOML file states, go on where it was stopped, and put all into one table.

    What is on the leaderboard already is not run again. What fails is passed by and told at the end (exit status 2).
    """
    from ..data import reading_line
    from ..data_request import DataRequest
    from ..prepare import pick_device
    from ..sweep import read_sweep, write_table
    from ..sweep.running import Bench
    from .evaluate import check_board
    from .terminal import note

    stated = read_sweep(file)
    cells = _chosen(stated.cells, only or [])
    leaderboard = leaderboard.expanduser()
    check_board(leaderboard / "runs")
    bench = Bench(
        stated, leaderboard, pick_device(device), DataRequest(data_dir=data_dir, download=download, workers=workers)
    )
    for line in dict.fromkeys(reading_line(cell.data.name, bench.data(cell)[1]) for cell in cells):
        note(line)
    if dry_run:
        return _dry(bench, cells, as_json=as_json)
    done = _run(bench, cells)
    table = write_table(leaderboard, stated.name, _files(bench, done))
    return _show(bench, table, done, as_json=as_json)


def _chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    import pandas as pd

    from ..errors import UserError
    from ..leaderboard import kept_by_each, select

    frame = pd.DataFrame([cell.row for cell in cells]).assign(place=range(len(cells)))
    try:
        places = select(frame, only)["place"]
    except UserError as error:
        raise UserError(str(error).replace("--where", "--only")) from None
    if not len(places):
        kept = "; ".join(kept_by_each(frame, only))
        raise UserError(
            f"--only: none of {len(cells)} combinations is left: {kept}; rbl sweep FILE.toml --dry-run lists them"
        )
    return [cells[place] for place in places]


def _dry(bench: Bench, cells: Sequence[Cell], *, as_json: bool) -> int:
    from .terminal import print_json

    bench.train = False
    networks: dict[Any, list[Cell]] = {}
    for cell in cells:
        networks.setdefault(cell.network, []).append(cell)
    rows: list[dict[str, Any]] = []
    for own in networks.values():
        trained = bench.is_trained(own[0])
        there = sum(bench.there(cell) is not None for cell in own) if trained else 0
        rows.append({"network": own[0].told_network, "trained": trained, "runs": len(own), "there": there})
    total, there = len(cells), sum(row["there"] for row in rows)
    untrained = len({own[0].training for own, row in zip(networks.values(), rows, strict=True) if not row["trained"]})
    if as_json:
        print_json({"runs": total, "there": there, "networks": rows})
        return 0
    for row in rows:
        state = "trained" if row["trained"] else "to train"
        typer.echo(f"{row['network']}: {state}, {row['there']} of {row['runs']} runs are there")
    typer.echo(f"{total} runs, {there} of them on {bench.leaderboard}; {untrained} trainings to come")
    return 0


def _run(bench: Bench, cells: Sequence[Cell]) -> list[Done]:
    from ..leaderboard import build
    from ..sweep import run_sweep
    from .sweeping import watching
    from .terminal import gentle_interrupt, warn

    try:
        with gentle_interrupt() as stop, watching(len(cells), stop) as watch:
            bench.watch = watch
            return run_sweep(bench, cells)
    finally:
        if (bench.leaderboard / "runs").is_dir():
            for problem in build(bench.leaderboard)[1]:
                warn(problem)


def _files(bench: Bench, done: Sequence[Done]) -> list[Path]:
    """The runs of all combinations of the sweep that are on the board, in their order, those left out by --only too."""
    bench.train = False
    known = {id(each.cell): each.file for each in done}
    every = (known[id(cell)] if id(cell) in known else bench.there(cell) for cell in bench.sweep.cells)
    return [file for file in every if file is not None]


def _show(bench: Bench, table: Any, done: Sequence[Done], *, as_json: bool) -> int:
    from rich.console import Console

    from ..sweep.shown import to_rich
    from .terminal import errors, print_json

    failed = [each for each in done if each.state == "failed"]
    counts = {state: sum(each.state == state for each in done) for state in ("ran", "there", "failed")}
    stem = bench.leaderboard / bench.sweep.name
    if as_json:
        rows = [] if not len(table) else _plain(table)
        told = [{"cell": str(each.cell), "error": each.error} for each in failed]
        print_json({**counts, "table": rows, "failures": told, "parquet": f"{stem}.parquet", "markdown": f"{stem}.md"})
    else:
        console = Console(emoji=False, highlight=False)
        for part in to_rich(table, console.width):
            console.print(part)
            console.print()
        out = Console(emoji=False, highlight=False, soft_wrap=True)
        out.print(f"{counts['ran']} ran, {counts['there']} were there, {counts['failed']} failed", markup=False)
        out.print(f"  table    {stem}.md, {stem.name}.parquet", markup=False)
        out.print(f"  see all  rbl leaderboard show --leaderboard {bench.leaderboard}", markup=False)
    for each in failed:
        errors.print(f"failed: {each.cell}: {each.error}", style="red", markup=False)
    return 2 if failed else 0


def _plain(table: Any) -> list[dict[str, Any]]:
    """The rows as plain JSON values, what is missing as null."""
    return [
        {str(name): None if isinstance(value, float) and value != value else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]
