"""A sweep's table as people read it: in the terminal, and as Markdown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..leaderboard.table import stacked_text, wrapped
from ..records.specification import threat_text
from .marks import RULE
from .plan import ADAPTIVE
from .table import KEY

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group
    from rich.table import Table

    Layout = Callable[[list[str], list[dict[str, Any]]], Table]

NAME_WIDTHS = (36, 24, 12)  # of the column of defenses where numbers stand in stacks
_SHARED = ["dataset", "n", "model", "norm", "eps"]
CAPTION = (
    "accuracy in %, mean and standard deviation over seeds; worst: images that withstand every attack, with 95 % "
    "Wilson interval; training in seconds; forward: time of a pass over that of the undefended network, and passes of "
    "the network for one prediction"
)


def _none(value: Any) -> bool:
    return value is None or value != value


def percent(mean: Any, std: Any = None) -> str:
    """`73.6`, or `73.6 ±1.2`.

    >>> percent(0.7361), percent(0.7361, 0.012)
    ('73.6', '73.6 ±1.2')
    """
    if _none(mean):
        return "-"
    return f"{100 * mean:.1f}" + ("" if _none(std) else f" ±{100 * std:.1f}")


def _groups(table: pd.DataFrame) -> Iterator[tuple[str, list[str], list[dict[str, Any]]]]:
    """For each model, data set and threat: a title, the attacks in order, the rows, each with its attacks' cells."""
    for _, part in table.groupby(_SHARED, sort=False, dropna=False):
        first = part.iloc[0]
        seeds = f"{len(first['seeds'])} seeds" if len(first["seeds"]) > 1 else f"seed {first['seeds'][0]}"
        threat = threat_text(first["norm"], first["eps"])
        title = f"{first['model']} on {first['dataset']}, {first['n']} images, {threat}, {seeds}"
        # The adaptive attack stands last: it is another one in each row.
        attacks = sorted(dict.fromkeys(part["attack"]), key=lambda name: name == ADAPTIVE)
        rows: list[dict[str, Any]] = []
        for _, own in part.groupby(KEY, sort=False, dropna=False):
            cells = {row["attack"]: row for row in own.to_dict("records")}
            rows.append({**{str(name): value for name, value in own.iloc[0].items()}, "cells": cells})
        yield title, attacks, rows


def _heads(attacks: list[str]) -> list[str]:
    """The attacks' labels, without a transfer's surrogate where no other column is told apart by it."""
    short = [attack.partition(" surrogate=")[0] for attack in attacks]
    return [name if short.count(name) == 1 else attack for name, attack in zip(short, attacks, strict=True)]


def _cells(row: dict[str, Any], attacks: list[str]) -> list[str]:
    shown = []
    for attack in attacks:
        cell = row["cells"].get(attack)
        shown.append("" if cell is None else percent(cell["robust_accuracy"], cell["robust_std"]))
    return shown


def _worst(row: dict[str, Any]) -> tuple[str, str]:
    return percent(row["worst"]), f"[{100 * row['worst_low']:.1f}, {100 * row['worst_high']:.1f}]"


def _training(row: dict[str, Any]) -> str:
    return "-" if _none(row["training_seconds"]) else f"{row['training_seconds']:.1f}"


def _forward(row: dict[str, Any]) -> tuple[str, str]:
    if _none(row["forward_ratio"]):
        return "-", ""
    return f"{row['forward_ratio']:.2f}x", f"{row['passes']:g} pass{'' if row['passes'] == 1 else 'es'}"


def _passes(row: dict[str, Any]) -> str:
    return "" if _none(row["passes"]) else f"{row['passes']:g}"


def _marked(mark: str) -> str:
    return "".join(f"\n{word}" for word in mark.split())


def _defense(row: dict[str, Any], between: str = " ") -> str:
    return between.join(filter(None, (row["defense"], row["defense_options"])))


def to_markdown(table: pd.DataFrame) -> str:
    """A GitHub table for each model, data set and threat, what its numbers are, and the rule of the marks."""
    lines: list[str] = []
    for title, attacks, rows in _groups(table) if len(table) else ():
        heads = ["defense", "mark", "worst", "clean", *_heads(attacks), *(["made of"] if ADAPTIVE in attacks else [])]
        heads += ["training", "forward"]
        lines += [f"**{title}**", "", _line(heads), _line(["---", "---", *["---:"] * (len(heads) - 2)])]
        for row in rows:
            own = row["cells"].get(ADAPTIVE)
            made_of = [f"`{own['made_of']}`" if own else ""] if ADAPTIVE in attacks else []
            lines.append(
                _line(
                    [
                        _defense(row),
                        row["mark"],
                        " ".join(_worst(row)),
                        percent(row["clean_accuracy"], row["clean_std"]),
                        *_cells(row, attacks),
                        *made_of,
                        _training(row),
                        ", ".join(filter(None, _forward(row))),
                    ]
                )
            )
        lines.append("")
    return "\n".join([*lines, f"{CAPTION[0].upper()}{CAPTION[1:]}.", "", RULE, ""])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def to_rich(table: pd.DataFrame, width: int) -> Iterator[Group]:
    """Title and table for the terminal, for each model, data set and threat; a narrow one has its numbers in stacks."""
    from rich.console import Console, Group
    from rich.text import Text

    groups = list(_groups(table)) if len(table) else []
    endless = Console(width=10_000)
    layouts: list[Layout] = [_wide, *(functools.partial(_narrow, names=names) for names in NAME_WIDTHS)]
    for layout in layouts:
        tables = [layout(attacks, rows) for _, attacks, rows in groups]
        if all(endless.measure(shown).maximum <= width for shown in tables):
            break
    for (title, _, _), shown in zip(groups, tables, strict=True):
        yield Group(Text(title, style="bold"), shown)


def _empty() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)


def _style(row: dict[str, Any]) -> str:
    return {"helps": "green", "fails": "red"}.get(row["mark"].partition(" ")[0], "")


def _wide(attacks: list[str], rows: list[dict[str, Any]]) -> Table:
    from rich.text import Text

    shown = _empty()
    for head in ("defense", "mark"):
        shown.add_column(head, no_wrap=True)
    heads = ["\n".join(wrapped(head, 12)) for head in _heads(attacks)]
    for head in ("worst", "95 %", "clean", *heads, "seconds", "forward", "passes"):
        shown.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        cells = [*_worst(row), percent(row["clean_accuracy"], row["clean_std"]), *_cells(row, attacks)]
        cells += [_training(row), _forward(row)[0], _passes(row)]
        shown.add_row(
            Text(_defense(row, "\n")), Text(row["mark"].replace(" ", "\n"), style=_style(row)), *map(Text, cells)
        )
    return shown


def _narrow(attacks: list[str], rows: list[dict[str, Any]], *, names: int) -> Table:
    from rich.text import Text

    shown = _empty()
    shown.add_column("defense\nmark", overflow="fold", min_width=min(names, 12))
    heads = ["\n".join(wrapped(head, 9)) for head in _heads(attacks)]
    for head in ("worst\n95 %\nclean", *heads, "seconds\nforward\npasses"):
        shown.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        worst, interval = _worst(row)
        clean = percent(row["clean_accuracy"], row["clean_std"])
        shown.add_row(
            Text(stacked_text([_defense(row)], names)).append(_marked(row["mark"]), style=_style(row)),
            Text("\n".join([worst, interval.strip("[]").replace(", ", "-"), clean])),
            *(Text(cell.replace(" ", "\n")) for cell in _cells(row, attacks)),
            Text(f"{_training(row)}\n{_forward(row)[0]}\n{_passes(row)}"),
        )
    return shown
