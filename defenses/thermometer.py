"""Pixels as thermometers: a row of zeros and ones in place of a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError


@dataclass(frozen=True)
class Thermometer(InferenceDefense):
    """Each number of an image becomes `levels` channels, the first ones 1 and the rest 0 (Buckman et al. 2018).

    Channel j of 1..levels is 1 where the number is above j / (levels + 1). The network is trained behind it and has
    `levels` times as many channels. Its gradient is zero, so attacks follow a ramp around each threshold in place of
    the step; under it nothing was left of the defense (Athalye et al. 2018, section 5.1). Departure: no threshold at
    0, whose channel would be 1 for nearly every pixel.
    adaptive: pgd through ramps in place of steps (Athalye et al. 2018, section 5.1).
    """

    name: ClassVar[str] = "thermometer"
    summary: ClassVar[str] = "turns each pixel into a row of zeros and ones"
    source: ClassVar[str] = "Buckman et al. 2018, ICLR; broken by Athalye et al. 2018, arXiv:1802.00420"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}
    differentiable: ClassVar[bool] = False
    trained_behind: ClassVar[bool] = True

    levels: int = 16

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise UserError(f"levels must be in 2..256, got {self.levels}")

    def seen_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """`levels` times the channels."""
        return shape[0] * self.levels, shape[1], shape[2]

    def _above(self, x: Tensor) -> Tensor:
        """By how much each number is above each threshold, (N, C, levels, H, W)."""
        thresholds = torch.arange(1, self.levels + 1, device=x.device, dtype=x.dtype) / (self.levels + 1)
        return x.unsqueeze(2) - thresholds.reshape(-1, 1, 1)

    def transform(self, x: Tensor) -> Tensor:
        """Zeros and ones (N, C * levels, H, W), the thermometers of a channel next to each other."""
        return (self._above(x) > 0).to(x.dtype).flatten(1, 2)

    def surrogate(self, x: Tensor) -> Tensor:
        """Each step as a ramp over four levels."""
        return (0.5 + self._above(x) * (self.levels + 1) / 4).clamp(0, 1).flatten(1, 2)
