"""The fast gradient sign method after a random step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from robustbench_lite.attack import Batch
from robustbench_lite.threat import Ball, Threat

from .ascent import LossAscent


@dataclass(frozen=True)
class RFGSM(LossAscent):
    """A step along a random direction, then steepest ascent (Tramer et al. 2018, arXiv:1705.07204, eq. 7).

    steps: gradients, >= 1; the paper's attack has one. step_size: length of the random step and of each other in the
    threat's norm, in pixels of [0, 1], > 0; default eps / 2. loss: ce, margin or dlr. restarts: random steps tried
    until one succeeds, >= 1.
    Departures: any number of steps; any norm, the random step along a normal direction cut to length 1 as a gradient
    is (in linf the signs of the paper). `ce` points as cross entropy does without its underflow (see
    robustbench_lite.losses).
    """

    name: ClassVar[str] = "r-fgsm"
    summary: ClassVar[str] = "a random step, then one along the steepest direction"
    source: ClassVar[str] = "Tramer et al. 2018, arXiv:1705.07204"

    steps: int = 1
    restarts: int = 1

    def resolve(self, threat: Threat) -> Self:
        """With steps of half the ball's size where none is given."""
        return self if self.step_size is not None or not threat.eps else replace(self, step_size=threat.eps / 2)

    def sizes(self, ball: Ball) -> Tensor:
        """The length of each sample's steps, (N,)."""
        return ball.eps / 2 if self.step_size is None else torch.full_like(ball.eps, self.step_size)

    def begin(self, batch: Batch) -> Tensor:
        """A step from the image along a random direction."""
        direction = batch.stream.normal(batch.ball.x.shape[1:])
        return batch.ball.ascend(batch.ball.x, direction, self.sizes(batch.ball))
