"""Natural evolution strategies: a gradient estimated from scores along random directions, then projected steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from robustbench_lite.attack import Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat

from .scores import EstimatedAscent, above_zero, at_least


@dataclass(frozen=True)
class NESState(State):
    """velocity: (N, C, H, W), the averaged estimate; rate: (N,) step size as a share of the first.

    recent: (N, patience) losses since the rate was last changed, the oldest first; known: (N,) int64, how many.
    """

    velocity: Tensor
    rate: Tensor
    recent: Tensor
    known: Tensor


@dataclass(frozen=True)
class NES(EstimatedAscent):
    """Projected ascent along a gradient estimated by antithetic Gaussian sampling (Ilyas et al. 2018,
    arXiv:1804.08598, algorithm 1 and section 3.1).

    steps: estimates, >= 1. samples: queries of an estimate, even, >= 2. sigma: standard deviation of the search in
    pixels of [0, 1], > 0. step_size: of the first steps, in the threat's norm; default eps / 5, which is the paper's
    0.01 at its eps of 0.05. momentum: share of the old estimate in the average, in [0, 1). patience: where the loss
    has not grown over so many steps the step size is halved, down to 1/200 of the first, >= 2. restarts: random
    starts tried until one succeeds. random_start: start from a uniform point of the ball, else from the image.
    loss: ce, margin or dlr.
    Departures: 200 steps (10,000 queries) where the paper goes on to a million; images asked about are clamped to
    the box; in other norms than linf a step of steepest ascent stands for the sign.
    """

    name: ClassVar[str] = "nes"
    summary: ClassVar[str] = "gradient estimated from scores along Gaussian directions"
    source: ClassVar[str] = "Ilyas et al. 2018, arXiv:1804.08598"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")

    steps: int = 200
    sigma: float = 0.001
    momentum: float = 0.9
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, patience=2)
        above_zero(self, "sigma")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum:g}")

    def resolve(self, threat: Threat) -> Self:
        """With a fifth of eps as step size where none is given."""
        if self.step_size is not None or not threat.eps:
            return self
        return replace(self, step_size=threat.eps / 5)

    def start(self, query: Query, batch: Batch) -> NESState:
        """The image or a random point of the ball, at rest."""
        x = self.begin(batch)
        recent = batch.ball.eps.new_zeros((len(x), self.patience))
        return NESState(x, torch.zeros_like(x), torch.ones_like(batch.ball.eps), recent, torch.zeros_like(batch.step))

    def step(self, query: Query, batch: Batch, state: NESState) -> NESState:  # type: ignore[override]
        """An estimate, a step along it, and a look at whether the loss still grows."""
        x, stream = state.candidate, batch.stream.child("directions")

        def direction(draw: Tensor) -> Tensor:
            return stream.normal(x.shape[1:], draw)

        slope, loss = self.estimate(query, batch, x, direction=direction, reach=self.sigma)
        velocity = self.momentum * state.velocity + (1 - self.momentum) * slope
        recent = torch.cat([state.recent[:, 1:], loss.unsqueeze(1)], 1)
        known = (state.known + 1).clamp_max(self.patience)
        halved = (known == self.patience) & (recent[:, -1] < recent[:, 0])
        rate = torch.where(halved, (state.rate / 2).clamp_min(1 / 200), state.rate)
        size = batch.ball.eps / 5 if self.step_size is None else self.step_size
        moved = batch.ball.ascend(x, velocity.clone(), rate * size)
        return NESState(moved, velocity, rate, recent, torch.where(halved, 0, known))
