"""Zeroth order optimisation: Carlini and Wagner's objective, its slope found number by number, and Adam on those."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat

from .scores import above_zero, adam, at_least, scores, scores_of_each


@dataclass(frozen=True)
class ZOOState(State):
    """`candidate`: the nearest adversarial iterate, else x. nearest: (N,) its distance, inf for none.

    image: (N, C, H, W), the present iterate. slopes: (N, C H W), of the margin in each number of the image, as last
    found, in this search or an earlier one. mean, square, count: (N, C H W), Adam's averages for each number, and how
    often it was moved. const: (N,), the constant c; low, high: (N,), its bounds so far. hit: (N,) bool, whether the
    search with this c found anything.
    """

    nearest: Tensor
    image: Tensor
    slopes: Tensor
    mean: Tensor
    square: Tensor
    count: Tensor
    const: Tensor
    low: Tensor
    high: Tensor
    hit: Tensor


@dataclass(frozen=True)
class ZOO(Attack):
    """The nearest adversarial image in l2, from scores (Chen et al. 2017, arXiv:1708.03999, algorithms 1 and 2).

    It descends |x' - x|^2 + c max(0, confidence - margin), the margin positive where the goal is reached. A step
    draws some numbers of the image, finds the slope of each by a symmetric difference, and moves them by Adam, which
    forgets what it has averaged where a search first reaches the goal.
    steps: of a search with one c, >= 1; the paper has 1000 for CIFAR-10, 3000 for MNIST. searches: values of c, by
    bisection, or times 10 until one succeeds, >= 1. c: the first, > 0. coordinates: numbers of the image in
    a step, each two queries, >= 1; one query more asks about the image itself. delta: how far along a number is asked,
    in pixels of [0, 1], > 0. step_size: Adam's learning rate, in pixels, > 0. confidence: margin to be reached, >= 0.
    memory: move every number in each step, by the slope last found there; False: those drawn alone, as the paper does.
    Departures: memory, which brings all of 8 images of a robust network to the goal with 100 steps of 2 searches where
    the paper's way brings none or 2; delta is ten times the paper's 0.0001, at which rounding hides the slope; no
    search ends early; images asked about are in the box, and the slope counts how far apart they are; at the goal the
    loss is flat, also within delta of it; a margin of logits is one of log-probabilities; no smaller attack space, no
    hierarchy and no importance sampling, which are for large images; clamped to the box, no change of variables.
    """

    name: ClassVar[str] = "zoo"
    summary: ClassVar[str] = "nearest image in l2 from scores, number by number"
    source: ClassVar[str] = "Chen et al. 2017, arXiv:1708.03999"
    access: ClassVar[Access] = "score"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    minimal: ClassVar[bool] = True

    steps: int = 1000
    searches: int = 9
    c: float = 0.01
    coordinates: int = 128
    delta: float = 1e-3
    step_size: float = 0.01
    confidence: float = 0.0
    memory: bool = True

    def __post_init__(self) -> None:
        at_least(self, steps=1, searches=1, coordinates=1)
        above_zero(self, "c", "delta", "step_size")
        if not self.confidence >= 0:
            raise UserError(f"confidence must be >= 0, got {self.confidence:g}")

    @property
    def length(self) -> int:
        """The steps of all searches."""
        return self.steps * self.searches

    def calls(self, threat: Threat) -> tuple[int, int]:
        """The iterate and two for each coordinate a step; fewer where the image has not as many numbers."""
        return self.length * (1 + 2 * self.coordinates), 0

    def start(self, query: Query, batch: Batch) -> ZOOState:
        """The image itself."""
        x = batch.ball.x
        far = torch.full(batch.y.shape, float("inf"), dtype=torch.float64, device=x.device)
        none = torch.zeros_like(x.flatten(1))
        const = torch.full_like(far, self.c)
        return ZOOState(
            candidate=x.clone(),
            nearest=far,
            image=x.clone(),
            slopes=none,
            mean=none,
            square=none,
            count=none.int(),
            const=const,
            low=torch.zeros_like(far),
            high=far,
            hit=torch.zeros_like(batch.y, dtype=torch.bool),
        )

    def step(self, query: Query, batch: Batch, state: ZOOState) -> ZOOState:  # type: ignore[override]
        """A look at the iterate, and some of its numbers moved."""
        state = self._next_search(batch, state)
        image, ball = state.image, batch.ball
        gain = scores(query, batch, image, loss="margin")
        there = (gain > 0) & (gain >= self.confidence)
        distance = ball.distance(image)
        nearer = there & (distance < state.nearest)
        candidate = torch.where(per_row(nearer, image), image, state.candidate)
        nearest = torch.where(nearer, distance, state.nearest)
        flat, size = image.flatten(1), image[0].numel()
        drawn = batch.stream.child("numbers").uniform((size,), draw=batch.step)
        which = drawn.topk(min(self.coordinates, size), dim=1).indices
        slopes = state.slopes.scatter(1, which, self._slopes(query, batch, flat, which))
        # Where the goal is reached the distance alone counts.
        uphill = slopes * torch.where(there, 0, state.const).float().unsqueeze(1) - 2 * (flat - ball.x.flatten(1))
        # Else what brought the image to the goal would carry it on, far beyond.
        first = (there & ~state.hit).unsqueeze(1)
        before = [part.masked_fill(first, 0) for part in (state.mean, state.square, state.count)]
        mean, square, way = adam(before[0], before[1], uphill, count=before[2] + 1, rate=self.step_size)
        after = [mean, square, before[2] + 1, (flat + way).clamp(ball.low, ball.high)]
        if not self.memory:
            moves = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, which, True)
            after = [torch.where(moves, new, old) for new, old in zip(after, [*before, flat], strict=True)]
        mean, square, count, flat = after
        return replace(
            state,
            candidate=candidate,
            nearest=nearest,
            image=flat.reshape(image.shape),
            slopes=slopes,
            mean=mean,
            square=square,
            count=count,
            hit=state.hit | there,
        )

    def _slopes(self, query: Query, batch: Batch, flat: Tensor, which: Tensor) -> Tensor:
        """Slope of the margin in the numbers `which` (N, K) of the images, (N, K)."""
        ball, count = batch.ball, which.shape[1]
        now = flat.gather(1, which)
        ends = torch.stack([now + self.delta, now - self.delta], 2).clamp(ball.low, ball.high)

        def image(rows: Tensor, numbers: Tensor) -> Tensor:
            place, end = which[rows, numbers // 2].unsqueeze(1), ends[rows, numbers // 2, numbers % 2].unsqueeze(1)
            return flat[rows].scatter_(1, place, end).reshape(-1, *ball.x.shape[1:])

        gain = scores_of_each(query, batch, image, each=2 * count, loss="margin").reshape(ends.shape)
        over, apart = ((part[..., 0] - part[..., 1]) for part in (gain.double(), ends.double()))
        return (over / apart.clamp_min(1e-30)).float()

    def _next_search(self, batch: Batch, state: ZOOState) -> ZOOState:
        """Where a search is over: the next c, from the image again."""
        over = (batch.step > 0) & (batch.step % self.steps == 0)
        if not over.any():
            return state
        low = torch.where(over & ~state.hit, state.const, state.low)
        high = torch.where(over & state.hit, state.const, state.high)
        const = torch.where(torch.isinf(high), state.const * 10, (low + high) / 2)
        rows = over.unsqueeze(1)
        return replace(
            state,
            image=torch.where(per_row(over, state.image), batch.ball.x, state.image),
            mean=state.mean.masked_fill(rows, 0),
            square=state.square.masked_fill(rows, 0),
            count=state.count.masked_fill(rows, 0),
            const=torch.where(over, const, state.const),
            low=low,
            high=high,
            hit=state.hit & ~over,
        )
