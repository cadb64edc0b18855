"""Projected ascent put together from parts: what the fixed-eps gradient attacks of one family share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Ball, Threat


@dataclass(frozen=True)
class AscentState(State):
    """`velocity`: (N, C, H, W), the accumulated gradient; (N, 0) in an attack without momentum."""

    velocity: Tensor


@dataclass(frozen=True)
class Ascent(Attack):
    """Steps along the steepest direction of a gradient, each back into the ball.

    A member says where it begins (`begin`), at which point it asks (`point`), what it takes for the gradient there
    (`ask`), and where that leads (`direction`).

    steps: >= 1. step_size: length of a step in the threat's norm, in pixels of [0, 1], > 0; default `reach` times
    eps / steps, by each sample's own eps where they have one. A member with a field `restarts` is tried as often.
    """

    reach: ClassVar[float] = 1.0

    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "restarts"):
            if hasattr(self, name) and getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"step_size must be > 0, got {self.step_size:g}")

    @property
    def length(self) -> int:
        """One move a step."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts, of a member that draws random numbers."""
        restarts: int = getattr(self, "restarts", 1)
        return restarts

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step; a member that asks more says so."""
        return self.steps * self.attempts, self.steps * self.attempts

    def resolve(self, threat: Threat) -> Self:
        """With the default step size where none is given."""
        if self.step_size is not None or not threat.eps:
            return self
        return replace(self, step_size=self.reach * threat.eps / self.steps)

    def sizes(self, ball: Ball) -> Tensor:
        """The length of each sample's steps, (N,)."""
        if self.step_size is None:
            return self.reach * ball.eps / self.steps
        return torch.full_like(ball.eps, self.step_size)

    def begin(self, batch: Batch) -> Tensor:
        """Where the ascent begins: the image (in a portfolio, where the parts before it ended)."""
        return batch.origin.clone()

    def point(self, batch: Batch, state: AscentState) -> Tensor:
        """Where the gradient is asked: the iterate."""
        return state.candidate

    def ask(self, query: Query, batch: Batch, x: Tensor) -> Tensor:
        """The gradient at x, one image a sample; the caller's own."""
        raise NotImplementedError

    def direction(self, state: AscentState, gradient: Tensor) -> Tensor:
        """What the step climbs along; `gradient` may be overwritten."""
        return gradient

    def start(self, query: Query, batch: Batch) -> AscentState:
        """Where it begins, at rest."""
        x = self.begin(batch)
        return AscentState(x, x.new_empty((len(x), 0)))

    def step(self, query: Query, batch: Batch, state: AscentState) -> AscentState:  # type: ignore[override]
        """One projected step of steepest ascent."""
        gradient = self.ask(query, batch, self.point(batch, state))
        return self.moved(batch, state, self.direction(state, gradient))

    def moved(self, batch: Batch, state: AscentState, direction: Tensor) -> AscentState:
        """The state a step further along `direction`."""
        return replace(state, candidate=batch.ball.ascend(state.candidate, direction, self.sizes(batch.ball)))


@dataclass(frozen=True)
class LossAscent(Ascent):
    """Ascent of a named loss: ce, margin or dlr."""

    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        get_loss(self.loss)

    def ask(self, query: Query, batch: Batch, x: Tensor) -> Tensor:
        """The gradient of the loss."""
        return query.gradient(x, get_loss(self.loss)).gradient


@dataclass(frozen=True)
class MomentumAscent(LossAscent):
    """Ascent along the sum of past gradients, each divided by the mean of its size, the older the less.

    momentum: decay of the sum in a step, >= 0; at 0 the last gradient alone counts.
    """

    momentum: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.momentum >= 0:
            raise UserError(f"momentum must be >= 0, got {self.momentum:g}")

    def start(self, query: Query, batch: Batch) -> AscentState:
        """Where it begins, at rest."""
        x = self.begin(batch)
        return AscentState(x, torch.zeros_like(x))

    def direction(self, state: AscentState, gradient: Tensor) -> Tensor:
        """The velocity: the old one slowed down, and the new gradient on its own scale."""
        return state.velocity * self.momentum + normalised(gradient)

    def moved(self, batch: Batch, state: AscentState, direction: Tensor) -> AscentState:
        """The state a step further along `direction`, which it keeps."""
        return replace(super().moved(batch, state, direction.clone()), velocity=direction)

    def ahead(self, batch: Batch, state: AscentState) -> Tensor:
        """Nesterov's point: where the velocity alone would lead.

        In linf a step of the velocity itself, whose numbers are about 1 (Lin et al. 2020, arXiv:1908.06281, eq. 6);
        in l2 over the root of their count, so that it is about as long as a step.
        """
        size = self.sizes(batch.ball) * self.momentum
        if batch.ball.norm != "linf":
            size = size / state.velocity.shape[1:].numel() ** 0.5
        return state.candidate + per_row(size, state.velocity) * state.velocity


def normalised(gradient: Tensor) -> Tensor:
    """The gradient over the mean of its absolute values (Dong et al. 2018, eq. 6, by the mean as in their code)."""
    size = gradient.flatten(1).abs().mean(1, dtype=torch.float64).clamp_min(1e-300)
    return (gradient.double() / per_row(size, gradient)).float()
