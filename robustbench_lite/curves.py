"""Curves that a run file holds already: robust accuracy over what was spent, and over how far the attacker may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .files import check_output, write_whole
from .optimality import comparable, compare
from .records.run import Run
from .records.specification import OWN_LIMITS, threat_text
from .records.summary import distances

ARGUMENT = "--figure"
_NORM = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$", "l0": r"$\ell_0$"}
_STYLES = ("-", "--", ":", "-.")  # of the lines: another after every ten, which is how many colours there are


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
    and one over eps where a run is of a minimal attack; a line a run, a row of panels a threat.

    The title says what all runs share, the legend below what tells them apart. Over eps another says the optimality of
    those that `optimality.compare` takes together.
    Raises UserError for no run, a run that is not complete, or a path that cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not runs:
        raise UserError("RUN: expected at least one run, got none")
    check_output(path, argument=ARGUMENT, suffix=".png")
    rows = _rows(runs)
    names, shares = labels(runs, within_threat=True), _optimality(runs)
    width = max(len(panels) for _, panels in rows)
    columns = _columns(names, width)
    below = 0.22 * -(-len(runs) // columns) if len(runs) > 1 else 0.0
    figure = Figure(figsize=(5.2 * width, 3.8 * len(rows) + 0.4 + below), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title(runs), fontsize=10)
    lines: dict[int, Any] = {}
    for row, (threat, panels) in enumerate(rows):
        for place, (name, curves) in enumerate(panels):
            axes = figure.add_subplot(len(rows), width, row * width + place + 1)
            passes = "passes" in name
            for number, curve in enumerate(curves):
                if curve is not None:
                    said = "" if passes else shares[number]
                    lines[number] = _draw(axes, curve, said, number=number, logarithmic=passes)
            axes.set_xlabel(name)
            axes.set_ylim(-0.02, 1.02)
            axes.grid(alpha=0.25)
            if not place:
                axes.set_ylabel("robust accuracy")
            if len(rows) > 1:
                axes.set_title(threat, fontsize=9)
            if not passes and any(share for curve, share in zip(curves, shares, strict=True) if curve is not None):
                axes.legend(fontsize=8, loc="best", title="optimality", title_fontsize=8)
    if len(runs) > 1:
        told = [lines[number] for number in range(len(runs))]
        figure.legend(told, names, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    write_whole(path, lambda file: figure.savefig(file, format="png", metadata={"Software": None}))


def _rows(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, list[Curve | None]]]]]:
    """A row of panels a threat: what stands under each panel, and a curve a run that has one there."""
    threats = [_parts(run)[_THREAT] for run in runs]
    rows = []
    for threat in dict.fromkeys(threats):
        here = [run if threat == own else None for run, own in zip(runs, threats, strict=True)]
        panels: list[tuple[str, list[Curve | None]]] = []
        for calls, name in (("forwards", "forward passes an image"), ("backwards", "backward passes an image")):
            if any(run is not None and run.table[calls].to_numpy().any() for run in here):
                panels.append((name, [None if run is None else cost_curve(run, calls) for run in here]))
        minimal = [run if run is not None and run.specification.attack.minimal else None for run in here]
        norm = next((run.specification.threat.norm for run in minimal if run is not None), None)
        if norm is not None:
            panels.append((f"eps ({_NORM[norm]})", [None if run is None else distance_curve(run) for run in minimal]))
        rows.append((threat, panels))
    return rows


def _columns(names: Sequence[str], panels: int) -> int:
    """Of the legend: as many as fit under the panels."""
    return max(1, min(len(names), int(78 * panels / (8 + max(map(len, names))))))


def _draw(axes: Any, curve: Curve, label: str, *, number: int, logarithmic: bool) -> Any:
    # Nothing is spent before the clean pass, which is the first.
    at = np.maximum(curve.at, 1.0) if logarithmic else curve.at
    color, style = f"C{number % 10}", _STYLES[number // 10 % len(_STYLES)]
    (line,) = axes.step(
        at, curve.accuracy, where="post", label=label or "_", color=color, linestyle=style, linewidth=1.6
    )
    axes.plot(at[-1:], curve.accuracy[-1:], marker="o", markersize=4, color=color)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return line


def _optimality(runs: Sequence[Run]) -> list[str]:
    """What the legend says of each run; nothing where no other goes with it."""
    said = [""] * len(runs)
    for places in comparable(runs):
        for place, standing in zip(places, compare([runs[place] for place in places]), strict=True):
            said[place] = "-" if standing.optimality is None else f"{standing.optimality:.3f}"
    return said


def labels(runs: Sequence[Run], *, within_threat: bool = False) -> list[str]:
    """What tells the runs apart, and no more; the attack where nothing does. within_threat: where that is told."""
    parts = [_parts(run) for run in runs]
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    differ[_THREAT] = differ[_THREAT] and (not within_threat or not any(differ[:_THREAT]))
    if not any(differ):
        differ[_ATTACK] = True
    shown = [[text for text, which in zip(part, differ, strict=True) if which] for part in parts]
    return [", ".join(filter(None, texts)) or "no options" for texts in shown]


def title(runs: Sequence[Run]) -> str:
    """What the runs share: model, defense, data, attack and threat."""
    parts = [_parts(run) for run in runs]
    shared = [column[0] if len(set(column)) == 1 else "" for column in zip(*parts, strict=True)]
    for place, usual in ((_DEFENSE, "no defense"), (_QUERIES, "any number of queries")):
        if shared[place] == usual:
            shared[place] = ""
    return ", ".join(filter(None, shared)).replace("$", r"\$")


_DEFENSE, _ATTACK, _THREAT, _QUERIES = 1, 3, 5, 9


def _parts(run: Run) -> tuple[str, ...]:
    """What may tell a run from another."""
    s = run.specification
    return (
        s.model.name,
        "no defense" if s.defense == "none" else s.defense,
        s.dataset.name,
        s.attack.name,
        s.attack_options,
        threat_text(OWN_LIMITS if s.attack.own_limits else s.threat.norm, s.threat.eps),
        "" if s.target is None else f"target {s.target}",
        f"seed {s.seed}",
        f"{run.table.num_rows:,} images",
        "any number of queries" if s.max_queries is None else f"at most {s.max_queries:,} queries",
    )
