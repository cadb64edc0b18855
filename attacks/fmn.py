"""Fast minimum-norm: a step down the margin, and a ball whose radius closes in on the boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import margin, reached
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat

_DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


@dataclass(frozen=True)
class FMNState(State):
    """`candidate`: the present iterate. radius: (N,) of its ball. nearest: (N,) best distance, inf for none yet."""

    radius: Tensor
    nearest: Tensor


@dataclass(frozen=True)
class FMN(Attack):
    """The nearest adversarial image by few gradients (Pintor et al. 2021, arXiv:2102.12827, algorithm 1).

    steps: gradients, >= 1. step_size: length in l2 of the first step, which falls to a hundredth as a cosine,
    in pixels, > 0. gamma: share by which the ball shrinks or grows, in (0, 1), falling to gamma_final as a cosine.
    Until an iterate is adversarial the radius is the distance to the boundary by the linear model of the margin; in l0
    it is 1 at first, and then a whole number that always changes by at least one.
    Departures: that radius is lengthened by gamma, as the others are, so that a boundary that is as the model says
    is crossed and not touched; in l1 and l0 the projection is the nearest point of ball and box together, not of one
    and then the other; no start at another sample, which is the authors' option.
    """

    name: ClassVar[str] = "fmn"
    summary: ClassVar[str] = "nearest image in any norm by few gradients"
    source: ClassVar[str] = "Pintor et al. 2021, arXiv:2102.12827"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")
    minimal: ClassVar[bool] = True

    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    gamma_final: float = 0.001

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if not self.step_size > 0:
            raise UserError(f"step_size must be > 0, got {self.step_size:g}")
        for name in ("gamma", "gamma_final"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must be in (0, 1), got {getattr(self, name):g}")

    @property
    def length(self) -> int:
        """One gradient a step."""
        return self.steps

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step."""
        return self.length, self.length

    def start(self, query: Query, batch: Batch) -> FMNState:
        """The image itself, in a ball of no size yet, or in l0 of one number."""
        far = torch.full(batch.y.shape, float("inf"), dtype=torch.float64, device=batch.y.device)
        return FMNState(batch.ball.x.clone(), torch.ones_like(far) if batch.ball.norm == "l0" else far, far.clone())

    def step(self, query: Query, batch: Batch, state: FMNState) -> FMNState:  # type: ignore[override]
        """Lines 3 to 14 of algorithm 1."""
        ball = batch.ball
        answer = query.gradient(state.candidate, margin)
        gradient, value = answer.gradient, margin(answer.logits, batch.y, batch.targets).double()
        inside = reached(answer.logits, batch.y, batch.targets)
        distance = ball.distance(state.candidate)
        nearest = torch.where(inside, torch.minimum(state.nearest, distance), state.nearest)
        radius = self._radius(batch, state.radius, nearest, inside, distance, value, gradient)
        size = self._cosine(batch.step, self.step_size, self.step_size / 100)
        length = gradient.flatten(1).double().square().sum(1).sqrt()
        factor = torch.where(length > 0, size / length.clamp_min(1e-300), 0.0)
        moved = (state.candidate.double() + gradient.double() * per_row(factor, gradient)).float()
        # Never wider than the box: the linear model may say anything where the gradient vanishes.
        small = replace(ball, eps=torch.minimum(radius.nan_to_num(posinf=1e30).float(), ball.eps))
        return FMNState(small.project(moved), radius, nearest)

    def _radius(
        self,
        batch: Batch,
        radius: Tensor,
        nearest: Tensor,
        inside: Tensor,
        distance: Tensor,
        value: Tensor,
        gradient: Tensor,
    ) -> Tensor:
        """Lines 5 to 10 of algorithm 1: smaller where the iterate is adversarial, larger where it is not."""
        shrink = self._cosine(batch.step, self.gamma, self.gamma_final)
        if batch.ball.norm == "l0":
            closer = torch.minimum(torch.minimum(radius - 1, (radius * (1 - shrink)).floor()), nearest)
            outside = torch.maximum(radius + 1, (radius * (1 + shrink)).floor())
            return torch.where(inside, closer, outside).clamp(1, max(1, gradient[0].numel()))
        slope = torch.linalg.vector_norm(gradient.flatten(1).double(), ord=_DUAL[batch.ball.norm], dim=1)
        towards = distance + value.abs() / slope.clamp_min(1e-300)
        outside = torch.where(torch.isinf(nearest), towards, radius) * (1 + shrink)
        closer = torch.minimum(torch.where(torch.isinf(radius), distance, radius) * (1 - shrink), nearest)
        return torch.where(inside, closer, outside)

    def _cosine(self, step: Tensor, first: float, last: float) -> Tensor:
        return last + (first - last) * (1 + torch.cos(math.pi * step.double() / self.steps)) / 2
