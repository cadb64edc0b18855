"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.attacks.ascent import normalised
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class PGDState(State):
    """`velocity`: (N, C, H, W), the accumulated direction; (N, 0) without momentum."""

    velocity: Tensor


@dataclass(frozen=True)
class PGD(Attack):
    """Projected steepest ascent of a loss from a random point of the ball (Madry et al. 2018, arXiv:1706.06083).

    steps: gradient steps. step_size: length of a step in the threat's norm, in pixels of [0, 1]; default 2.5 eps /
    steps, the authors' rule, by each sample's own eps where they have one; in l1 at least eps / 2: short steps go on
    filling the same few pixels. restarts: random starts tried until one succeeds. random_start: start from a uniform
    point of the ball, else from the image (in a portfolio, from where the parts before it ended). loss: ce, margin or
    dlr. momentum: decay of the accumulated gradient (Dong et al. 2018, arXiv:1710.06081), 0 for none.
    Departures: every iterate is judged, not the last alone; `ce` grows as cross entropy does without
    its underflow (see robustbench_lite.losses).
    """

    name: ClassVar[str] = "pgd"
    summary: ClassVar[str] = "projected gradient descent from a random start"
    source: ClassVar[str] = "Madry et al. 2018, arXiv:1706.06083"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")

    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        get_loss(self.loss)
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"step_size must be > 0, got {self.step_size:g}")
        if not self.momentum >= 0:
            raise UserError(f"momentum must be >= 0, got {self.momentum:g}")
        if self.restarts > 1 and not self.random_start:
            raise UserError(f"restarts must be 1 without a random start, got {self.restarts}: all would be the same")

    @property
    def length(self) -> int:
        """One gradient a step."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step."""
        return self.steps * self.restarts, self.steps * self.restarts

    def resolve(self, threat: Threat) -> Self:
        """With the default step size where none is given."""
        if self.step_size is not None or not threat.eps:
            return self
        return replace(self, step_size=self._share(threat.norm) * threat.eps)

    def _share(self, norm: str) -> float:
        """The default step size in units of eps."""
        return max(2.5 / self.steps, 0.5 if norm == "l1" else 0.0)

    def start(self, query: Query, batch: Batch) -> PGDState:
        """A random point of the ball, or the image; at rest."""
        x = batch.ball.x
        candidate = batch.ball.random(batch.stream) if self.random_start else batch.origin.clone()
        return PGDState(candidate, torch.zeros_like(x) if self.momentum else x.new_empty((len(x), 0)))

    def step(self, query: Query, batch: Batch, state: PGDState) -> PGDState:  # type: ignore[override]
        """One projected step of steepest ascent."""
        direction = query.gradient(state.candidate, get_loss(self.loss)).gradient
        velocity = state.velocity
        if self.momentum:
            velocity = velocity * self.momentum + normalised(direction)
            direction = velocity.clone()
        step_size = self._share(batch.ball.norm) * batch.ball.eps if self.step_size is None else self.step_size
        return PGDState(batch.ball.ascend(state.candidate, direction, step_size), velocity)
