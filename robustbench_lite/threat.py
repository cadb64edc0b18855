"""What an attacker may do to an image: the ball of a norm around it, within the box of legal pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .errors import UserError, unknown_name
from .options import parse_number
from .rows import per_row
from .streams import Stream

# Relative to the largest pixel: more than rounding x + eps to float32 can add to a distance in one component.
_ROUNDING = 2.0**-24


def distances(x: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Distances between images (N, ...) in every norm, (N,) float64 each; `l0` counts changed numbers."""
    delta = (other.double() - x.double()).flatten(1).abs()
    return {norm: length(delta) for norm, length in _LENGTHS.items()}


_LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "linf": lambda delta: delta.amax(1) if delta.shape[1] else delta.sum(1),
    "l2": lambda delta: delta.square().sum(1).sqrt(),
    "l1": lambda delta: delta.sum(1),
    "l0": lambda delta: (delta > 0).sum(1).double(),
}


@dataclass(frozen=True)
class Ball:
    """The images an attacker may show in place of `x`: one ball a sample, cut by the box.

    x: (N, C, H, W) in [low, high]; eps: (N,) float32 in units of a pixel. No operation mixes samples.
    """

    norm: ClassVar[str]
    x: Tensor
    eps: Tensor
    low: float
    high: float

    @property
    def _rounding(self) -> float:
        return _ROUNDING * max(abs(self.low), abs(self.high))

    def distance(self, candidate: Tensor) -> Tensor:
        """Distance of each candidate from its image in the ball's norm, (N,) float64."""
        return _LENGTHS[self.norm]((candidate.double() - self.x.double()).flatten(1).abs())

    def contains(self, candidate: Tensor) -> Tensor:
        """Which candidates are in the ball and in the box, exactly, (N,) bool."""
        flat = candidate.flatten(1)
        inside = (flat.amin(1) >= self.low) & (flat.amax(1) <= self.high)
        return inside & (self.distance(candidate) <= self.eps.double())

    def project(self, candidate: Tensor) -> Tensor:
        """A point in the ball and in the box; one that is in both already is not moved by more than rounding."""
        raise NotImplementedError

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of norm 1 along which a linear function with this gradient grows fastest.

        It may overwrite `gradient`.
        """
        raise NotImplementedError

    def random(self, stream: Stream) -> Tensor:
        """A point drawn uniformly from the ball, then cut to the box."""
        raise NotImplementedError

    def scaled(self, direction: Tensor) -> Tensor:
        """The point whose distance from x is eps along `direction`, then cut to the box."""
        length = distances(torch.zeros_like(direction), direction)[self.norm]
        factor = (self.eps.double() / length.clamp_min(1e-30)).float()
        return self.project(self.x + direction * per_row(factor, direction))

    def ascend(self, candidate: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """One projected step of steepest ascent; `step_size` in units of the norm, one for all or (N,)."""
        size = per_row(step_size, candidate) if isinstance(step_size, Tensor) else step_size
        return self.project(self.steepest(gradient).mul_(size).add_(candidate))


@dataclass(frozen=True)
class LinfBall(Ball):
    """Every pixel within eps of its value."""

    norm: ClassVar[str] = "linf"
    lower: Tensor = field(default_factory=lambda: torch.empty(0))
    upper: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower", (self.x - self.reach).clamp_min(self.low))
        object.__setattr__(self, "upper", (self.x + self.reach).clamp_max(self.high))

    @property
    def reach(self) -> Tensor:
        """How far the bounds lie from x, (N, 1, 1, 1), before they are cut to the box.

        Short of eps by the rounding error, so what is clamped to them is in the ball exactly.
        """
        return per_row((self.eps - self._rounding).clamp_min(0), self.x)

    def project(self, candidate: Tensor) -> Tensor:
        """Clamp to the bounds: the nearest point of the ball and the box in every norm."""
        return torch.clamp(candidate, self.lower, self.upper)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign of the gradient; it overwrites `gradient`."""
        return gradient.sign_()

    def random(self, stream: Stream) -> Tensor:
        """Uniform on [-eps, eps] in every pixel."""
        offset = stream.uniform(self.x.shape[1:]).mul_(2).sub_(1)
        return self.project(self.x + offset * per_row(self.eps, self.x))


