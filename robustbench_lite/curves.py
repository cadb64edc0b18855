"""Curves that a run file holds already: robust accuracy over what was spent, and over how far the attacker may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .examples import check_output
from .files import write_whole
from .optimality import comparable, compare
from .records.run import Run
from .records.specification import OWN_LIMITS, threat_text
from .records.summary import distances

ARGUMENT = "--figure"
_NORM = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$", "l0": r"$\ell_0$"}


@dataclass(frozen=True)
class Curve:
    """Robust accuracy (0 to 1) as a staircase: `accuracy[i]` holds from `at[i]` on; `at` ascends."""

    at: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    def value(self, where: float) -> float:
        """The accuracy at a point."""
        return float(self.accuracy[max(0, int(np.searchsorted(self.at, where, side="right")) - 1)])


def _staircase(falls: npt.NDArray[np.float64], samples: int, *, start: float, end: float) -> Curve:
    """From `start` right samples of `samples`, one less at each of `falls`."""
    at, counts = np.unique(falls, return_counts=True)
    left = start - np.concatenate([[0], np.cumsum(counts)])
    at = np.concatenate([[0.0], at])
    if end > at[-1]:
        at, left = np.append(at, end), np.append(left, left[-1])
    return Curve(at, left / samples)


def cost_curve(run: Run, calls: str = "forwards") -> Curve:
    """Robust accuracy over the passes spent on an image: a sample falls at what it had cost when it left.

    calls: "forwards" or "backwards". Passes of the proof are among them. A minimal attack's samples leave
    when all steps are done, so its curve says only what the whole cost.
    Raises UserError for a run that is not complete or has no samples.
    """
    _complete(run)
    spent = run.table[calls].to_numpy().astype(np.float64)
    success, correct = run.table["success"].to_numpy(), run.table["correct"].to_numpy()
    return _staircase(spent[success], len(spent), start=float(correct.sum()), end=float(spent.max()))


def distance_curve(run: Run) -> Curve:
    """Robust accuracy at every eps, from the nearest image that a minimal attack found of each sample.

    Raises UserError for a run of a fixed-eps attack, which looks no nearer than it must.
    """
    _complete(run)
    attack = run.specification.attack
    if not attack.minimal:
        raise UserError(f"attack {attack.name} looks for any image within eps; a curve over eps needs a minimal attack")
    far = np.asarray(distances(run))
    right = far[run.table["correct"].to_numpy()]
    found = right[np.isfinite(right)]
    return _staircase(found, len(far), start=float(len(right)), end=float(found.max(initial=0.0)))


def _complete(run: Run) -> None:
    if run.specification.status != "complete" or not run.table.num_rows:
        raise UserError(f"{run.specification.run_id()}: a curve needs a complete run, this one is a part")


def save_curves(path: Path, runs: Sequence[Run]) -> None:
    """Write a PNG, whole or not at all: a panel over forward passes, one over backward passes where any were made,
    and one over eps where a run is of a minimal attack; a line a run.

    Over eps the legend says the optimality of those that `optimality.compare` takes together.
    Raises UserError for no run, a run that is not complete, or a path that cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not runs:
        raise UserError("RUN: expected at least one run, got none")
    check_output(path, argument=ARGUMENT, suffix=".png")
    panels: list[tuple[str, list[Curve | None]]] = []
    for calls, name in (("forwards", "forward passes an image"), ("backwards", "backward passes an image")):
        if any(run.table[calls].to_numpy().any() for run in runs):
            panels.append((name, [cost_curve(run, calls) for run in runs]))
    norms = [run.specification.threat.norm if run.specification.attack.minimal else "" for run in runs]
    for norm in sorted({*norms} - {""}):
        near = [distance_curve(run) if norm == own else None for run, own in zip(runs, norms, strict=True)]
        panels.append((f"eps ({_NORM[norm]})", near))
    figure = Figure(figsize=(5.2 * len(panels), 4.2), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    names, shares = labels(runs), _optimality(runs)
    for place, (name, curves) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        passes = "passes" in name
        for number, (curve, label, share) in enumerate(zip(curves, names, shares, strict=True)):
            if curve is not None:
                said = label if passes else f"{share}  {label}".strip()
                _draw(axes, curve, said, color=f"C{number % 10}", logarithmic=passes)
        axes.set_xlabel(name)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.25)
        if not place:
            axes.set_ylabel("robust accuracy")
        told = not passes and any(share for curve, share in zip(curves, shares, strict=True) if curve is not None)
        if told or not place:
            axes.legend(fontsize=8, frameon=False, loc="best", title="optimality" if told else None, title_fontsize=8)
    write_whole(path, lambda file: figure.savefig(file, format="png", metadata={"Software": None}))


def _draw(axes: Any, curve: Curve, label: str, *, color: str, logarithmic: bool) -> None:
    # Nothing is spent before the clean pass, which is the first.
    at = np.maximum(curve.at, 1.0) if logarithmic else curve.at
    axes.step(at, curve.accuracy, where="post", label=label, color=color, linewidth=1.6)
    axes.plot(at[-1:], curve.accuracy[-1:], marker="o", markersize=4, color=color)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _optimality(runs: Sequence[Run]) -> list[str]:
    """What the legend says of each run; nothing where no other goes with it."""
    said = [""] * len(runs)
    for places in comparable(runs):
        for place, standing in zip(places, compare([runs[place] for place in places]), strict=True):
            said[place] = "-" if standing.optimality is None else f"{standing.optimality:.3f}"
    return said


def labels(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart, and no more."""
    parts = []
    for run in runs:
        s = run.specification
        parts.append(
            (
                s.model.name,
                s.defense,
                s.dataset.name,
                s.attack.name,
                s.attack_options,
                threat_text(OWN_LIMITS if s.attack.own_limits else s.threat.norm, s.threat.eps),
                f"seed {s.seed}",
                f"{run.table.num_rows:,} images",
                "" if s.max_queries is None else f"at most {s.max_queries:,} queries",
            )
        )
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    differ[3] = True
    return [" ".join(text for text, shown in zip(part, differ, strict=True) if shown and text) for part in parts]
