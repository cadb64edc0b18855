"""The image made smaller by a random share, at a random place on black."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError
from robustbench_lite.filters import grid, sampled
from robustbench_lite.streams import uniform_like


@dataclass(frozen=True)
class ResizePad(InferenceDefense):
    """Resizes the image to a random side and puts it at a random place on black (Xie et al. 2018).

    share: the smallest side as a share of the image's, in (0, 1]; each side up to the whole is as likely. Randomised:
    attacks average over it (EOT), under which it holds nothing off (Athalye et al. 2018, arXiv:1802.00420, section
    5.5). Departure: the paper enlarges 299 pixels to at most 331, for a network that takes any size; 299 / 331 is 0.9.
    adaptive: pgd averaged over sizes and places (Athalye et al. 2018, section 5.5).
    """

    name: ClassVar[str] = "resize-pad"
    summary: ClassVar[str] = "resizes at random and pads with black at random"
    source: ClassVar[str] = "Xie et al. 2018, arXiv:1711.01991"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}
    randomized: ClassVar[bool] = True

    share: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"share must be in (0, 1], got {self.share:g}")

    def transform(self, x: Tensor) -> Tensor:
        """The image, smaller, on black."""
        height, width = x.shape[-2:]
        drawn = uniform_like(x.flatten(1)[:, :1].expand(-1, 3)).double()
        least = max(1, round(self.share * min(height, width)))
        sides = least + torch.floor(drawn[:, 0] * (min(height, width) - least + 1))
        scale = sides / min(height, width)
        rows, columns = grid(x)
        size = (len(x), height, width)
        down, across = _from(rows, scale, drawn[:, 1]).expand(size), _from(columns, scale, drawn[:, 2]).expand(size)
        return sampled(x, down, across, outside="zeros")


def _from(place: Tensor, scale: Tensor, drawn: Tensor) -> Tensor:
    """Where a line's pixels are taken from: the line times `scale`, from a whole pixel on that `drawn` picks."""
    count = place.numel()
    length = (scale * count).round()
    first = torch.floor(drawn * (count - length + 1)).reshape(-1, 1, 1)
    return (place - first + 0.5) * (count / length).reshape(-1, 1, 1) - 0.5
