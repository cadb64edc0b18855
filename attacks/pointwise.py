"""Pointwise: of an image with wrong pixels, as many as can be are set back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.attacks.labels_only import at_goal, find_start, first_at_goal
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Ball, Threat


@dataclass(frozen=True)
class PointwiseState(State):
    """`candidate`: the image at the goal with the fewest changed numbers so far, or x. going: (N,) bool, whether
    it is at the goal and a number may still be set back.

    block: (N,) int64, how many numbers are set back at once; cursor: (N,) int64, the place in the order of the next;
    cycle: (N,) int64, how often the order was gone through; any_undone: (N,) bool, whether any was in this cycle.
    """

    going: Tensor
    block: Tensor
    cursor: Tensor
    cycle: Tensor
    any_undone: Tensor


@dataclass(frozen=True)
class Pointwise(Attack):
    """The image of another label with few changed numbers (Schott et al. 2019, arXiv:1805.09190, section 5 and A.4).

    steps: queries after the start, at most, >= 1. tries: noise images asked until one is at the goal, >= 1: half of
    them salt and pepper on a share of the numbers that grows from try to try, then others (see
    robustbench_lite.attacks.labels_only.find_start); a sample for which there is none fails. restarts: times that it
    is done with other noise and in another order, >= 1.
    Changed numbers are set back to the clean image's in random order where the label stays wrong, in a new order
    again and again until none can be.
    Departure: several are set back with one query, twice as many after a success and half as many after a failure;
    one alone that cannot be stays, so that at the end none can, as in the paper.
    """

    name: ClassVar[str] = "pointwise"
    summary: ClassVar[str] = "fewest changed numbers by labels alone: noise set back number by number"
    source: ClassVar[str] = "Schott et al. 2019, arXiv:1805.09190"
    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    minimal: ClassVar[bool] = True

    steps: int = 10_000
    restarts: int = 1
    tries: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "tries"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")

    @property
    def length(self) -> int:
        """One query a step."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts

    def calls(self, threat: Threat) -> tuple[int, int]:
        """The tries, and a query a step."""
        return (self.tries + self.steps) * self.restarts, 0

    def start(self, query: Query, batch: Batch) -> PointwiseState:
        """Salt and pepper of as little as changes the label, else other noise."""
        image, found = _salted(query, batch, max(1, self.tries // 2))
        if self.tries > 1 and not found.all():
            image, found = find_start(query, batch, self.tries - self.tries // 2, known=(image, found))
        zero = torch.zeros_like(batch.y)
        size = max(1, image[0].numel() // 16)
        return PointwiseState(image, found, zero + size, zero, zero, torch.zeros_like(found))

    def step(self, query: Query, batch: Batch, state: PointwiseState) -> PointwiseState:  # type: ignore[override]
        """The next changed numbers of the order set back, kept where the label stays wrong."""
        x, flat = batch.ball.x.flatten(1), state.candidate.flatten(1)
        order = batch.stream.child("order").uniform((x.shape[1],), draw=state.cycle).argsort(dim=1, stable=True)
        place = torch.arange(x.shape[1], device=x.device)
        open_ = (flat != x).gather(1, order) & (place >= state.cursor.unsqueeze(1))
        rank = open_.long().cumsum(1)
        chosen = open_ & (rank <= state.block.unsqueeze(1))
        asked = torch.where(torch.zeros_like(open_).scatter(1, order, chosen), x, flat).reshape(batch.ball.x.shape)
        asks = state.going & chosen.any(1)
        rows = asks.nonzero()[:, 0]
        hit = torch.zeros_like(asks)
        if len(rows):
            hit[rows] = at_goal(query, batch, asked[rows], rows)
        single = chosen.sum(1) <= 1
        # The place after the last that was decided: all of them where the label stayed wrong, or one alone.
        last = torch.where(chosen, place, -1).amax(1) + 1
        cursor = torch.where(hit | single, torch.maximum(last, state.cursor), state.cursor)
        block = torch.where(hit, state.block * 2, (torch.minimum(state.block, chosen.sum(1)) // 2).clamp_min(1))
        undone = state.any_undone | hit
        over = (open_ & (place >= cursor.unsqueeze(1))).any(1).logical_not()
        again = over & undone
        return PointwiseState(
            torch.where(per_row(hit, asked), asked, state.candidate),
            state.going & ~(over & ~undone),
            torch.where(again, 1, block),
            torch.where(again, 0, cursor),
            state.cycle + again,
            undone & ~again,
        )

    def finished(self, batch: Batch, state: PointwiseState) -> Tensor:  # type: ignore[override]
        """Samples without a start, or with no number left that can be set back."""
        return ~state.going


def _salted(query: Query, batch: Batch, tries: int) -> tuple[Tensor, Tensor]:
    """The image with the least share of black and white numbers that is at the goal, and whether there is any."""

    def salted(ball: Ball, stream: Stream, draw: Tensor) -> Tensor:
        stream, shape = stream.child("salt"), ball.x.shape[1:]
        picked = stream.uniform(shape, draw) < per_row((draw + 1).float() / tries, ball.x)
        white = stream.child("white").uniform(shape, draw) < 0.5
        return torch.where(picked, torch.where(white, ball.high, ball.low), ball.x)

    return first_at_goal(query, batch, tries, salted, growing=False)
