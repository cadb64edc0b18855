"""What `rbl evaluate` adds to some runs: accuracy by corruption and severity, and what a photograph undoes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..plan import Plan
    from ..result import Result


@dataclass(frozen=True)
class Addition:
    """A part of the answer: for a program, and as lines for a person."""

    json: dict[str, Any]
    lines: tuple[str, ...]


def by_cell(plan: Plan, result: Result, leaderboard: Path) -> Addition:
    """Accuracy under each attempt of an attack like `corruptions`; every prediction is kept beside the run files."""
    from ..cells import accuracy_table, of_plan, summary, write_cells
    from ..plan import shard_suffix
    from .terminal import count_bar

    with count_bar(f"{plan.attack.name}, one by one", len(plan.order)) as progress:
        frame = of_plan(plan, progress)
    file = write_cells(leaderboard, f"{result.run.specification.run_id()}{shard_suffix(plan)}", frame)
    table = accuracy_table(frame)
    told = summary(table)
    worst = told["worst_cell"]
    width = max(len("accuracy in %"), *(len(str(kind)) for kind in table.index))
    head = "".join(f"{level:>7}" for level in [*table.columns, "mean"])
    lines = [f"  {'accuracy in %':<{width}} {head}"]
    for kind, row in table.iterrows():
        values = [*row.tolist(), float(row.mean())]
        lines.append(f"  {kind!s:<{width}} " + "".join(f"{100 * value:7.1f}" for value in values))
    levels = [float(table[level].mean()) for level in table.columns]
    means = "".join(f"{100 * value:7.1f}" for value in [*levels, told["mean_cell_accuracy"]])
    lines.append(f"  {'mean':<{width}} {means}")
    lines.append(f"  worst: {worst['kind']} {worst['level']}, {100 * worst['accuracy']:.1f} %; predictions: {file}")
    return Addition({**told, "cells_file": str(file)}, tuple(lines))


def print_photo(plan: Plan, result: Result) -> Addition:
    """The destruction rate by transformation."""
    from ..print_photo import destruction_rate

    assert result.adversarial is not None, "the plan keeps images"
    table = destruction_rate(
        plan.defended(),
        plan.data.images(plan.order.sort().values),
        result.adversarial,
        result.column("label"),
        seed=plan.seed,
        batch_size=plan.batch_size,
        device=plan.device,
        votes=plan.draws[1],
        rejects=plan.rejects,
        hard_votes=plan.voters is not None,
    )
    rows = {str(name): {key: _number(value) for key, value in row.items()} for name, row in table.iterrows()}
    fooled = int(table.fooled.iloc[0])
    heads = ("right again, %", "clean right, %")
    lines = [
        f"  print-photo: {fooled} images that fool, and all clean ones that are right, transformed",
        f"  {'':<16}" + "".join(f"{head:>17}" for head in heads),
    ]
    for name, row in rows.items():
        lines.append(f"  {name:<16}" + "".join(f"{_percent(row[key]):>17}" for key in ("destroyed", "clean")))
    return Addition({"print_photo": rows}, tuple(lines))


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
