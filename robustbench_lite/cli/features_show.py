"""How `rbl features` tells its results: a table, one JSON object, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import print_json

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from ..data import Dataset
    from ..features.report import Report
    from ..features.synthetic import Synthetic


TableOut = Annotated[
    Path | None, typer.Option(help="PATH.csv or .parquet that receives the table.", rich_help_panel="Result")
]


def check_outputs(out: Path | None, figure: Path | None) -> None:
    """What would fail at the end of a long run fails before it."""
    from ..features.figure import check_figure
    from ..features.tables import check_table

    if out is not None:
        check_table(out)
    if figure is not None:
        check_figure(figure)


def parse_classes(text: str) -> tuple[int, int]:
    """`A,B` as two numbers."""
    from ..errors import UserError

    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--classes must be two class numbers A,B, got {text!r}")
    return int(parts[0]), int(parts[1])


def _files(out: Path | None, figure: Path | None) -> dict[str, str | None]:
    return {name: None if path is None else str(path) for name, path in (("out", out), ("figure", figure))}


def _print(head: str, table: Table, lines: list[str], files: Mapping[str, str | None]) -> None:
    from rich.console import Console

    wide = Console(emoji=False, highlight=False, soft_wrap=True)
    wide.print(head, markup=False, style="bold")
    Console(emoji=False, highlight=False).print(table)
    for line in lines:
        wide.print(line, markup=False)
    for name, path in files.items():
        if path is not None:
            wide.print(f"  {name:<8} {path}", markup=False)


def _table(heads: list[str], *, caption: str = "") -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, caption=caption or None)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def show_report(found: Report, data: Dataset, *, out: Path | None, figure: Path | None, as_json: bool) -> None:
    """Write the files that were asked for and tell the rest."""
    from ..features.figure import draw_images
    from ..features.tables import plain, save_table

    if out is not None:
        save_table(out, found.rows, found.said)
    if figure is not None:
        draw_images(figure, data, found.folders)
    files = _files(out, figure)
    if as_json:
        print_json(
            {
                "chance": found.chance,
                "networks": found.networks,
                "sets": found.summary(),
                "rows": plain(found.rows),
                "folders": {name: str(folder) for name, folder in found.folders.items()},
                **found.said,
                **files,
            }
        )
        return
    said = found.said
    head = f"{said['model']} on {said['dataset']['name']}, tested on {said['dataset']['test_images']:,} real images"
    table = _table(
        ["trained on", "images", "accuracy", "seeds", "robust", "y + 1", "linear"],
        caption=f"in %, means over {said['seeds']} seed{'s' if said['seeds'] > 1 else ''}; robust: under "
        f"{said['attack']['name']}, {said['attack']['norm']} {said['attack']['eps']:g}; y + 1: says the class after; "
        "linear: a linear layer on the robust network's features",
    )
    for row in found.summary():
        table.add_row(
            row["symbol"],
            f"{row['images']:,}",
            _percent(row["accuracy"]),
            f"{_percent(row['accuracy_low'])}-{_percent(row['accuracy_high'])}",
            _percent(row["robust_accuracy"]),
            _percent(row["next_class"]),
            _percent(row["linear_on_robust_features"]),
        )
    table.add_row("chance", "", _percent(found.chance), "", "", "", "", style="dim")
    networks = ", ".join(f"{name} {_percent(value)} %" for name, value in found.networks.items())
    lines = [f"  networks whose features were used: {networks}"]
    reached = [f"{row['symbol']} {_percent(row['reached'])} %" for row in found.summary() if row["reached"] is not None]
    if reached:
        lines.append(f"  moved to their label: {', '.join(reached)}")
    _print(head, table, lines, files)


def read_beside(paths: list[Path], figure: Path | None) -> dict[str, pd.DataFrame]:
    """Earlier measurements of usefulness by the names of their networks."""
    from ..errors import UserError
    from ..features.tables import load_table

    if paths and figure is None:
        raise UserError("--beside: it is for the picture; give --figure too")
    found = {}
    for path in paths:
        frame, said = load_table(path, argument="--beside")
        if "gamma" not in frame:
            raise UserError(f"--beside: {str(path)!r} is no table of rbl features usefulness")
        found[_named(said)] = frame
    return found


def _named(said: Mapping[str, Any]) -> str:
    return str(said["model"]) + ("" if said["defense"] == "none" else f", {said['defense']}")


def show_usefulness(
    frame: pd.DataFrame,
    said: dict[str, Any],
    *,
    panels: Mapping[str, pd.DataFrame],
    out: Path | None,
    figure: Path | None,
    as_json: bool,
) -> None:
    """Counts by kind, and the features of most use."""
    from ..features.figure import draw_usefulness
    from ..features.tables import plain, save_table
    from ..figure import NORM_TEXT

    name = _named(said)
    if out is not None:
        save_table(out, frame, said)
    if figure is not None:
        draw_usefulness(figure, {**panels, name: frame}, threat=f"{NORM_TEXT[said['norm']]} {said['eps']:.3g}")
    counts = {kind: int((frame["kind"] == kind).sum()) for kind in ("robust", "nonrobust", "useless")}
    files = _files(out, figure)
    if as_json:
        print_json({**said, "counts": counts, "features": plain(frame), **files})
        return
    table = _table(["feature", "tells", "rho", "gamma", "kind"], caption="the ten of largest rho")
    for row in frame.sort_values("rho", ascending=False).head(10).to_dict("records"):
        against = "the rest" if row["negative"] < 0 else str(row["negative"])
        own = (str(row["positive"]), against)
        table.add_row(
            f"{'-' if row['sign'] < 0 else ''}{row['feature']}",
            f"{own[0]} from {own[1]}",
            f"{row['rho']:.3f}",
            f"{row['gamma']:.3f}",
            row["kind"],
        )
    head = f"{name} on {said['dataset']}, {said['attack']}, {said['norm']} {said['eps']:.4g}, {said['images']:,} images"
    words = "robustly useful", "useful, not robustly", "not useful"
    told = ", ".join(f"{counts[kind]} {word}" for kind, word in zip(counts, words, strict=True))
    constant = int(frame["constant"].sum())
    lines = [f"  of {len(frame)} features {told}" + (f" ({constant} always the same)" if constant else "")]
    lines.append(f"  mean rho {frame['rho'].mean():.3f}, mean gamma {frame['gamma'].mean():.3f}")
    _print(head, table, lines, files)


def show_synthetic(
    case: Synthetic, frame: pd.DataFrame, notes: dict[str, float], *, out: Path | None, as_json: bool
) -> None:
    """The closed form beside what was measured."""
    from ..features.tables import plain, save_table

    said = {**asdict(case), "notes": notes}
    if out is not None:
        save_table(out, frame, said)
    if as_json:
        print_json({**said, "classifiers": plain(frame), **_files(out, None)})
        return
    table = _table(
        ["classifier", "accuracy", "measured", "robust", "measured", "bound"],
        caption="in %; bound on robust: p / (1 - p) times the errors (Tsipras et al. 2019, theorem 2.1)",
    )
    columns = ("accuracy", "measured_accuracy", "robust_accuracy", "measured_robust_accuracy", "bound")
    for row in frame.to_dict("records"):
        table.add_row(row["classifier"], *(_percent(row[name]) for name in columns))
    head = (
        f"{case.features:,} features of correlation {case.correlation:g} and one of p = {case.p:g}, linf "
        f"{notes['eps']:.4g}, {case.samples:,} samples"
    )
    lines = [f"  correlation as found: mean {notes['measured_correlation']:.5f}"]
    _print(head, table, lines, _files(out, None))
