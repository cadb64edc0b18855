"""What was seen of a training, epoch by epoch: rows, a file of them, and a picture of the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import write_whole

SUFFIXES = (".csv", ".parquet")


@dataclass
class History:
    """One row an epoch.

    stage: which training of the defense, from 1 (a teacher, then a student). epoch: from 1. loss, accuracy: means over
    the epoch, of what was learned from. lr: of its last step. seconds: what it took. validation_accuracy,
    validation_robust_accuracy: on the images that were held out, where there were any. Besides, what a defense notes.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    noted: dict[str, tuple[float, int]] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        """Count a number in the mean of the present epoch."""
        total, count = self.noted.get(name, (0.0, 0))
        self.noted[name] = total + float(value), count + 1

    def add(self, row: Mapping[str, Any]) -> None:
        """End the epoch."""
        means = {name: total / count for name, (total, count) in self.noted.items()}
        self.rows.append({**row, **means})
        self.noted = {}


def write_history(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the rows as CSV or Parquet, whole or not at all."""
    import pandas as pd

    table = pd.DataFrame(list(rows))
    write = table.to_csv if path.suffix.lower() == ".csv" else table.to_parquet
    write_whole(path, lambda temporary: write(temporary, index=False))


def draw_history(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """The curves of a training as a picture: loss above, accuracies and learning rate below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title)
    epochs = list(range(1, len(rows) + 1))
    shares = [name for name in _columns(rows) if name.endswith("accuracy")]
    others = [
        name
        for name in _columns(rows)
        if name not in (*shares, "stage", "epoch", "lr", "seconds", "loss") and _numbers(rows, name)
    ]
    for axis, names in ((above, ["loss", *others]), (below, shares)):
        for name in names:
            axis.plot(epochs, [row.get(name) for row in rows], marker="o", markersize=3, label=name.replace("_", " "))
        for k in range(1, len(rows)):
            if rows[k].get("stage") != rows[k - 1].get("stage"):
                axis.axvline(k + 0.5, color="#6b6b6b", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    rate = above.twinx()
    rate.plot(epochs, [row.get("lr") for row in rows], color="#6b6b6b", linewidth=1, linestyle="--")
    rate.set_ylabel("learning rate (dashed)", color="#6b6b6b")
    rate.set_ylim(bottom=0)
    above.set_ylabel("loss")
    below.set_ylabel("share of images")
    below.set_ylim(0, 1.02)
    below.yaxis.set_major_formatter(PercentFormatter(1.0))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set_xlabel("epoch")
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def training_seconds(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """What all epochs took together; None where a training left no history."""
    return round(sum(float(row["seconds"]) for row in rows), 3) if rows else None


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(isinstance(row.get(name), float | int) for row in rows)
