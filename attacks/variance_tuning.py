"""Momentum on gradients corrected by how much they vary around the last iterate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Batch
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query
from robustbench_lite.rows import take
from robustbench_lite.threat import Threat

from .ascent import AscentState, MomentumAscent


@dataclass(frozen=True)
class VarianceState(AscentState):
    """`variance`: (N, C, H, W), the mean gradient around the last iterate minus the gradient asked there."""

    variance: Tensor


@dataclass(frozen=True)
class VMIFGSM(MomentumAscent):
    """Momentum on gradients tuned by their variance (Wang and He 2021, arXiv:2103.15571, algorithm 1).

    steps: >= 1, each of 1 + `neighbours` gradients, the last of one. step_size: length of a step in the threat's
    norm, in pixels of [0, 1], > 0; default eps / steps. loss: ce, margin or dlr. momentum: decay of the accumulated
    gradient, >= 0. neighbours: gradients taken around an iterate, >= 1. radius: how far around, in eps, > 0.
    restarts: runs with other random numbers until one succeeds, >= 1.
    Departures: neighbours are drawn from the ball of the threat's norm, in l2 as in linf, without the box, as in the
    authors' code; a gradient is divided by the mean of its absolute values, as there; after the last step nothing is
    asked. `ce` points as cross entropy does without its underflow (see robustbench_lite.losses), and is steeper where
    the image is fooled.
    """

    name: ClassVar[str] = "vmi-fgsm"
    summary: ClassVar[str] = "iterative gradient sign with momentum, tuned by gradients around the iterate"
    source: ClassVar[str] = "Wang and He 2021, arXiv:2103.15571"

    neighbours: int = 20
    radius: float = 1.5
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1:
            raise UserError(f"neighbours must be >= 1, got {self.neighbours}")
        if not self.radius > 0:
            raise UserError(f"radius must be > 0, got {self.radius:g}")

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step, and one at each neighbour in all but the last."""
        asked = (self.steps + self.neighbours * (self.steps - 1)) * self.attempts
        return asked, asked

    def start(self, query: Query, batch: Batch) -> VarianceState:
        """Where it begins, at rest."""
        still = super().start(query, batch)
        return VarianceState(still.candidate, still.velocity, torch.zeros_like(still.velocity))

    def step(self, query: Query, batch: Batch, state: VarianceState) -> VarianceState:  # type: ignore[override]
        """A step along the corrected gradient, and the correction for the next one."""
        here = self.ask(query, batch, self.point(batch, state))
        moved = self.moved(batch, state, self.direction(state, here + state.variance))
        # What no step comes after needs no correction.
        rows = (batch.step + 1 < self.steps).nonzero()[:, 0]
        variance = torch.zeros_like(here)
        variance[rows] = self._around(query, batch, state.candidate, rows) - here[rows]
        return VarianceState(moved.candidate, moved.velocity, variance)

    def _around(self, query: Query, batch: Batch, x: Tensor, rows: Tensor) -> Tensor:
        """The mean gradient over neighbours of x, of the samples `rows`."""
        ball, stream, steps = take(batch.ball, rows), take(batch.stream, rows), batch.step[rows]
        vicinity = type(ball)(x[rows], ball.eps * self.radius, low=-9.0, high=10.0)
        total = torch.zeros_like(x[rows])
        for i in range(self.neighbours):
            near = vicinity.random(stream.child(f"neighbour {i}").child(steps))
            total += query.gradient(near, get_loss(self.loss), rows=rows).gradient
        return total / self.neighbours


@dataclass(frozen=True)
class VNIFGSM(VMIFGSM):
    """Variance tuning with Nesterov's look ahead (Wang and He 2021, section 3.4).

    Hyperparameters and departures are those of `vmi-fgsm`; the way ahead in l2: see MomentumAscent.ahead.
    """

    name: ClassVar[str] = "vni-fgsm"
    summary: ClassVar[str] = "iterative gradient sign with Nesterov momentum, tuned by gradients around the iterate"
    source: ClassVar[str] = "Wang and He 2021, arXiv:2103.15571"

    def point(self, batch: Batch, state: AscentState) -> Tensor:
        """Ahead along the velocity."""
        return self.ahead(batch, state)
