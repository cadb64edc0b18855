"""A picture of certificates: certified accuracy over the radius, a line each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .figure import NORM_TEXT
from .files import check_output, write_whole
from .records.certificate import Certificate

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def save_radii(path: Path | str, certificates: Sequence[Certificate]) -> None:
    """Write a PNG, whole or not at all. At each radius the share of images that are right and proved to stay so within.

    Raises UserError for a path that cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_output(path, argument="--figure", suffix=".png")
    figure = Figure(figsize=(5.6, 3.9), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for certificate in certificates:
        table = certificate.table
        axes.plot(*staircase(table["radius"].to_numpy(), table["correct"].to_numpy()), label=_label(certificate))
    first = certificates[0].specification
    names = f"{first.model.name} on {first.dataset.name}, {first.defense}"
    axes.set_title(f"{names}, {first.dataset.samples:,} images", fontsize=9)
    axes.set_xlabel(f"radius in {NORM_TEXT[first.threat.norm]}")
    axes.set_ylabel("certified accuracy")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))


def staircase(radius: Floats, correct: Bools) -> tuple[Floats, Floats]:
    """The corners of certified accuracy over the radius, from radius 0 on, for images of these radii (N,).

    At a radius those count that are right and whose own is at least that: the line falls behind each of them.
    """
    right = np.sort(radius[correct])
    left = np.arange(len(right), -1, -1) / len(radius)
    return np.concatenate([[0.0], np.repeat(right, 2)]), np.repeat(left, 2)[:-1]


def _label(certificate: Certificate) -> str:
    told = certificate.specification.method.resolved
    words = (f"{name} {told[name]:,}" for name in ("sigma", "n", "alpha") if name in told)
    return ", ".join(words)
