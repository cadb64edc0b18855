"""HopSkipJump: along the boundary by gradients that are estimated from labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.attacks.labels_only import (
    at_goal,
    estimated_normal,
    find_start,
    random_directions,
    to_boundary,
)
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, take
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

_HALVINGS = 20
_MOST_ROUNDS = 24  # of a bisection, beyond which float32 tells no points apart


@dataclass(frozen=True)
class HopSkipJumpState(State):
    """`candidate`: the present image at the boundary. found: (N,) bool, whether there is any; else it is x."""

    found: Tensor


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """The nearest image of another label by labels alone (Chen et al. 2020, arXiv:1904.02144, algorithm 2).

    steps: moves along the boundary, >= 1. directions: queries from which the first step estimates the gradient, >= 1;
    step t takes sqrt(t) times as many, `most_directions` at most. gamma, > 0: how near the boundary the bisection
    comes, gamma d^-3/2 of the distance (linf: gamma d^-2), and how far around the gradient is looked for, gamma / d
    of the distance, where d counts the numbers of an image. tries: noise images asked until one is at the goal, >= 1
    (see robustbench_lite.attacks.labels_only.find_start); a sample for which there is none fails.
    A step estimates the gradient at the boundary from labels around it (equations 16 and 17), goes along it (linf:
    along its signs) by the distance over sqrt(t), halved until the label is wrong, and bisects towards the image.
    Departures: a step that was halved 20 times is not taken, where the paper goes on; the components of a direction
    are drawn from 4096 equally likely values.
    """

    name: ClassVar[str] = "hop-skip-jump"
    summary: ClassVar[str] = "nearest image by labels alone: gradients estimated at the boundary"
    source: ClassVar[str] = "Chen et al. 2020, arXiv:1904.02144"
    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")
    minimal: ClassVar[bool] = True

    steps: int = 64
    directions: int = 100
    most_directions: int = 10_000
    gamma: float = 1.0
    tries: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "directions", "most_directions", "tries"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.gamma > 0:
            raise UserError(f"gamma must be > 0, got {self.gamma:g}")

    @property
    def length(self) -> int:
        """One gradient estimate a step."""
        return self.steps

    def calls(self, threat: Threat) -> tuple[int, int]:
        """At most: the tries and a bisection, and in each step the estimate, the way along it and a bisection."""
        estimates = sum(self._count(step) for step in range(self.steps))
        return self.tries + estimates + self.steps * _HALVINGS + (1 + self.steps) * _MOST_ROUNDS, 0

    def _count(self, step: int) -> int:
        """The queries of a step's estimate."""
        return min(int(self.directions * (step + 1) ** 0.5), self.most_directions)

    def start(self, query: Query, batch: Batch) -> HopSkipJumpState:
        """The boundary between a random image of another label and the clean one."""
        image, found = find_start(query, batch, self.tries)
        rows = found.nonzero()[:, 0]
        if len(rows):
            image[rows] = to_boundary(query, batch, image[rows], rows, self._rounds(batch))
        return HopSkipJumpState(image, found)

    def step(self, query: Query, batch: Batch, state: HopSkipJumpState) -> HopSkipJumpState:  # type: ignore[override]
        """Estimate the gradient, go along it, come back to the boundary."""
        rows = state.found.nonzero()[:, 0]
        if not len(rows):
            return state
        image, ball, step = state.candidate[rows], take(batch.ball, rows), batch.step[rows]
        distance = ball.distance(image)
        radius = torch.where(step == 0, 0.1 * (ball.high - ball.low), self.gamma * distance / image[0].numel())
        direction = self._gradient(query, batch, image, rows, radius.float())
        direction = ball.steepest(direction)
        moved = self._move(query, batch, image, rows, direction, (distance / (step + 1).sqrt()).float())
        moved = to_boundary(query, batch, moved, rows, self._rounds(batch))
        return HopSkipJumpState(state.candidate.index_copy(0, rows, moved), state.found)

    def finished(self, batch: Batch, state: HopSkipJumpState) -> Tensor:  # type: ignore[override]
        """Samples without a start."""
        return ~state.found

    def _rounds(self, batch: Batch) -> int:
        """Bisections until the share of the way is known to gamma d^-3/2, in linf gamma d^-2."""
        power = 2.0 if batch.ball.norm == "linf" else 1.5
        return min(_MOST_ROUNDS, max(1, math.ceil(power * math.log2(batch.ball.x[0].numel()) - math.log2(self.gamma))))

    def _gradient(self, query: Query, batch: Batch, image: Tensor, rows: Tensor, radius: Tensor) -> Tensor:
        """Equations 16 and 17: directions weighted by their labels, less the mean label; of any length."""
        counts = (self.directions * (batch.step[rows] + 1).double().sqrt()).long().clamp_max(self.most_directions)
        stream = Stream(batch.stream.keys[rows]).child("directions").child(batch.step[rows])

        def offsets(which: Tensor, draw: Tensor) -> Tensor:
            way = random_directions(Stream(stream.keys[which]), image.shape[1:], draw, norm=batch.ball.norm)
            return way.mul_(per_row(radius[which] / way.flatten(1).norm(dim=1), way))

        return estimated_normal(query, batch, image, rows, counts=counts, offsets=offsets)

    def _move(self, query: Query, batch: Batch, image: Tensor, rows: Tensor, direction: Tensor, size: Tensor) -> Tensor:
        """As far along the direction as the label is wrong, halving the way; the image itself where it never is."""
        moved, pending = image.clone(), torch.arange(len(rows), device=rows.device)
        for _ in range(_HALVINGS):
            there = image[pending] + direction[pending] * per_row(size[pending], image)
            there.clamp_(batch.ball.low, batch.ball.high)
            hit = at_goal(query, batch, there, rows[pending])
            moved[pending[hit]] = there[hit]
            pending = pending[~hit]
            if not len(pending):
                break
            size[pending] /= 2
        return moved
