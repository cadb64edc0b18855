"""One pixel: differential evolution over the places and colours of a few pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from robustbench_lite.attack import Batch, State
from robustbench_lite.errors import UserError, unknown_name
from robustbench_lite.query import Query
from robustbench_lite.rows import take
from robustbench_lite.threat import Ball, Threat

from .scores import ScoreSearch, above_zero, at_least, scores_of_each

_BASES = ("best", "random")


@dataclass(frozen=True)
class OnePixelState(State):
    """population: (N, members, pixels, 2 + C), row and column as shares of the image, colours; loss: (N, members)."""

    population: Tensor
    loss: Tensor


@dataclass(frozen=True)
class OnePixel(ScoreSearch):
    """Differential evolution of a few pixels (Su et al. 2019, arXiv:1710.08864, section III).

    A member of the population is, for each pixel, its place and its colour. A step makes a child of each: a + weight
    (b - c), in every component, with b and c two other members, which takes its place where its loss is larger. Places
    begin uniform, colours normal with mean and deviation of half the box.
    steps: generations, >= 1. population: members, each a query a step, >= 4. weight: of the difference, > 0. base: what
    a is, `best`, the member of the largest loss, or `random`, a third other one. pixels: at most so many are painted,
    >= 1; default as many as eps allows. eps counts numbers of the image, so it allows eps / channels pixels, and must
    allow one. restarts: populations tried until one succeeds. loss: `ce` orders images as the paper's probability of
    the label (or of the target) does, without its underflow; else margin or dlr.
    Departures: the paper's a is random (equation 3), with which far fewer fall: 12 where the best fells 29 of 100
    images of a robust network at 8 pixels and 500 queries. What leaves the image is drawn anew, uniformly. It ends at
    the first success, where the paper waits for a probability of 90 % (of the label 5 %).
    """

    name: ClassVar[str] = "one-pixel"
    summary: ClassVar[str] = "few pixels painted, found by differential evolution"
    source: ClassVar[str] = "Su et al. 2019, arXiv:1710.08864"
    norms: ClassVar[tuple[str, ...]] = ("l0",)

    population: int = 400
    weight: float = 0.5
    base: Literal["best", "random"] = "best"
    pixels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, population=4, pixels=1)
        above_zero(self, "weight")
        if self.base not in _BASES:
            raise unknown_name("base", self.base, _BASES)

    def calls(self, threat: Threat) -> tuple[int, int]:
        """The first population, then one child of each member a step."""
        return self.population * (1 + self.steps) * self.restarts, 0

    def resolve(self, threat: Threat) -> Self:
        """With no more pixels than eps allows where there is one channel."""
        if self.pixels is not None or not threat.eps:
            return self
        return replace(self, pixels=int(threat.eps))

    def start(self, query: Query, batch: Batch) -> OnePixelState:
        """A random population and its losses."""
        ball = batch.ball
        channels = ball.x.shape[1]
        if bool(((ball.eps > 0) & (ball.eps < channels)).any()):
            raise UserError(
                f"eps must be at least {channels} for one-pixel on images of {channels} channels, as l0 counts the "
                f"numbers of a pixel apart; got {float(ball.eps[ball.eps > 0].min()):g}"
            )
        shape = (self.population, self.pixels or 1)
        places = batch.stream.child("places").uniform((*shape, 2))
        colours = batch.stream.child("colours").normal((*shape, channels)).add_(1).mul_((ball.high - ball.low) / 2)
        population = self._legal(torch.cat([places, colours.add_(ball.low)], 3), ball)
        return self._judged(query, batch, population, None)

    def step(self, query: Query, batch: Batch, state: OnePixelState) -> OnePixelState:  # type: ignore[override]
        """A child of each member, which replaces it where it is better."""
        members, count = state.population, self.population
        drawn = batch.stream.child("parents").uniform((3, count), draw=batch.step).double()
        # Three members, none twice, and none the one whose place is at stake: each drawn from those that are left.
        taken = torch.arange(count, device=drawn.device).expand(len(drawn), 1, count)
        for i in range(3):
            left = (drawn[:, i] * (count - 1 - i)).long()
            for other in taken.sort(1).values.unbind(1):
                left = left + (left >= other)
            taken = torch.cat([taken, left.unsqueeze(1)], 1)
        a, b, c = (_at(members, taken[:, i]) for i in (1, 2, 3))
        if self.base == "best":
            a = members.gather(1, state.loss.argmax(1).reshape(-1, 1, 1, 1).expand_as(members[:, :1]))
        child = a + self.weight * (b - c)
        other = batch.stream.child("anew").uniform(child.shape[1:], draw=batch.step)
        low, width = batch.ball.low, batch.ball.high - batch.ball.low
        other[..., 2:].mul_(width).add_(low)
        return self._judged(query, batch, torch.where(child == self._legal(child, batch.ball), child, other), state)

    def _judged(self, query: Query, batch: Batch, proposed: Tensor, old: OnePixelState | None) -> OnePixelState:
        """The better of each old member and its child, and the image of the best."""

        def image(rows: Tensor, numbers: Tensor) -> Tensor:
            return self._painted(take(batch.ball, rows), proposed[rows, numbers])

        loss, members = scores_of_each(query, batch, image, each=self.population, loss=self.loss), proposed
        if old is not None:
            better = loss > old.loss
            members = torch.where(better[:, :, None, None], members, old.population)
            loss = torch.where(better, loss, old.loss)
        best = members[torch.arange(len(members), device=members.device), loss.argmax(1)]
        return OnePixelState(self._painted(batch.ball, best), members, loss)

    @staticmethod
    def _legal(members: Tensor, ball: Ball) -> Tensor:
        return torch.cat([members[..., :2].clamp(0, 1), members[..., 2:].clamp(ball.low, ball.high)], -1)

    def _painted(self, ball: Ball, members: Tensor) -> Tensor:
        """The image of each member (M, pixels, 2 + C), with as many of its pixels painted as eps allows."""
        channels, height, width = ball.x.shape[1:]
        image = ball.x.flatten(2).clone()
        allowed = (ball.eps.double() / channels).floor().reshape(-1, 1)
        size = torch.tensor([height, width], device=members.device)
        place = torch.minimum((members[..., :2].double() * size).long(), size - 1)
        where = place[..., 0] * width + place[..., 1]
        for i in range(members.shape[1]):
            at = where[:, i, None, None].expand(-1, channels, 1)
            colour = torch.where(i < allowed, members[:, i, 2:], image.gather(2, at)[:, :, 0])
            image.scatter_(2, at, colour.unsqueeze(2))
        return image.reshape(ball.x.shape)


def _at(members: Tensor, index: Tensor) -> Tensor:
    """Members (N, population, ...) in the order of `index` (N, population)."""
    return members.gather(1, index[:, :, None, None].expand_as(members))
