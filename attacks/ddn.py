"""Decoupled direction and norm: the direction follows the gradient, the norm shrinks inside and grows outside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.attacks.lengths import euclidean
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss, reached
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class DDNState(State):
    """`candidate`: the present iterate. norm: (N,) the radius of the sphere that it was put on."""

    norm: Tensor


@dataclass(frozen=True)
class DDN(Attack):
    """The nearest adversarial image in l2 (Rony et al. 2019, arXiv:1811.09600, algorithm 1).

    steps: gradients, >= 1. init_norm: radius of the first sphere, in pixels of [0, 1], > 0. gamma: share by which
    the radius shrinks where the iterate is adversarial and grows where it is not, in (0, 1). The step along the
    unit gradient falls from 1 to 0.01 as a cosine. loss: ce, margin or dlr.
    Departures: no rounding to 256 levels (the paper's option); `ce` points as cross entropy does without its
    underflow (see robustbench_lite.losses); a sample whose gradient is zero goes along a random direction.
    """

    name: ClassVar[str] = "ddn"
    summary: ClassVar[str] = "nearest image in l2: direction and norm apart"
    source: ClassVar[str] = "Rony et al. 2019, arXiv:1811.09600"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    minimal: ClassVar[bool] = True

    steps: int = 100
    init_norm: float = 1.0
    gamma: float = 0.05
    loss: str = "ce"

    def __post_init__(self) -> None:
        get_loss(self.loss)
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if not self.init_norm > 0:
            raise UserError(f"init_norm must be > 0, got {self.init_norm:g}")
        if not 0 < self.gamma < 1:
            raise UserError(f"gamma must be in (0, 1), got {self.gamma:g}")

    @property
    def length(self) -> int:
        """One gradient a step, and a look at the last iterate."""
        return self.steps

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step."""
        return self.length, self.length

    def start(self, query: Query, batch: Batch) -> DDNState:
        """The image itself."""
        return DDNState(batch.ball.x.clone(), torch.full_like(batch.ball.eps, self.init_norm))

    def step(self, query: Query, batch: Batch, state: DDNState) -> DDNState:  # type: ignore[override]
        """Lines 5 to 14 of algorithm 1."""
        x = batch.ball.x
        answer = query.gradient(state.candidate, get_loss(self.loss))
        direction = answer.gradient
        still = direction.flatten(1).abs().amax(1) == 0
        if still.any():
            random = batch.stream.child("still").normal(x.shape[1:], draw=batch.step)
            direction = torch.where(per_row(still, x), random, direction)
        turn = math.pi * batch.step.double() / self.steps
        size = 0.01 + 0.99 * (1 + torch.cos(turn)) / 2
        delta = (state.candidate - x).double() + direction.double() * per_row(
            size / euclidean(direction).clamp_min(1e-300), direction
        )
        inside = reached(answer.logits, batch.y, batch.targets)
        norm = state.norm * torch.where(inside, 1 - self.gamma, 1 + self.gamma)
        # No sphere reaches beyond the farthest corner of the box.
        norm = torch.minimum(norm, euclidean(torch.maximum(x - batch.ball.low, batch.ball.high - x)).float())
        moved = x.double() + delta * per_row(norm.double() / euclidean(delta).clamp_min(1e-300), delta)
        return DDNState(batch.ball.project(moved.float()), norm)
