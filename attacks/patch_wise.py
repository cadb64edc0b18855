"""Patch-wise ascent: long steps whose overshoot is handed to the pixels around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_lite.attack import Batch
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row

from .ascent import AscentState, LossAscent


@dataclass(frozen=True)
class PIFGSM(LossAscent):
    """Amplified steps, what exceeds the ball given to the neighbours (Gao et al. 2020, arXiv:2007.06865, algorithm 1).

    steps: gradients, >= 1. step_size: length of a step in linf before it is amplified, in pixels of [0, 1], > 0;
    default eps / steps. loss: ce, margin or dlr. amplification: factor beta of the step and of what is handed on,
    > 0; the paper takes 10, against robust networks 2.5. kernel_size: side in pixels of the patch that shares in the
    overshoot, odd, >= 3.
    `velocity` is the paper's a, the sum of all that was added. Departures: without the input diversity (probability
    0.7) that the authors' code adds; `ce` points as cross entropy does without its underflow (see
    robustbench_lite.losses).
    """

    name: ClassVar[str] = "pi-fgsm"
    summary: ClassVar[str] = "amplified gradient sign, the overshoot handed to the pixels around"
    source: ClassVar[str] = "Gao et al. 2020, arXiv:2007.06865"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    amplification: float = 10.0
    kernel_size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.amplification > 0:
            raise UserError(f"amplification must be > 0, got {self.amplification:g}")
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd and >= 3, got {self.kernel_size}")

    def start(self, query: Query, batch: Batch) -> AscentState:
        """The image, nothing added."""
        x = self.begin(batch)
        return AscentState(x, torch.zeros_like(x))

    def step(self, query: Query, batch: Batch, state: AscentState) -> AscentState:  # type: ignore[override]
        """Lines 5 to 13 of algorithm 1."""
        ball = batch.ball
        size = per_row(self.sizes(ball) * self.amplification, state.candidate)
        move = self.ask(query, batch, state.candidate).sign_() * size
        added = state.velocity + move
        over = (added.abs() - per_row(ball.eps, added)).clamp_min(0) * added.sign()
        handed = _around(over, self.kernel_size).sign().float() * size
        return AscentState(ball.project(state.candidate + move + handed), added + handed)


def _around(x: Tensor, size: int) -> Tensor:
    """The sum over the patch around each pixel, without it; zeros beyond the edge."""
    half = size // 2
    wide = functional.pad(x.double(), (half, half, half, half))
    total = -x.double()
    for row in range(size):
        for column in range(size):
            total += wide[:, :, row : row + x.shape[2], column : column + x.shape[3]]
    return total
