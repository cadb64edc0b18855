"""Pictures: images beside what was made of them, and how useful features are before and under an attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data import load_dataset
from ..data.dataset import Dataset
from ..errors import UserError
from ..files import check_output, write_whole
from .storage import provenance, read_rows

if TYPE_CHECKING:
    import pandas as pd

ARGUMENT = "--figure"
_COLOURS = {"robust": "#1b7837", "nonrobust": "#c1121f", "useless": "#8a8a8a"}
_WORDS = {"robust": "robustly useful", "nonrobust": "useful, not robustly", "useless": "not useful"}
_GREY, _RED = "#6b6b6b", "#c1121f"


def check_figure(path: Path | str) -> None:
    """Raise UserError, before a long run, where a picture could not be written after it."""
    check_output(path, argument=ARGUMENT, suffix=".png")


def draw_images(path: Path, data: Dataset, folders: Mapping[str, Path], *, rows: int = 6) -> None:
    """Training images beside what each construction made of them, with the labels that are learned.

    data: the training set they were made of. folders: of constructed data sets by name, in the order of the columns;
    those that leave images out (`errors`) are left out. A row a class, the first image of it that all have. A label
    that is not the image's own is red. Raises UserError where there is none.
    """
    whole: list[tuple[str, Dataset, dict[str, Any]]] = []
    for folder in folders.values():
        columns = read_rows(folder, "source_index", "label")
        said = provenance(folder)
        if len(columns["label"]) == said["dataset"]["samples"]:
            whole.append((said["symbol"], load_dataset(f"parquet:{folder}", split="train"), columns))
    places = [{int(s): k for k, s in enumerate(columns["source_index"])} for _, _, columns in whole]
    common = sorted(set.intersection(*(set(one) for one in places))) if places else []
    firsts: dict[int, int] = {}
    for index in common:
        firsts.setdefault(int(data.labels[index]), index)
    chosen = [firsts[label] for label in sorted(firsts)][:rows]
    if not chosen:
        raise UserError(f"{ARGUMENT}: no training image is in all of the data sets; name fewer --kinds")
    heads = ["image", *(symbol.replace("D_", "$D_{") + "}$" for symbol, _, _ in whole)]
    figure, axes = _grid(len(chosen), len(heads))
    for row, index in enumerate(chosen):
        own = int(data.labels[index])
        cells = [(data.images(torch.tensor([index]))[0], own)]
        for place, (_, made, columns) in zip(places, whole, strict=True):
            at = place[index]
            cells.append((made.images(torch.tensor([at]))[0], int(columns["label"][at])))
        for column, (image, label) in enumerate(cells):
            _show(axes[row][column], image, data.classes[label], wrong=label != own)
            if row == 0:
                axes[row][column].set_title(heads[column], fontsize=12)
    figure.suptitle(f"{data.name}: images, and what was made of them; below, the label that is learned", fontsize=10)
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def _grid(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.25 * columns + 0.2, 1.5 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis: Any, image: torch.Tensor, label: str, *, wrong: bool) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    grey = pixels.shape[2] == 1
    axis.imshow(pixels[:, :, 0] if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(label, fontsize=9, color=_RED if wrong else "#1a1a1a", labelpad=2)


def draw_usefulness(path: Path, frames: Mapping[str, pd.DataFrame], *, threat: str) -> None:
    """gamma over rho, a point a feature, a panel a network; on the diagonal the attack takes nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(frames) + 0.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Sequence[Any] = figure.subplots(1, len(frames), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (name, frame) in zip(panels, frames.items(), strict=True):
        live = frame[~frame["constant"]]
        for kind, colour in _COLOURS.items():
            part = live[live["kind"] == kind]
            label = f"{_WORDS[kind]}: {len(part)}"
            axis.scatter(part["rho"], part["gamma"], s=18, color=colour, alpha=0.75, label=label, linewidths=0)
        ends = [0.0, max(float(live["rho"].max()), 0.05) if len(live) else 1.0]
        axis.plot(ends, ends, color=_GREY, linewidth=0.8, linestyle=":")
        axis.axhline(0, color=_GREY, linewidth=0.8)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(r"$\rho$, usefulness")
        left_out = len(frame) - len(live)
        told = f"always the same, not shown: {left_out}" if left_out else None
        # Below the axis: anywhere inside it would lie among the points.
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": 3}
        axis.legend(frameon=False, fontsize=8, title=told, title_fontsize=8, **below)
        axis.grid(alpha=0.2)
    panels[0].set_ylabel(rf"$\gamma$, usefulness under {threat}")
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
