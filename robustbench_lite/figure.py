"""A picture of what an attack did: image, perturbation magnified and adversarial image, as papers show them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import UserError
from .files import check_output, write_whole

if TYPE_CHECKING:
    from .plan import Plan
    from .result import Result

ARGUMENT = "--figure"
NORM_TEXT = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$", "l0": r"$\ell_0$"}

_DPI = 160
_CELL = 224  # pixels that the larger side of an image gets, by a whole factor
_LARGEST = 448  # larger images are shown through every n-th pixel
_GAP, _BLOCK_GAP, _SIDE, _FOOT = 26, 60, 34, 14
_CAPTION, _HEADING, _TITLE = 66, 34, 64
_BLACK, _GREY, _RED = "#1a1a1a", "#6b6b6b", "#c1121f"
_FONT = "DejaVu Sans"  # comes with matplotlib
_LEVELS = (1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500, 1000)


@dataclass(frozen=True)
class Caption:
    """What stands under one row: predictions with their confidence in [0, 1], and what became of the attack.

    outcome: "fooled", "robust" or "not attacked". distance: of the perturbation, as text.
    """

    index: int
    label: int
    prediction: int
    confidence: float
    adversarial_prediction: int
    adversarial_confidence: float
    outcome: str
    distance: str = ""


def check_figure_path(path: Path | str) -> None:
    """Raise UserError, before a long run, where a figure could not be written after it."""
    check_output(path, argument=ARGUMENT, suffix=".png")


def figure_of(result: Result, plan: Plan, path: Path | str, *, rows: int = 8) -> None:
    """Draw up to `rows` samples of a result, chosen by `choose`, with predictions as recorded.

    Those that were not attacked are left out, unless none was.

    Confidences are the softmax of float32 logits (mean over `votes` draws of a randomised network),
    computed here for these samples only; where the network gives probabilities, these.

    Raises UserError where rows < 1, the result kept no images or `path` cannot be written.
    """
    if rows < 1:
        raise UserError(f"rows must be >= 1, got {rows}")
    if result.adversarial is None:
        raise UserError(f"{ARGUMENT}: the run kept no images; ask for them before it (Plan.keep_images)")
    table = result.run.table.to_pydict()
    attacked_ones = result.column("attacked").bool()
    chosen = choose(result.column("label"), result.success, attacked_ones, rows=rows)
    if attacked_ones.any():
        chosen = chosen[attacked_ones[chosen]]
    index = result.column("index")[chosen]
    images, adversarial = plan.data.images(index), result.adversarial[chosen]
    norm, cells, own_limits = plan.threat.norm, plan.attack.cells, plan.attack.own_limits
    captions = []
    clean, moved = _probabilities(plan, images), _probabilities(plan, adversarial)
    for k, row in enumerate(chosen.tolist()):
        prediction, other = table["prediction"][row], table["adversarial_prediction"][row]
        distance = table[f"distance_{norm}"][row]
        size = f"{NORM_TEXT[norm]} = {distance:.3g}" if table["attacked"][row] else ""
        if own_limits:
            size = " ".join(cells[table["restart"][row]]) if cells and table["success"][row] else ""
        fooled, attacked = table["success"][row], table["attacked"][row]
        captions.append(
            Caption(
                index=table["index"][row],
                label=table["label"][row],
                prediction=prediction,
                confidence=float(clean[k, prediction]),
                adversarial_prediction=other,
                adversarial_confidence=float(moved[k, other]),
                outcome="fooled" if fooled else "robust" if attacked else "not attacked",
                distance=size,
            )
        )
    save_figure(
        path,
        images,
        adversarial,
        captions=captions,
        classes=(*plan.data.classes, "rejected"),
        title=_title(result),
        headings=_headings(plan),
    )


def _headings(plan: Plan) -> tuple[str, str, str]:
    """What the columns show; an attack that persists begins with noise, not with the image."""
    if plan.attack.persists:
        return "image of the label", "difference", "what noise became"
    return "image", "difference" if plan.attack.own_limits else "perturbation", "adversarial image"


def choose(labels: Tensor, success: Tensor, attacked: Tensor, *, rows: int) -> Tensor:
    """Which samples to show, (at most rows,) int64: successes, then the robust, then those not attacked.

    Within each kind they come evenly from the classes: the first of every class, then the second, and so on.
    """
    kind = torch.where(success, 0, torch.where(attacked, 1, 2)).numpy()
    classes = labels.numpy()
    order = np.lexsort((np.arange(len(kind)), classes, kind))
    key = kind[order].astype(np.int64) * (int(classes.max(initial=0)) + 1) + classes[order]
    turn = np.empty(len(kind), np.int64)
    turn[order] = np.arange(len(kind)) - np.searchsorted(key, key)
    # Of many classes, an even selection, not the first of the alphabet.
    first = np.lexsort((classes, turn, kind))
    leading = first[(kind[first] == kind[first[0]]) & (turn[first] == 0)] if len(first) else first
    if len(leading) > rows:
        return torch.from_numpy(leading[np.linspace(0, len(leading) - 1, rows).round().astype(np.int64)])
    return torch.from_numpy(first[:rows].copy())


def _probabilities(plan: Plan, x: Tensor) -> Tensor:
    """Softmax (N, K) of the defended network's logits, each image with its own stream of the run's seed.

    (N, K + 1) where it may reject.
    """
    from .network import Noise, exact_float32, frozen
    from .streams import Stream, content_hashes

    module = plan.defended().to(plan.device)
    devices = [torch.device(plan.device)] if torch.device(plan.device).type == "cuda" else []
    with exact_float32(), frozen(module), torch.random.fork_rng(devices):
        torch.manual_seed(plan.seed)
        network = plan.network(module)
        stream = Stream.of(content_hashes(x), seed=plan.seed, device=plan.device).child("figure")
        zero = torch.zeros(len(x), dtype=torch.int64, device=plan.device)
        logits = network.logits(x.to(plan.device), Noise(stream, zero), draws=plan.draws[1]).cpu().double()
    if (logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-4).all():
        return logits
    return logits.softmax(1)


def _title(result: Result) -> str:
    from .records.specification import eps_text

    specification = result.run.specification
    threat = specification.threat
    options = specification.attack_options
    own = unmarked(f"its own limits{f' ({options})' if options else ''}")
    size = own if specification.attack.own_limits else f"{NORM_TEXT[threat.norm]} $\\leq$ {eps_text(threat.eps)}"
    defense = "" if specification.defense == "none" else f" + {specification.defense}"
    aim = "" if specification.target is None else f" (target {specification.target})"
    model, data = unmarked(f"{specification.model.name}{defense}"), unmarked(specification.dataset.name)
    return (
        f"{model} under {unmarked(specification.attack.name + aim)}, "
        f"{size}\n"
        f"{data}, {result.n:,} images: clean {100 * result.clean_accuracy:.1f} %, "
        f"robust {100 * result.robust_accuracy:.1f} %{_left_out(result)}"
    )


def _left_out(result: Result) -> str:
    """How many were wrong before, and are not shown."""
    count = result.n - int(result.column("attacked").sum())
    return f" ({count:,} not attacked, not shown)" if 0 < count < result.n else ""


def save_figure(
    path: Path | str,
    images: Tensor,
    adversarial: Tensor,
    *,
    captions: Sequence[Caption],
    classes: Sequence[str],
    title: str,
    headings: tuple[str, str, str] = ("image", "perturbation", "adversarial image"),
) -> None:
    """Write a PNG, whole or not at all: a row a sample, more than four in two blocks side by side.

    images, adversarial: (N, C, H, W) in [0, 1], N >= 1; one channel is grey, three or more are colour (the first
    three), two the mean. The perturbation is magnified by one factor for all, named over it, about mid-grey;
    what it takes beyond black and white is cut. Pixels are drawn as they are, in whole multiples. The same
    arguments give the same bytes. No state of matplotlib is touched.

    Raises UserError where the file cannot be written.
    """
    check_output(path, argument=ARGUMENT, suffix=".png")
    images, adversarial = images.detach().cpu().double(), adversarial.detach().cpu().double()
    delta = adversarial - images
    factor = magnification(delta)
    shown = [_pixels(t) for t in (images, 0.5 + factor * delta, adversarial)]
    first, middle, last = headings
    over = (first, f"{middle} $\\times$ {factor:g}" if factor != 1 else middle, last)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a class's name in another script
        canvas = _Canvas(len(images), shown[0].shape[1:3])
        canvas.head(title, over)
        for row, caption in enumerate(captions):
            canvas.row(row, [part[row] for part in shown], under=_under(caption, classes), index=caption.index)
        canvas.save(path)


def _under(caption: Caption, classes: Sequence[str]) -> list[tuple[str, str, bool]]:
    """What stands under each of the three pictures: two lines, and whether they tell of a wrong answer."""
    fooled, wrong = caption.outcome == "fooled", caption.prediction != caption.label
    clean = _named(classes, caption.prediction, caption.confidence)
    adversarial = _named(classes, caption.adversarial_prediction, caption.adversarial_confidence)
    return [
        (clean, f"label: {_name(classes, caption.label)}", wrong),
        (caption.distance, "", False),
        (adversarial, caption.outcome, fooled),
    ]


def magnification(delta: Tensor) -> float:
    """The largest round factor that keeps 99.5 % of the changed numbers of `delta` within half of the range."""
    changed = delta.abs()[delta != 0]
    if not len(changed):
        return 1.0
    reach = float(np.quantile(changed.numpy(), 0.995))
    return float(max((level for level in _LEVELS if level * reach <= 0.5 + 1e-6), default=1.0))


def _pixels(x: Tensor) -> npt.NDArray[np.float64]:
    """Images as (N, H, W, 3) in [0, 1], enlarged by a whole factor or thinned."""
    if x.shape[1] == 2:
        x = x.mean(1, keepdim=True)
    x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]
    largest = max(x.shape[2:])
    step = -(-largest // _LARGEST)
    factor = max(1, round(_CELL / largest))
    array = x[:, :, ::step, ::step].clamp(0, 1).permute(0, 2, 3, 1).double().numpy()
    grown: npt.NDArray[np.float64] = array.repeat(factor, axis=1).repeat(factor, axis=2)
    return grown


class _Canvas:
    """Where things go, in pixels from the left upper corner; drawn without any global state."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.cell_height, self.cell_width = size
        self.blocks = 2 if count > 4 else 1
        self.per_block = -(-count // self.blocks)
        self.block_width = 3 * self.cell_width + 2 * _GAP
        self.width = 2 * _SIDE + self.blocks * self.block_width + (self.blocks - 1) * _BLOCK_GAP
        self.pitch = self.cell_height + _CAPTION
        self.height = _TITLE + _HEADING + self.per_block * self.pitch + _FOOT
        self.figure: Any = Figure(figsize=(self.width / _DPI, self.height / _DPI), dpi=_DPI, facecolor="white")
        self.canvas: Any = FigureCanvasAgg(self.figure)

    def head(self, title: str, headings: Sequence[str]) -> None:
        """The title, one or two lines, and what each column shows."""
        for line, text in enumerate(title.split("\n")):
            self._text(self.width / 2, 24 + 21 * line, text, size=8.5 if line == 0 else 7, limit=self.width - 20)
        for block in range(self.blocks):
            for column, heading in enumerate(headings):
                x = self._left(block, column) + self.cell_width / 2
                self._text(x, _TITLE + _HEADING - 12, heading, size=7.5, limit=self.cell_width + _GAP - 6)

    def row(
        self, row: int, cells: Sequence[npt.NDArray[np.float64]], *, under: Sequence[tuple[str, str, bool]], index: int
    ) -> None:
        """One sample: its three pictures, what stands under them, and its index at the side."""
        block, place = divmod(row, self.per_block)
        top = _TITLE + _HEADING + place * self.pitch
        middle, foot = top + self.cell_height / 2, top + self.cell_height
        self._text(self._left(block, 0) - 12, middle, f"#{index}", size=5.5, color=_GREY, rotation=90)
        limit = self.cell_width + _GAP - 6
        for column, (cell, (first, second, red)) in enumerate(zip(cells, under, strict=True)):
            left = self._left(block, column)
            self._image(left, top, cell)
            if column:
                self._text(left - _GAP / 2, middle, " +="[column], size=9, color=_GREY)
            x = left + self.cell_width / 2
            self._text(x, foot + 15, first, size=7.5, color=_RED if red else _BLACK, limit=limit)
            self._text(x, foot + 34, second, size=6, color=_RED if red else _GREY, limit=limit)

    def save(self, path: Path | str) -> None:
        """Draw, and write the file."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                self.canvas.print_png(file, metadata={"Software": None})

        try:
            write_whole(path, write)
        except UserError as error:
            raise UserError(f"{ARGUMENT}: {error}") from error

    def _left(self, block: int, column: int) -> int:
        return _SIDE + block * (self.block_width + _BLOCK_GAP) + column * (self.cell_width + _GAP)

    def _image(self, left: int, top: int, cell: npt.NDArray[np.float64]) -> None:
        from matplotlib.patches import Rectangle

        height, width = cell.shape[:2]
        bottom = self.height - top - height
        self.figure.figimage(cell, xo=left, yo=bottom, origin="upper")
        # A hairline, so that a white image ends somewhere.
        self.figure.add_artist(
            Rectangle(
                (left / self.width, bottom / self.height),
                width / self.width,
                height / self.height,
                fill=False,
                edgecolor="#b8b8b8",
                linewidth=0.5,
            )
        )

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        color: str = _BLACK,
        rotation: float = 0,
        limit: float | None = None,
    ) -> None:
        if not text:
            return
        drawn = self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            size=size,
            color=color,
            rotation=rotation,
            family=_FONT,
            # Whatever the user's own settings say.
            usetex=False,
            parse_math=True,
            ha="center",
            va="center",
        )
        if limit is not None:
            width = drawn.get_window_extent(self.canvas.get_renderer()).width
            drawn.set_size(size * min(1.0, limit / width))


def _name(classes: Sequence[str], label: int, longest: int = 26) -> str:
    """A class's name, the first of several, cut where it is long."""
    name = classes[label].split(",")[0]
    return unmarked(name if len(name) <= longest else f"{name[: longest - 1]}…")


def unmarked(text: str) -> str:
    """Text in which a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def _named(classes: Sequence[str], label: int, confidence: float) -> str:
    return f"{_name(classes, label)} ({100 * confidence:.0f} %)"
