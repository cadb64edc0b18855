"""The matrix of who fools whom as a picture: a heat map with its numbers, the noise set apart."""

from __future__ import annotations

import math
import re
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .figure import NORM_TEXT, unmarked
from .files import check_output, write_whole
from .transfer_plan import NOISE

if TYPE_CHECKING:
    from .transfer import TransferMatrix

ARGUMENT = "--figure"

# In inches.
_WIDTH, _HEIGHT, _APART = 1.18, 0.72, 0.16
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.42, 0.28, 0.74, 0.46
_LINE, _LETTER, _LONGEST = 0.17, 0.083, 18
_BLACK, _DIM, _GREY, _PALE = "#1a1a1a", "#4d4038", "#6b6b6b", "#f1f1f1"
_COLOURS = ("#fff7ec", "#fee3bd", "#fdc38d", "#fb9a6a", "#ec6a4c", "#cb3a36", "#9a1322")
_FONT = "DejaVu Sans"  # comes with matplotlib


def save_matrix(path: Path | str, found: TransferMatrix) -> None:
    """Write a PNG, whole or not at all: a row a surrogate, a column a judged network, 0 to 100 % in colour.

    In a cell the share in %, its 95 % interval under it. No state of matplotlib is touched.
    Raises UserError where the file cannot be written.
    """
    check_output(path, argument=ARGUMENT, suffix=".png")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in another script
        canvas = _Canvas(found)
        canvas.names()
        for cell in found.cells.to_dict("records"):
            canvas.cell(cell)
        canvas.diagonal()
        canvas.title()
        try:
            write_whole(path, lambda file: canvas.figure.savefig(file, format="png", metadata={"Software": None}))
        except UserError as error:
            raise UserError(f"{ARGUMENT}: {error}") from error


def _wrapped(name: str) -> list[str]:
    """A name in lines, broken where its parts end if it can be."""
    lines = [""]
    for part in re.findall(r"[^:=/-]*[:=/-]?", name):
        if lines[-1] and len(lines[-1] + part) > _LONGEST:
            lines.append("")
        lines[-1] += part
    return [piece for line in lines for piece in textwrap.wrap(line, _LONGEST)] or [name]


