"""A part of the image, at a random place, enlarged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError
from robustbench_lite.filters import grid, sampled
from robustbench_lite.streams import uniform_like


@dataclass(frozen=True)
class CropRescale(InferenceDefense):
    """Cuts out a window at a random place and enlarges it to the image's size (Guo et al. 2018, section 3.1).

    share: of each side, in (0, 1]. Randomised: attacks average over places (EOT), under which it holds nothing off
    (Athalye et al. 2018, section 5.3), and predictions are taken over many. Departure: the paper's windows have 90 of
    224 pixels, for a network that takes that size; enlarged, so small a window leaves most objects out.
    adaptive: pgd averaged over places (Athalye et al. 2018, section 5.3).
    """

    name: ClassVar[str] = "crop-rescale"
    summary: ClassVar[str] = "enlarges a window at a random place"
    source: ClassVar[str] = "Guo et al. 2018, arXiv:1711.00117"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}
    randomized: ClassVar[bool] = True

    share: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"share must be in (0, 1], got {self.share:g}")

    def transform(self, x: Tensor) -> Tensor:
        """The window, bilinear."""
        drawn = uniform_like(x.flatten(1)[:, :1].expand(-1, 2)).double()
        rows, columns = grid(x)
        down, across = _within(rows, drawn[:, 0], self.share), _within(columns, drawn[:, 1], self.share)
        size = (len(x), *x.shape[-2:])
        return sampled(x, down.expand(size), across.expand(size))


def _within(place: Tensor, drawn: Tensor, share: float) -> Tensor:
    """Where a line's pixels are taken from: a window of that share that begins at `drawn` of what is left over."""
    count = place.numel()
    first = drawn.reshape(-1, 1, 1) * (1 - share) * count
    return first + (place + 0.5) * share - 0.5
