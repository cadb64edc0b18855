"""Simple black-box attack: one direction of an orthonormal basis after another, kept where the score falls."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from robustbench_lite.attack import Batch, State
from robustbench_lite.errors import unknown_name
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, take
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

from .cosines import cosines
from .scores import ScoreSearch, above_zero, fraction, scores

BASES = ("pixel", "dct")


@dataclass(frozen=True)
class SimBAState(State):
    """`candidate`: the best image so far. loss: (N,) at it. order: (N, C H W) int32, the directions in turn."""

    loss: Tensor
    order: Tensor


@dataclass(frozen=True)
class SimBA(ScoreSearch):
    """Steps along directions of a basis, in random order, each tried both ways (Guo et al. 2019, arXiv:1905.07121).

    steps: directions tried, each for one query, or two where the first does not raise the loss (algorithm 1), >= 1.
    basis: `pixel`, one number of the image each, or `dct`, one cosine of one channel each. step_size: length of a
    step in l2, > 0; default the paper's 0.2 in l2, eps in linf. share: of the frequencies in height and in width,
    that the first directions of `dct` are drawn from, in (0, 1]; when they are used up the square of frequencies grows
    by a quarter of its side. restarts: runs with other random numbers until one succeeds. loss: `ce` orders images as
    the paper's probability of the label (or of the target) does, without its underflow; else margin or dlr.
    Once every direction has had its turn a new order is drawn.
    Departures: 5000 directions (up to 10,000 queries) for any image; every image asked about is in the ball, drawn in
    where a step leaves it, where the paper bounds the length by the number of steps alone; the linf ball is the
    authors' code's.
    """

    name: ClassVar[str] = "simba"
    summary: ClassVar[str] = "random directions of a basis, kept where the score falls"
    source: ClassVar[str] = "Guo et al. 2019, arXiv:1905.07121"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")

    steps: int = 5000
    basis: Literal["pixel", "dct"] = "pixel"
    step_size: float | None = None
    share: float = 1 / 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.basis not in BASES:
            raise unknown_name("basis", self.basis, BASES)
        above_zero(self, "step_size")
        fraction(self, "share")

    def calls(self, threat: Threat) -> tuple[int, int]:
        """One at the start, then two a step where neither way helps."""
        return (1 + 2 * self.steps) * self.restarts, 0

    def resolve(self, threat: Threat) -> Self:
        """With the default step size of the norm."""
        if self.step_size is not None or not threat.eps:
            return self
        return replace(self, step_size=0.2 if threat.norm == "l2" else threat.eps)

    def start(self, query: Query, batch: Batch) -> SimBAState:
        """The image, and a first order of the directions."""
        x = batch.origin.clone()
        return SimBAState(x, scores(query, batch, x, loss=self.loss), self._order(batch.stream, batch.step, x))

    def step(self, query: Query, batch: Batch, state: SimBAState) -> SimBAState:  # type: ignore[override]
        """One direction, forward, and where that does not help backward."""
        x, loss, order = state.candidate, state.loss, state.order
        place = batch.step % order.shape[1]
        anew = ((place == 0) & (batch.step > 0)).nonzero()[:, 0]
        if len(anew):
            order = order.index_copy(0, anew, self._order(Stream(batch.stream.keys[anew]), batch.step[anew], x[anew]))
        size = batch.ball.eps if self.step_size is None else torch.full_like(batch.ball.eps, self.step_size)
        which = order.gather(1, place.unsqueeze(1))[:, 0].long()
        rows = torch.arange(len(x), device=x.device)
        for sign in (1, -1):
            if not len(rows):
                break
            way = self._direction(which[rows], x) * per_row(sign * size[rows], x)
            moved = take(batch.ball, rows).project(x[rows] + way)
            found = scores(query, batch, moved, loss=self.loss, rows=rows)
            better = found > loss[rows]
            x, loss = x.index_copy(0, rows[better], moved[better]), loss.index_copy(0, rows[better], found[better])
            rows = rows[~better]
        return SimBAState(x, loss, order)

    def _order(self, stream: Stream, step: Tensor, x: Tensor) -> Tensor:
        """A random order of all directions, for `dct` those of low frequencies first, (N, C H W) int32."""
        drawn = stream.child("order").uniform((x[0].numel(),), draw=step)
        if self.basis == "dct":
            drawn = drawn + _shells(tuple(x.shape[1:]), self.share).to(drawn)
        return drawn.argsort(dim=1, stable=True).int()

    def _direction(self, which: Tensor, x: Tensor) -> Tensor:
        """The basis vector of number `which` for each, (M, C, H, W), of length 1."""
        channels, height, width = x.shape[1:]
        if self.basis == "pixel":
            flat = x.new_zeros((len(which), channels * height * width))
            return flat.scatter_(1, which.unsqueeze(1), 1.0).reshape(-1, channels, height, width)
        down, across = (cosines(length, length).T.to(x) for length in (height, width))
        rows, columns = down[which // width % height], across[which % width]
        channel = torch.nn.functional.one_hot(which // (height * width), channels).to(x.dtype)
        return channel[:, :, None, None] * rows[:, None, :, None] * columns[:, None, None, :]


@functools.lru_cache(maxsize=16)
def _shells(shape: tuple[int, int, int], share: float) -> Tensor:
    """For each frequency by how many quarters the first square must grow to hold it, (C H W,) int64."""
    channels, height, width = shape
    quarters = torch.zeros((height, width), dtype=torch.int64)
    for axis, length in ((1, height), (0, width)):
        first = max(1, math.ceil(share * length))
        beyond = (torch.arange(length) + 1 - first).clamp_min(0) * 4
        quarters = torch.maximum(quarters, ((beyond + first - 1) // first).unsqueeze(axis))
    return quarters.expand(channels, height, width).reshape(-1)
