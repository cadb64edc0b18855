"""The median of each pixel's neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import pad

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError


@dataclass(frozen=True)
class Median(InferenceDefense):
    """Every pixel becomes the median of a square around it, channel by channel (Xu et al. 2018, section III.B).

    size: the square's side in pixels, 1..9, at most the image's; of an even number of pixels the lower middle one
    counts, of an even side the pixel is the square's lower right of four. Edges are mirrored. Differentiable:
    the gradient is that of the pixel chosen.
    adaptive: square, as each gradient is that of the pixel chosen and of no other.
    """

    name: ClassVar[str] = "median"
    summary: ClassVar[str] = "takes the median of each pixel's neighbours"
    source: ClassVar[str] = "Xu et al. 2018, arXiv:1704.01155"
    adaptive: ClassVar[str] = "square"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 1000}

    size: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 9:
            raise UserError(f"size must be in 1..9, got {self.size}")

    def transform(self, x: Tensor) -> Tensor:
        """The image smoothed."""
        if self.size > min(x.shape[-2:]):
            raise UserError(f"size must be at most the image's side {min(x.shape[-2:])}, got {self.size}")
        before, after = self.size // 2, (self.size - 1) // 2
        around = pad(x, (before, after, before, after), mode="reflect") if self.size > 1 else x
        windows = around.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(4).median(4).values
