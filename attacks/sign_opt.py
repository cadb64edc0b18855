"""Sign-OPT: the direction in which the boundary is nearest, by signs of how its distance changes."""

from __future__ import annotations

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
from robustbench_lite.attacks.lengths import euclidean
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, take
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Ball

_BISECTIONS = 20  # a change of direction by beta is to be seen
_TIMES = 15  # doublings or quarterings of a step's size
_LEAST_SIZE = 1e-4
_LEAST_BETA = 1e-6


@dataclass(frozen=True)
class SignOptState(State):
    """`candidate`: the boundary in the present direction. found: (N,) bool, whether there is any; else it is x.

    size, beta: (N,) the present `step_size` and `beta`.
    """

    found: Tensor
    size: Tensor
    beta: Tensor


@dataclass(frozen=True)
class SignOpt(Attack):
    """The nearest image of another label in l2 by labels alone (Cheng et al. 2020, arXiv:1909.10773, algorithm 1).

    steps: changes of the direction, >= 1. directions: queries of a step's estimate, >= 1. step_size: of the first
    step along the estimate, the direction being of length 1, > 0. beta: how far from the direction the estimate
    looks, > 0. starts: random directions of which the nearest is begun from, >= 0. tries: noise images asked until
    one is at the goal, >= 1 (see robustbench_lite.attacks.labels_only.find_start); a sample for which there is none
    fails.
    A step asks whether the boundary is nearer or farther in directions around the present one (equation 3: a query
    each), goes along the sum of these signs, twice as far while that brings the boundary nearer, or a quarter as far
    until it does, and bisects. Where even the smallest step does not help, beta falls to a tenth.
    Departures: a direction that is no nearer costs one query, where the authors' code measures it first; from the
    signs their mean is subtracted, and of directions what the box cuts off; a sample ends where beta is below 1e-6,
    which float32 does not resolve; the components are drawn from 4096 equally likely values.
    """

    name: ClassVar[str] = "sign-opt"
    summary: ClassVar[str] = "nearest image by labels alone: signs of the change of the boundary's distance"
    source: ClassVar[str] = "Cheng et al. 2020, arXiv:1909.10773"
    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    minimal: ClassVar[bool] = True

    steps: int = 80
    directions: int = 200
    step_size: float = 0.2
    beta: float = 0.001
    starts: int = 100
    tries: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("directions", 1), ("starts", 0), ("tries", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be >= {least}, got {getattr(self, name)}")
        for name in ("step_size", "beta"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be > 0, got {getattr(self, name):g}")

    @property
    def length(self) -> int:
        """One estimate a step."""
        return self.steps

    def start(self, query: Query, batch: Batch) -> SignOptState:
        """The nearest boundary in random directions."""
        image, found = find_start(query, batch, self.tries)
        rows = found.nonzero()[:, 0]
        if len(rows):
            edge = to_boundary(query, batch, image[rows], rows, _BISECTIONS)
            nearer, which = self._nearest(query, batch, edge, rows)
            if len(which):
                edge[which] = to_boundary(query, batch, nearer, rows[which], _BISECTIONS)
            image[rows] = edge
        one = torch.ones_like(batch.ball.eps)
        return SignOptState(image, found, one * self.step_size, one * self.beta)

    def _nearest(self, query: Query, batch: Batch, edge: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """For samples with a random direction whose boundary is nearer than the edge: an image along it, and which.

        All directions are asked at one distance; while some are at the goal the others are out and it is halved.
        """
        ball, length = take(batch.ball, rows), take(batch.ball, rows).distance(edge)
        image, hit_any = edge.clone(), torch.zeros_like(rows, dtype=torch.bool)
        own = torch.arange(len(rows), device=rows.device).repeat_interleave(self.starts)
        draw = torch.arange(self.starts, device=rows.device).repeat(len(rows))
        for _ in range(_BISECTIONS):
            hits = torch.cat(
                [
                    self._along(query, batch, ball, rows, length, a, b)
                    for a, b in zip(torch.split(own, 1024), torch.split(draw, 1024), strict=True)
                ]
            )
            own, draw = own[hits], draw[hits]
            if not len(own):
                break
            first = torch.ones_like(own, dtype=torch.bool)
            first[1:] = own[1:] != own[:-1]
            at = own[first]
            image[at] = self._image(batch, take(ball, at), rows[at], length[at], draw[first])
            hit_any[at] = True
            length[at] = length[at] / 2
        which = hit_any.nonzero()[:, 0]
        return image[which], which

    def _along(
        self, query: Query, batch: Batch, ball: Ball, rows: Tensor, length: Tensor, own: Tensor, draw: Tensor
    ) -> Tensor:
        image = self._image(batch, take(ball, own), rows[own], length[own], draw)
        return at_goal(query, batch, image, rows[own])

    def _image(self, batch: Batch, ball: Ball, rows: Tensor, length: Tensor, draw: Tensor) -> Tensor:
        """What lies at `length` in a random direction."""
        way = random_directions(Stream(batch.stream.keys[rows]).child("starts"), ball.x.shape[1:], draw)
        return way.mul_(per_row((length / _length(way)).float(), way)).add_(ball.x).clamp_(ball.low, ball.high)

    def step(self, query: Query, batch: Batch, state: SignOptState) -> SignOptState:  # type: ignore[override]
        """Lines 2 to 5 of algorithm 1: the estimate, and a step along it as long as pays."""
        rows = state.found.nonzero()[:, 0]
        if not len(rows):
            return state
        ball, image = take(batch.ball, rows), state.candidate[rows]
        length = ball.distance(image)
        way = (image - ball.x) * per_row((1 / length.clamp_min(1e-12)).float(), image)
        uphill = self._estimate(query, batch, image, rows, way, length.float(), state.beta[rows])
        size = state.size[rows].clone()
        best, pending = image.clone(), torch.arange(len(rows), device=rows.device)
        growing = torch.ones_like(rows, dtype=torch.bool)
        for turn in range(2 * _TIMES):
            turned = way[pending] + uphill[pending] * per_row(size[pending], image)
            now = ball.distance(best)[pending]
            asked = turned.mul_(per_row((now / _length(turned)).float(), turned)).add_(ball.x[pending])
            hit = at_goal(query, batch, asked.clamp_(ball.low, ball.high), rows[pending])
            at = pending[hit]
            if len(at):
                best[at] = to_boundary(query, batch, asked[hit], rows[at], _BISECTIONS)
            if turn == 0:
                growing[pending] = hit
            # A growing step goes on while it pays and at most so often, a shrinking one until it does.
            up = growing[pending]
            size[pending] *= torch.where(up & hit, 2.0, torch.where(~up & ~hit, 0.25, 1.0))
            pending = pending[(up & hit & (turn < _TIMES - 1)) | (~up & ~hit & (size[pending] >= _LEAST_SIZE))]
            if not len(pending):
                break
        small = size < _LEAST_SIZE
        return SignOptState(
            state.candidate.index_copy(0, rows, best),
            state.found,
            state.size.index_copy(0, rows, torch.where(small, 1.0, size)),
            state.beta.index_copy(0, rows, torch.where(small, state.beta[rows] / 10, state.beta[rows])),
        )

    def _estimate(
        self, query: Query, batch: Batch, image: Tensor, rows: Tensor, way: Tensor, length: Tensor, beta: Tensor
    ) -> Tensor:
        """The mean of directions towards a nearer boundary less those towards a farther one (equation 3)."""
        stream = Stream(batch.stream.keys[rows]).child("directions").child(batch.step[rows])

        def offsets(which: Tensor, draw: Tensor) -> Tensor:
            around = random_directions(Stream(stream.keys[which]), image.shape[1:], draw)
            here = way[which]
            around.mul_(per_row(beta[which] / _length(around).float(), around)).add_(here)
            around.mul_(per_row((1 / _length(around)).float(), around)).sub_(here)
            return around.mul_(per_row(length[which], around))

        counts = torch.full_like(rows, self.directions)
        total = estimated_normal(query, batch, image, rows, counts=counts, offsets=offsets)
        return total.mul_(per_row(1 / (self.directions * beta * length).clamp_min(1e-12), total))

    def finished(self, batch: Batch, state: SignOptState) -> Tensor:  # type: ignore[override]
        """Samples without a start, or without a direction that is nearer."""
        return ~state.found | (state.beta < _LEAST_BETA)


def _length(delta: Tensor) -> Tensor:
    return euclidean(delta).clamp_min(1e-12)
