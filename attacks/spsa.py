"""Simultaneous perturbation: a gradient estimated from scores along random signs, followed by Adam."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Batch, State
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row

from .scores import EstimatedAscent, above_zero, adam


@dataclass(frozen=True)
class SPSAState(State):
    """mean, square: (N, C, H, W), Adam's averages of the estimate and of its square."""

    mean: Tensor
    square: Tensor


@dataclass(frozen=True)
class SPSA(EstimatedAscent):
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

    steps: int = 100
    samples: int = 256
    delta: float = 0.01
    loss: str = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "delta")

    def start(self, query: Query, batch: Batch) -> SPSAState:
        """The image or a random point of the ball, at rest."""
        x = self.begin(batch)
        return SPSAState(x, torch.zeros_like(x), torch.zeros_like(x))

    def step(self, query: Query, batch: Batch, state: SPSAState) -> SPSAState:  # type: ignore[override]
        """An estimate, and Adam's step along it, projected."""
        x, stream = state.candidate, batch.stream.child("signs")

        def signs(draw: Tensor) -> Tensor:
            return (stream.uniform(x.shape[1:], draw) < 0.5).to(x.dtype).mul_(2).sub_(1)

        slope, _ = self.estimate(query, batch, x, direction=signs, reach=self.delta)
        count, rate = (per_row(each, x) for each in (batch.step + 1, self._rate(batch)))
        mean, square, moved = adam(state.mean, state.square, slope, count=count, rate=rate)
        return SPSAState(batch.ball.project(x + moved), mean, square)

    def _rate(self, batch: Batch) -> Tensor:
        eps = batch.ball.eps.double()
        if self.step_size is not None or batch.ball.norm == "linf":
            return torch.full_like(eps, self.step_size or 0.01)
        return eps / (3 * math.sqrt(batch.ball.x[0].numel()))
