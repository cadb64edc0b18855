"""Gradients at images resized at random, and gradients blurred as if over shifted images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_lite.attack import Batch
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query

from .ascent import MomentumAscent


@dataclass(frozen=True)
class DIFGSM(MomentumAscent):
    """Ascent of the loss at images shrunk and padded at random (Xie et al. 2019, arXiv:1803.06978, algorithm 1).

    steps: gradients, >= 1. step_size: length of a step in the threat's norm, in pixels of [0, 1], > 0; default eps /
    steps. loss: ce, margin or dlr. momentum: decay of the accumulated gradient, >= 0; 1 for the paper's M-DI2-FGSM.
    diversity: probability that an image is changed, in [0, 1]. resize: smallest side it is shrunk to, as a share of
    its own, in (0, 1]. restarts: runs with other random numbers until one succeeds, >= 1.
    Departures: the paper enlarges images (299 to 330 pixels) for a network that takes any size; here they keep theirs
    and what is shown is smaller by the same share. Each sample has changes of its own. `ce` points as cross entropy
    does without its underflow (see robustbench_lite.losses).
    """

    name: ClassVar[str] = "di-fgsm"
    summary: ClassVar[str] = "iterative gradient sign at images resized and padded at random"
    source: ClassVar[str] = "Xie et al. 2019, arXiv:1803.06978"

    momentum: float = 0.0
    diversity: float = 0.5
    resize: float = 0.9
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.diversity <= 1:
            raise UserError(f"diversity must be in [0, 1], got {self.diversity:g}")
        if not 0 < self.resize <= 1:
            raise UserError(f"resize must be in (0, 1], got {self.resize:g}")

    def ask(self, query: Query, batch: Batch, x: Tensor) -> Tensor:
        """The gradient in x of the loss at the changed image, which is linear in x along rows and along columns."""
        if not self.diversity:
            return super().ask(query, batch, x)
        drawn = batch.stream.child("diversity").uniform((4,), draw=batch.step).double()
        changed = drawn[:, 0] < self.diversity
        height, width = x.shape[2:]
        down = _shrinking(height, self.resize, drawn[:, 1], drawn[:, 2], changed)
        across = _shrinking(width, self.resize, drawn[:, 1], drawn[:, 3], changed)
        seen = (down @ x.double() @ across.transpose(2, 3)).float()
        gradient = super().ask(query, batch, seen)
        return (down.transpose(2, 3) @ gradient.double() @ across).float()


@dataclass(frozen=True)
class TIFGSM(DIFGSM):
    """Ascent along gradients blurred by a kernel (Dong et al. 2019, arXiv:1904.02884, eq. 7 and 9).

    kernel_size: pixels of its side, odd, >= 1: a Gaussian whose sigma is a third of the way to its edge. The others
    are those of `di-fgsm`, as are the departures; with momentum 1 and diversity 0.5 it is the paper's TI-DIM.
    """

    name: ClassVar[str] = "ti-fgsm"
    summary: ClassVar[str] = "iterative gradient sign, the gradient blurred as over shifted images"
    source: ClassVar[str] = "Dong et al. 2019, arXiv:1904.02884"

    diversity: float = 0.0
    kernel_size: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd and >= 1, got {self.kernel_size}")

    def ask(self, query: Query, batch: Batch, x: Tensor) -> Tensor:
        """The gradient, blurred."""
        return _blurred(super().ask(query, batch, x), self.kernel_size)


def _shrinking(side: int, least: float, size: Tensor, place: Tensor, changed: Tensor) -> Tensor:
    """The matrix (N, 1, side, side) that shrinks a line of pixels and puts it among zeros; identity where not changed.

    size, place: (N,) in [0, 1), what is drawn for the new length, from `least` of the side to short of it, and for
    where it lies. Linear interpolation between the centres of pixels.
    """
    low = max(1, int(side * least))
    length = low + torch.floor(size * (side - low))
    first = torch.floor(place * (side - length + 1))
    at = torch.arange(side, device=size.device)
    row = at - first.unsqueeze(1)
    inside = (row >= 0) & (row < length.unsqueeze(1))
    source = ((row + 0.5) * (side / length).unsqueeze(1) - 0.5).clamp(0, side - 1)
    # A pixel takes from those nearer than one pixel, the nearer the more.
    weight = (1 - (source.unsqueeze(2) - at).abs()).clamp_min(0) * inside.unsqueeze(2)
    identity = torch.eye(side, dtype=weight.dtype, device=weight.device)
    return torch.where(changed.reshape(-1, 1, 1), weight, identity).unsqueeze(1)


def _blurred(gradient: Tensor, size: int) -> Tensor:
    """The gradient under a Gaussian kernel, zeros beyond the edge; sums in one order at any batch size."""
    half = size // 2
    sigma = max(half, 1) / 3
    weights = [math.exp(-((i - half) ** 2) / (2 * sigma**2)) for i in range(size)]
    blurred = gradient.double()
    for axis, pad in ((2, (0, 0, half, half)), (3, (half, half))):
        wide = functional.pad(blurred, pad)
        blurred = torch.zeros_like(blurred)
        for i, weight in enumerate(weights):
            blurred += wide.narrow(axis, i, gradient.shape[axis]) * (weight / sum(weights))
    return blurred.float()
