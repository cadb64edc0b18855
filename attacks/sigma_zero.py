"""Sigma-zero: descent on a smooth count of the changed numbers, the small changes of each step undone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import margin, reached
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat

_MEAN, _SQUARE = 0.9, 0.999  # Adam's rates of decay


@dataclass(frozen=True)
class SigmaZeroState(State):
    """`candidate`: the present iterate. mean, square: (N, C, H, W), Adam's moments. threshold: (N,) float64."""

    mean: Tensor
    square: Tensor
    threshold: Tensor


@dataclass(frozen=True)
class SigmaZero(Attack):
    """The adversarial image of fewest changed numbers (Cina et al. 2024, arXiv:2402.01879, algorithm 1).

    The loss is the margin while the goal is not reached, plus the mean over the numbers of d^2 / (d^2 + sigma), d the
    change. steps: gradients, >= 1. step_size: of Adam on the gradient over its largest component, in pixels of
    [0, 1], > 0, falling to a tenth as a cosine. sigma: how smooth the count is, in squared pixels, > 0. threshold:
    changes below it are undone after each step, in pixels, in [0, 1]; it rises by `rate` step sizes where the image
    was at the goal and falls by as much where it was not. rate: > 0.
    Departure: it can aim at a class, with the margin of the target, which the paper leaves out.
    """

    name: ClassVar[str] = "sigma-zero"
    summary: ClassVar[str] = "fewest changed numbers, by descent on a smooth count"
    source: ClassVar[str] = "Cina et al. 2024, arXiv:2402.01879"
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    minimal: ClassVar[bool] = True

    steps: int = 1000
    step_size: float = 1.0
    sigma: float = 0.001
    threshold: float = 0.3
    rate: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        for name in ("step_size", "sigma", "rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be > 0, got {getattr(self, name):g}")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold must be in [0, 1], got {self.threshold:g}")

    @property
    def length(self) -> int:
        """One gradient a step, and a look at the last iterate."""
        return self.steps

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step."""
        return self.length, self.length

    def start(self, query: Query, batch: Batch) -> SigmaZeroState:
        """The image itself."""
        x = batch.ball.x
        threshold = torch.full(batch.y.shape, self.threshold, dtype=torch.float64, device=x.device)
        return SigmaZeroState(x.clone(), torch.zeros_like(x), torch.zeros_like(x), threshold)

    def step(self, query: Query, batch: Batch, state: SigmaZeroState) -> SigmaZeroState:  # type: ignore[override]
        """Lines 3 to 12 of algorithm 1."""
        x = batch.ball.x
        answer = query.gradient(state.candidate, margin)
        inside = reached(answer.logits, batch.y, batch.targets)
        delta = state.candidate - x
        crowd = 2 * self.sigma / max(1, x[0].numel()) * delta / (delta.square() + self.sigma).square()
        slope = torch.where(per_row(inside, x), crowd, crowd - answer.gradient)
        slope = slope / per_row(slope.flatten(1).abs().amax(1).clamp_min(1e-12), x)
        mean = _MEAN * state.mean + (1 - _MEAN) * slope
        square = _SQUARE * state.square + (1 - _SQUARE) * slope.square()
        count = batch.step.double() + 1
        size = self._size(count - 1) * (1 - _SQUARE**count).sqrt() / (1 - _MEAN**count)
        still = 1e-8 * (1 - _SQUARE**count).sqrt()
        moved = state.candidate - per_row(size.float(), x) * mean / (square.sqrt() + per_row(still.float(), x))
        moved = batch.ball.project(moved)
        turn = self.rate * self._size(count)
        threshold = (state.threshold + torch.where(inside, turn, -turn)).clamp(0, 1)
        kept = (moved - x).abs() >= per_row(threshold.float(), x)
        return SigmaZeroState(torch.where(kept, moved, x), mean, square, threshold)

    def _size(self, step: Tensor) -> Tensor:
        """The step size after so many steps, (N,) float64."""
        return self.step_size * (0.1 + 0.45 * (1 + torch.cos(math.pi * step / self.steps)))
