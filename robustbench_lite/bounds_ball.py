"""What an input may be, as bounds need it: a ball cut by the box, and the least of a linear function over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import unknown_name
from .rows import per_row

NORMS = ("linf", "l2", "l1", "l0")
# An image is judged to be within eps on distances that were rounded: the ball is larger than asked by this share.
WIDER = 1e-9


@dataclass(frozen=True)
class Interval:
    """Bounds of every number: `lower` and `upper`, (N, ...) each."""

    lower: Tensor
    upper: Tensor

    @property
    def size(self) -> Tensor:
        """The largest absolute value that is possible."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def least(self, ways: Tensor) -> Tensor:
        """The least of the linear functions `ways` (N, S, ...) over the box, (N, S)."""
        middle, reach = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        flat = ways.flatten(2)
        ahead = flat @ middle.flatten(1).unsqueeze(2) - flat.abs() @ reach.flatten(1).unsqueeze(2)
        return ahead.squeeze(2)


@dataclass(frozen=True)
class Region:
    """The images within eps of x (N, ...) in the norm, and in the box [low, high].

    eps: in units of a pixel; for l0 the count of numbers that may change.
    """

    x: Tensor
    norm: str
    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown_name("norm", self.norm, NORMS)

    @property
    def box(self) -> Interval:
        """The smallest box that holds the region."""
        reach = self.high - self.low if self.norm == "l0" and self.eps >= 1 else self.eps * (1 + WIDER)
        return Interval((self.x - reach).clamp_min(self.low), (self.x + reach).clamp_max(self.high))

    def least(self, ways: Tensor) -> Tensor:
        """A lower bound of the linear functions `ways` (N, S, ...) over the region, (N, S).

        Exact for linf, l1 and l0; for l2 by weak duality, which every multiplier obeys, and exact where the box cuts
        nothing.
        """
        if self.norm == "linf":
            return self.box.least(ways)
        flat, x = ways.flatten(2), self.x.flatten(1).unsqueeze(1)
        here = (flat @ x.transpose(1, 2)).squeeze(2)
        # How far the function falls if a number goes to the end of the box that it points at.
        room = torch.where(flat > 0, x - self.low, self.high - x).clamp_min(0)
        return here - (self._far(flat, room) if self.norm == "l2" else self._sparse(flat.abs(), room))

    def _sparse(self, slope: Tensor, room: Tensor) -> Tensor:
        """The most that is lost in l1, number by number from the steepest; in l0, the eps numbers that lose most."""
        if self.norm == "l0":
            count = min(int(self.eps), slope.shape[2])
            return (slope * room).topk(count, dim=2).values.sum(2)
        slope, order = slope.sort(dim=2, descending=True)
        room = room.gather(2, order)
        before = room.cumsum(2) - room
        return (slope * (self.eps * (1 + WIDER) - before).clamp_min(0).minimum(room)).sum(2)

    def _far(self, ways: Tensor, room: Tensor) -> Tensor:
        """An upper bound of what is lost in l2: of max a d - m (d d - eps^2) / 2 over the box, for some multipliers m.

        The first is that of the ball alone; the next ones bring the best d nearer to eps. None is the box alone.
        """
        eps, slope = self.eps * (1 + WIDER), ways.abs()
        length = slope.square().sum(2, keepdim=True).sqrt()
        if eps == 0:
            return torch.zeros_like(length).squeeze(2)
        room = room.clamp_max(eps)
        factor, lost = length / eps, (slope * room).sum(2)
        for _ in range(4):
            change = (slope / factor.clamp_min(1e-300)).minimum(room)
            squares = change.square().sum(2, keepdim=True)
            value = (slope * change).sum(2) + (factor * (eps**2 - squares) / 2).squeeze(2)
            lost = lost.minimum(value)
            factor = factor * squares.sqrt() / eps
        return lost


def box_around(x: Tensor, eps: Tensor | float) -> Interval:
    """The pixels within eps, one for all or (N,), of images in [0, 1]."""
    reach = per_row(eps, x) if isinstance(eps, Tensor) else eps
    return Interval((x - reach).clamp_min(0), (x + reach).clamp_max(1))