@dataclass(frozen=True)
class L2Ball(Ball):
    """Images whose Euclidean distance is at most eps."""

    norm: ClassVar[str] = "l2"

    def project(self, candidate: Tensor) -> Tensor:
        """Shrink towards x, then clamp to the box, which x is in, so the distance does not grow.

        Not the nearest point of the intersection, but in it; what is in it already comes back as it is.
        """
        delta = candidate.double() - self.x.double()
        length = delta.flatten(1).square().sum(1).sqrt()
        # Short of eps by what rounding can add: to the factor, and, all components alike, to the sum.
        slack = self._rounding * self.x[0].numel() ** 0.5 if len(self.x) else 0.0
        reach = (self.eps.double() * (1 - 1e-6) - slack).clamp_min(0)
        factor = (reach / length.clamp_min(1e-300)).clamp_max(1.0)
        moved = delta.mul_(per_row(factor, delta)).add_(self.x).to(candidate.dtype)
        outside = per_row(length > self.eps.double(), delta)
        return torch.where(outside, moved, candidate).clamp_(self.low, self.high)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient divided by its length; zero stays zero. It overwrites `gradient`."""
        length = gradient.flatten(1).double().square().sum(1).sqrt()
        factor = torch.where(length > 0, 1.0 / length.clamp_min(1e-300), 0.0)
        return gradient.copy_(gradient.double() * per_row(factor, gradient))

    def random(self, stream: Stream) -> Tensor:
        """A Gaussian direction, with a radius of eps u^(1/d): uniform in volume."""
        shape = self.x.shape[1:]
        radius = stream.child("radius").uniform((1,))[:, 0].double() ** (1.0 / max(1, shape.numel()))
        direction = stream.normal(shape)
        length = direction.flatten(1).double().square().sum(1).sqrt()
        factor = (self.eps.double() * radius / length.clamp_min(1e-30)).float()
        return self.project(self.x + direction * per_row(factor, direction))


@dataclass(frozen=True)
class L1Ball(Ball):
    """Images whose pixels differ by at most eps in sum."""

    norm: ClassVar[str] = "l1"

    def project(self, candidate: Tensor) -> Tensor:
        """The nearest point of the ball and the box in l2 (Croce and Hein 2021, arXiv:2103.01208, proposition 2.2).

        Every pixel's change is shortened by one amount, not below 0 nor beyond the box: the amount is found exactly,
        from the sorted changes at which a pixel begins or ceases to move.
        """
        x = self.x.double().flatten(1)
        delta = candidate.double().flatten(1) - x
        room = torch.where(delta > 0, self.high - x, x - self.low)
        size = delta.abs()
        kept = torch.minimum(size, room)
        over = (kept.sum(1) > self.eps.double()).nonzero()[:, 0]
        if not len(over):
            return candidate.clamp(self.low, self.high)
        size, room = size[over], room[over]
        # Short of eps by what rounding the changed pixels can add to the sum.
        reach = (self.eps[over].double() * (1 - 1e-6) - self._rounding * (kept[over] > 0).sum(1)).clamp_min(0)
        begins = torch.cat([size, size - room], 1)
        order = begins.argsort(dim=1, descending=True, stable=True)  # of equals, those that begin come first
        begins = begins.gather(1, order)
        moving = torch.where(order < size.shape[1], 1.0, -1.0).double()
        count = moving.cumsum(1)
        total = (moving * begins).cumsum(1)
        # The sum of changes where they are shortened by each of the sorted amounts: it grows from first to last.
        place = (torch.searchsorted((total - count * begins).contiguous(), reach.unsqueeze(1)) - 1).clamp_min(0)
        shorter = (total.gather(1, place) - reach.unsqueeze(1)) / count.gather(1, place).clamp_min(1)
        change = torch.minimum((size - shorter.clamp_min(0)).clamp_min(0), room)
        moved = (
            self.x[over].double() + change.reshape(self.x[over].shape) * delta[over].reshape(self.x[over].shape).sign()
        )
        landed = candidate.clamp(self.low, self.high)
        landed[over] = torch.where(change.reshape(moved.shape) > 0, moved.to(candidate.dtype), self.x[over])
        return landed.clamp_(self.low, self.high)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign of the largest component, the others zero; it overwrites `gradient`."""
        return _largest_only(gradient)

    def random(self, stream: Stream) -> Tensor:
        """Uniform in volume: exponential sizes over the sum of one more than there are pixels, with random signs."""
        shape = self.x.shape[1:]
        uniform = stream.uniform((shape.numel() + 1,)).double()
        size = -torch.log1p(-uniform)
        size = size[:, :-1] / size.sum(1, keepdim=True).clamp_min(1e-300)
        sign = (stream.child("signs").uniform(shape) < 0.5).flatten(1).double() * 2 - 1
        delta = (size * sign * self.eps.double().unsqueeze(1)).reshape(self.x.shape)
        return self.project((self.x.double() + delta).to(self.x.dtype))

    def ascend(self, candidate: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """A step along the largest components, each as far as the box lets it, `step_size` long in all.

        No pixel takes more than the hundredth part of the number of pixels would, so that a short step moves at
        least 1 % of them (Tramer and Boneh 2019, arXiv:1904.13000); a step of eps or more goes to the vertex.
        """
        flat, slope = candidate.flatten(1).double(), gradient.flatten(1)
        size = torch.as_tensor(step_size, device=candidate.device).double().expand(len(candidate)).unsqueeze(1)
        spread = torch.where(size >= self.eps.double().unsqueeze(1), 1, max(1, flat.shape[1] // 100))
        room = torch.where(slope > 0, self.high - flat, flat - self.low).clamp_min(0) * (slope != 0)
        weight = torch.where(room > 0, slope.abs(), 0)
        order = weight.argsort(dim=1, descending=True, stable=True)
        most = torch.minimum(room, size / spread).gather(1, order)
        before = most.cumsum(1) - most
        taken = torch.minimum(most, (size - before).clamp_min(0))
        moved = flat.scatter_add(1, order, taken * slope.sign().gather(1, order))
        return self.project(moved.reshape(candidate.shape).to(candidate.dtype))


@dataclass(frozen=True)
class L0Ball(Ball):
    """Images of which at most eps numbers differ (channels count apart), by any amount the box allows."""

    norm: ClassVar[str] = "l0"

    def project(self, candidate: Tensor) -> Tensor:
        """The nearest point in l2: clamped to the box, with the changes of most use to nearness kept."""
        landed = candidate.clamp(self.low, self.high)
        over = (self.distance(landed) > self.eps.double()).nonzero()[:, 0]
        if not len(over):
            return landed
        wanted, got, x = (image[over].double().flatten(1) for image in (candidate, landed, self.x))
        # What is left over where the change is undone, and where it is kept. What is no change is worth nothing.
        gain = torch.where(got != x, (wanted - x).square() - (wanted - got).square(), -1)
        landed[over] = torch.where(_first(gain, self.eps[over]), got, x).reshape(landed[over].shape).to(landed.dtype)
        return landed

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign of the largest component, the others zero; it overwrites `gradient`."""
        return _largest_only(gradient)

    def random(self, stream: Stream) -> Tensor:
        """eps numbers picked at random, each uniform on the box."""
        shape = self.x.shape[1:]
        picked = _first(stream.child("picked").uniform(shape).flatten(1), self.eps).reshape(self.x.shape)
        colour = stream.uniform(shape) * (self.high - self.low) + self.low
        return self.project(torch.where(picked, colour, self.x))

    def scaled(self, direction: Tensor) -> Tensor:
        """The eps numbers from which a linear function would gain most, at the end of the box that it points at."""
        return self.ascend(self.x, direction, self.eps)

    def ascend(self, candidate: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """The `step_size` numbers (rounded up) of most gain put to the end of the box, then the least useful undone.

        What is gained or lost is counted along the gradient. From x, a step of eps is the best that there is for a
        linear function.
        """
        count = torch.as_tensor(step_size, device=candidate.device).double().expand(len(candidate)).ceil()
        x, now, slope = (image.flatten(1).double() for image in (self.x, candidate, gradient))
        ends = torch.where(slope > 0, self.high, self.low)
        gain = slope * (ends - now)
        moved = torch.where(_first(gain, count) & (gain > 0), ends, now)
        worth = torch.where(moved != x, slope * (moved - x), -torch.inf)
        kept = torch.where(_first(worth, self.eps), moved, x).to(candidate.dtype)
        return kept.reshape(candidate.shape)


def _largest_only(gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    place = flat.abs().argmax(1, keepdim=True)
    sign = flat.gather(1, place).sign()
    return gradient.zero_().flatten(1).scatter_(1, place, sign).reshape(gradient.shape)


def _first(weight: Tensor, count: Tensor) -> Tensor:
    """Which are among the `count` (N,) largest of each row, ties to the first, (N, D) bool."""
    order = weight.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(weight.shape[1], device=order.device).expand_as(order)
    )
    return rank < count.double().floor().unsqueeze(1)


BALLS: dict[str, type[Ball]] = {ball.norm: ball for ball in (LinfBall, L2Ball, L1Ball, L0Ball)}


@dataclass(frozen=True)
class Threat:
    """A norm and how far it may go; `eps` in units of a pixel on [low, high].

    Raises UserError for an unknown norm, and for an eps that is negative, no number, or larger than the box.

    >>> Threat("linf", 8 / 255).around(torch.full((1, 1, 2, 2), 0.5)).random(Stream(torch.tensor([3]))).shape
    torch.Size([1, 1, 2, 2])
    """

    norm: str = "linf"
    eps: float = 8 / 255
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in BALLS:
            raise unknown_name("norm", self.norm, BALLS)
        object.__setattr__(self, "eps", parse_number("eps", self.eps))
        if self.eps < 0:
            raise UserError(f"eps must be >= 0, got {self.eps:g}")
        if self.norm == "l0" and self.eps != int(self.eps):
            raise UserError(f"eps must be a whole number for l0, which counts changed pixels, got {self.eps:g}")
        if self.norm == "linf" and self.eps > self.high - self.low:
            raise UserError(
                f"eps must be at most {self.high - self.low:g}, the width of the box of pixels, for linf, "
                f"got {self.eps:g}; eps counts in pixels of [0, 1], so 8 of 255 is written 8/255"
            )

    def widest(self, shape: tuple[int, ...]) -> float:
        """How far apart two images of this shape (C, H, W) can be: the diameter of the box in the norm."""
        width, count = self.high - self.low, torch.Size(shape).numel()
        widest: dict[str, float] = {"linf": width, "l2": width * count**0.5, "l1": width * count, "l0": count}
        return widest[self.norm]

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise UserError where eps is larger than the box of images of this shape is wide."""
        widest = self.widest(shape)
        if self.eps > widest:
            raise UserError(f"eps must be at most {widest:.4g}, the diameter of the box of pixels, got {self.eps:g}")

    def each(self, count: int) -> Tensor:
        """eps for `count` samples, (count,) float32, rounded down: the ball is never larger than asked."""
        eps = torch.full((count,), self.eps)
        return torch.where(eps.double() > self.eps, torch.nextafter(eps, torch.zeros_like(eps)), eps)

    def around(self, x: Tensor, eps: Tensor | None = None) -> Ball:
        """The balls around images (N, ...), of one eps for all or one each (N,)."""
        each = self.each(len(x)) if eps is None else eps
        return BALLS[self.norm](x, each.to(x.device, torch.float32), self.low, self.high)

    def with_eps(self, eps: float) -> Threat:
        """The same threat at another eps."""
        return dataclasses.replace(self, eps=eps)