class _Canvas:
    """Where things go, in inches from the left upper corner."""

    def __init__(self, found: TransferMatrix) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.figure import Figure

        self.found = found
        self.targets = [str(name) for name in found.matrix.columns]
        self.surrogates = [name for name in found.matrix.index if name != NOISE]
        self.heads = {name: _wrapped(name) for name in self.surrogates}
        longest = max(len(line) for lines in self.heads.values() for line in lines)
        self.column = max(_WIDTH, longest * _LETTER + 0.1)
        self.x0 = _LEFT + max(longest, len("random noise")) * _LETTER + 0.2
        self.y0 = _TOP + 0.27 + (max(map(len, self.heads.values())) + 1) * _LINE
        self.width = self.x0 + len(self.targets) * self.column + _RIGHT
        self.height = self.y0 + (len(self.surrogates) + 1) * _HEIGHT + _APART + _BOTTOM
        self.width = max(self.width, 4.6)
        self.figure: Any = Figure(figsize=(self.width, self.height), dpi=160, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axes: Any = self.figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0))
        self.axes.set_axis_off()
        self.colours = LinearSegmentedColormap.from_list("fooled", _COLOURS)

    def names(self) -> None:
        """What rows and columns are, and the accuracy of each network as it is."""
        middle = self.x0 + len(self.targets) * self.column / 2
        self._text(middle, _TOP + 0.14, "judged", size=9, color=_GREY)
        centre = self.y0 + len(self.surrogates) * _HEIGHT / 2
        self._text(_LEFT - 0.14, centre, "attacked", size=9, color=_GREY, rotation=90)
        for place, name in enumerate(self.targets):
            x = self.x0 + (place + 0.5) * self.column
            self._lines(x, self.y0 - _LINE * 1.45, self.heads[name], up=True)
            accuracy = f"clean {100 * self.found.clean_accuracy[name]:.1f} %"
            self._text(x, self.y0 - _LINE * 0.55, accuracy, size=6.5, color=_GREY)
        for place, name in enumerate(self.surrogates):
            y = self.y0 + (place + 0.5) * _HEIGHT
            self._lines(self.x0 - 0.12, y, self.heads[name], align="right")
        self._text(self.x0 - 0.12, self._top(NOISE) + _HEIGHT / 2 - 0.08, "random noise", align="right")
        self._text(
            self.x0 - 0.12, self._top(NOISE) + _HEIGHT / 2 + 0.09, "the control", size=6.5, color=_GREY, align="right"
        )

    def cell(self, cell: dict[Any, Any]) -> None:
        """One share, in its colour, with its interval."""
        from matplotlib.patches import Rectangle

        x = self.x0 + self.targets.index(cell["target"]) * self.column
        y, share = self._top(cell["surrogate"]), cell["share"]
        known = not math.isnan(share)
        face = self.colours(share) if known else _PALE
        self.axes.add_patch(Rectangle((x, y), self.column, _HEIGHT, facecolor=face, edgecolor="white", linewidth=1.6))
        middle, dark = x + self.column / 2, known and share > 0.72
        self._text(
            middle, y + _HEIGHT * 0.42, f"{100 * share:.1f}" if known else "-", size=12.5, color="w" if dark else _BLACK
        )
        under = f"{100 * cell['low']:.1f} to {100 * cell['high']:.1f}" if known else "no image counts"
        self._text(
            middle,
            y + _HEIGHT * 0.76,
            under,
            size=6.5,
            color="w" if dark else _BLACK if known and share > 0.4 else _DIM,
        )

    def diagonal(self) -> None:
        """A frame around what is no transfer: the network itself."""
        from matplotlib.patches import Rectangle

        inset = 0.025
        for place, name in enumerate(self.targets):
            corner = (self.x0 + place * self.column + inset, self._top(name) + inset)
            size = (self.column - 2 * inset, _HEIGHT - 2 * inset)
            self.axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=_BLACK, linewidth=1.1))

    def title(self) -> None:
        """What was done to what, and what the numbers are."""
        from .records.specification import eps_text

        said = self.found.specification
        threat, data, attack = said["threat"], said["dataset"], said["attack"]
        given = "".join(
            f", {key} {value:g}" if isinstance(value, float) else f", {key} {value}"
            for key, value in attack["options"].items()
        )
        size = f"{NORM_TEXT[threat['norm']]} $\\leq$ {eps_text(threat['eps'])}"
        what = f"Who fools whom: {unmarked(attack['name'] + given)}, {size}"
        self._text(self.width / 2, 0.25, what, size=10.5, limit=True, math_text=True)
        under = f"{data['name']}, {data['samples']:,} images; % fooled of those that both networks get right"
        self._text(self.width / 2, 0.49, under, size=7.5, color=_GREY, limit=True)
        foot = "small numbers: 95 % interval; framed: the network itself"
        self._text(self.width / 2, self.height - 0.2, foot, size=6.5, color=_GREY, limit=True)

    def _top(self, name: str) -> float:
        if name == NOISE:
            return self.y0 + len(self.surrogates) * _HEIGHT + _APART
        return self.y0 + self.surrogates.index(name) * _HEIGHT

    def _lines(self, x: float, y: float, lines: list[str], *, align: str = "center", up: bool = False) -> None:
        first = y - (len(lines) - 1) * _LINE * (1 if up else 0.5)
        for number, line in enumerate(lines):
            self._text(x, first + number * _LINE, line, align=align)

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 8.5,
        color: str = _BLACK,
        rotation: float = 0,
        align: str = "center",
        limit: bool = False,
        math_text: bool = False,
    ) -> None:
        drawn = self.axes.text(
            x,
            y,
            text,
            size=size,
            color=color,
            rotation=rotation,
            family=_FONT,
            usetex=False,
            parse_math=math_text,
            ha=align,
            va="center",
        )
        if limit:
            wide = drawn.get_window_extent(self.figure.canvas.get_renderer()).width / self.figure.dpi
            drawn.set_size(size * min(1.0, (self.width - 0.2) / wide))
