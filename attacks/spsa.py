"""Simultaneous perturbation: a gradient estimated from scores along random signs, followed by Adam."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.attacks.nes import estimated
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat

_MEAN, _SQUARE = 0.9, 0.999  # how much of the past Adam's two averages keep


@dataclass(frozen=True)
class SPSAState(State):
    """mean, square: (N, C, H, W), Adam's averages of the estimate and of its square."""

    mean: Tensor
    square: Tensor


@dataclass(frozen=True)
class SPSA(Attack):
    """Adam along a gradient estimated with random signs (Uesato et al. 2018, arXiv:1802.05666, algorithm 1).

    steps: estimates, >= 1. samples: queries of an estimate, two for each vector of signs, even, >= 2; one more a step
    asks about the image itself. delta: how far along the signs is asked, in pixels of [0, 1], > 0. step_size: Adam's
    learning rate, about what each pixel moves a step, in pixels, > 0; default the paper's 0.01 in linf, a third of
    eps / sqrt(pixels) in l2. restarts: runs with other random numbers until one succeeds. random_start: start from a
    uniform point of the ball, else from the image. loss: margin (the paper's), ce or dlr.
    Departures: 256 queries an estimate, where the paper goes up to some thousands; images asked about are clamped to
    the box.
    """

    name: ClassVar[str] = "spsa"
    summary: ClassVar[str] = "gradient estimated from scores along random signs, Adam"
    source: ClassVar[str] = "Uesato et al. 2018, arXiv:1802.05666"
    access: ClassVar[Access] = "score"

    steps: int = 100
    samples: int = 256
    delta: float = 0.01
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = False
    loss: str = "margin"

    def __post_init__(self) -> None:
        get_loss(self.loss)
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.samples < 2 or self.samples % 2:
            raise UserError(f"samples must be even and >= 2, got {self.samples}")
        if not self.delta > 0:
            raise UserError(f"delta must be > 0, got {self.delta:g}")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"step_size must be > 0, got {self.step_size:g}")

    @property
    def length(self) -> int:
        """One estimate a step."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts

    def calls(self, threat: Threat) -> tuple[int, int]:
        """The samples of each estimate, and the point itself."""
        return self.steps * (self.samples + 1) * self.restarts, 0

    def start(self, query: Query, batch: Batch) -> SPSAState:
        """The image or a random point of the ball, at rest."""
        x = batch.ball.random(batch.stream.child("start")) if self.random_start else batch.origin.clone()
        return SPSAState(x, torch.zeros_like(x), torch.zeros_like(x))

    def step(self, query: Query, batch: Batch, state: SPSAState) -> SPSAState:  # type: ignore[override]
        """An estimate, and Adam's step along it, projected."""
        x, stream, pairs = state.candidate, batch.stream.child("signs"), self.samples // 2

        def signs(i: int) -> Tensor:
            drawn = stream.uniform(x.shape[1:], draw=batch.step * pairs + i)
            return (drawn < 0.5).to(x.dtype).mul_(2).sub_(1)

        slope, _ = estimated(query, batch, x, signs, pairs=pairs, reach=self.delta, loss=self.loss)
        mean = _MEAN * state.mean + (1 - _MEAN) * slope
        square = _SQUARE * state.square + (1 - _SQUARE) * slope.square()
        count = batch.step.double() + 1
        rate = self._rate(batch) * torch.sqrt(1 - _SQUARE**count) / (1 - _MEAN**count)
        moved = mean / (square.sqrt() + 1e-8) * per_row(rate.to(x.dtype), x)
        return SPSAState(batch.ball.project(x + moved), mean, square)

    def _rate(self, batch: Batch) -> Tensor:
        eps = batch.ball.eps.double()
        if self.step_size is not None or batch.ball.norm == "linf":
            return torch.full_like(eps, self.step_size or 0.01)
        return eps / (3 * math.sqrt(batch.ball.x[0].numel()))
