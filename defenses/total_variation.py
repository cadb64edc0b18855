"""Pixels left out, and the smoothest image that has the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError
from robustbench_lite.streams import uniform_like

_PRIMAL = 0.25  # steps of the primal-dual method; their product times 8, the gradient's norm squared, is at most 1
_DUAL = 0.5


@dataclass(frozen=True)
class TotalVariation(InferenceDefense):
    """Leaves out pixels at random and puts in the image of least total variation near the rest (Guo et al. 2018).

    Minimises |mask (z - x)|^2 / 2 + weight TV(z), TV the sum of the lengths of z's gradient over pixels, by the
    primal-dual method of Chambolle and Pock 2011 (algorithm 1), channel by channel.
    drop: probability that a pixel is left out, in [0, 1), in all its channels. weight: lambda, >= 0. steps: of the
    method. Randomised, and attacks go through the identity (BPDA with EOT), under which it holds nothing off (Athalye
    et al. 2018, section 5.3). Departure: the paper minimises by split Bregman with the squared TV's weight 0.03.
    adaptive: pgd through the identity, averaged over what is dropped (Athalye et al. 2018, section 5.3).
    """

    name: ClassVar[str] = "total-variation"
    summary: ClassVar[str] = "drops pixels and fills in the smoothest image"
    source: ClassVar[str] = "Guo et al. 2018, arXiv:1711.00117"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 40}
    randomized: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    drop: float = 0.5
    weight: float = 0.03
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise UserError(f"drop must be in [0, 1), got {self.drop:g}")
        if not self.weight >= 0:
            raise UserError(f"weight must be >= 0, got {self.weight:g}")
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")

    def transform(self, x: Tensor) -> Tensor:
        """The smooth image, in [0, 1]."""
        kept = (uniform_like(x[:, :1].contiguous()) >= self.drop).to(x.dtype)
        return smoothest(x, kept, self.weight, self.steps).clamp(0, 1)


def smoothest(x: Tensor, kept: Tensor, weight: float, steps: int) -> Tensor:
    """The image (N, C, H, W) that minimises the above for images x and a mask kept (N, 1, H, W) of zeros and ones."""
    z = x * kept
    ahead = z
    down, across = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(steps):
        down = down + _DUAL * _forward(ahead, 2)
        across = across + _DUAL * _forward(ahead, 3)
        # Where it is longer than weight it is cut to that length.
        length = (down.square() + across.square()).sqrt()
        scale = weight / length.clamp_min(weight) if weight else torch.zeros_like(length)
        down, across = down * scale, across * scale
        moved = z - _PRIMAL * (_back(down, 2) + _back(across, 3))
        moved = (moved + _PRIMAL * kept * x) / (1 + _PRIMAL * kept)
        ahead, z = 2 * moved - z, moved
    return z


def _forward(z: Tensor, axis: int) -> Tensor:
    """Differences to the next pixel, zero at the end."""
    n = z.shape[axis]
    steps = z.narrow(axis, 1, n - 1) - z.narrow(axis, 0, n - 1)
    return torch.cat([steps, torch.zeros_like(z.narrow(axis, 0, 1))], axis)


def _back(p: Tensor, axis: int) -> Tensor:
    """The transpose of `_forward`."""
    n = p.shape[axis]
    inside = p.narrow(axis, 0, n - 1)
    nil = torch.zeros_like(p.narrow(axis, 0, 1))
    return torch.cat([nil, inside], axis) - torch.cat([inside, nil], axis)
