"""Margin decomposition: first one term of the margin, then the whole of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat

LABEL, OTHER, WHOLE = 0, 1, 2  # the parts of a margin


@dataclass(frozen=True)
class MD(Attack):
    """Ascent of one term of the margin z_max - z_y, then of the margin (Ma et al. 2020, arXiv:2006.13726).

    Where one term's gradient drowns the other's ("imbalanced gradients") the margin alone leads nowhere: so the
    first stage of an even restart lowers the label's logit, that of an odd one raises the largest other, and the
    second stage of both raises their difference. Each restart begins at a random point of the ball.
    steps: gradient steps of a restart, >= 1. first_stage: share of them in the first stage, in [0, 1]. restarts: tried
    until one succeeds, >= 1; two for each term once. step_size: of the first step, in pixels of [0, 1], > 0;
    default `step_share` times eps, > 0. It falls to 0 over each stage as a cosine, by (1 + cos(pi k / K)) / 2.
    random_start: else each restart begins at the image (in a portfolio, where the parts before it ended).
    With a class aimed at, its logit stands for z_max and the largest other one for z_y.
    Departures: the authors' code begins with one step up z_y, left out here; norms other than linf step along the
    steepest direction in them.
    """

    name: ClassVar[str] = "md"
    summary: ClassVar[str] = "margin decomposition: one term of the margin first, then the whole"
    source: ClassVar[str] = "Ma et al. 2020, arXiv:2006.13726"

    steps: int = 50
    restarts: int = 2
    first_stage: float = 0.5
    step_size: float | None = None
    step_share: float = 2.0
    random_start: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.first_stage <= 1:
            raise UserError(f"first_stage must be in [0, 1], got {self.first_stage:g}")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"step_size must be > 0, got {self.step_size:g}")
        if not self.step_share > 0:
            raise UserError(f"step_share must be > 0, got {self.step_share:g}")

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

    @property
    def parts(self) -> Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]:
        """The loss, of logits, y, targets and which part of the margin each sample is at, (N,) int64."""
        return margin_parts

    def start(self, query: Query, batch: Batch) -> State:
        """A random point of the ball, or where others ended."""
        return State(batch.ball.random(batch.stream) if self.random_start else batch.origin.clone())

    def step(self, query: Query, batch: Batch, state: State) -> State:
        """One step up the part of the margin that the stage asks for."""
        change = int(self.first_stage * self.steps)
        second = batch.step >= change
        part = torch.where(second, WHOLE, torch.where(batch.attempt % 2 == 0, LABEL, OTHER))
        gradient = query.gradient(state.candidate, self.parts, part).gradient
        k = torch.where(second, batch.step - change, batch.step).double()
        length = torch.where(second, self.steps - change, max(1, change)).double()
        first = self.step_share * batch.ball.eps if self.step_size is None else self.step_size
        step_size = first * (0.5 + 0.5 * torch.cos(math.pi * k / length)).float()
        return State(batch.ball.ascend(state.candidate, gradient, step_size))


def contest(logits: Tensor, y: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """The class that shall win and the one that shall lose, (N, 1) int64 each."""
    aim = (y if targets is None else targets).unsqueeze(1)
    other = logits.detach().scatter(1, aim, float("-inf")).argmax(1, keepdim=True)
    return (other, aim) if targets is None else (aim, other)


def margin_parts(logits: Tensor, y: Tensor, targets: Tensor | None, part: Tensor) -> Tensor:
    """-z_y, z_max or z_max - z_y, (N,)."""
    winner, loser = contest(logits, y, targets)
    up, down = logits.gather(1, winner)[:, 0], logits.gather(1, loser)[:, 0]
    return torch.where(part == WHOLE, up - down, torch.where(part == OTHER, up, -down))
