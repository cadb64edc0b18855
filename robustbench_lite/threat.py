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
        # The bounds lie inside by the rounding error, so what is clamped to them is in the ball exactly.
        reach = per_row((self.eps - self._rounding).clamp_min(0), self.x)
        object.__setattr__(self, "lower", (self.x - reach).clamp_min(self.low))
        object.__setattr__(self, "upper", (self.x + reach).clamp_max(self.high))

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


BALLS: dict[str, type[Ball]] = {ball.norm: ball for ball in (LinfBall, L2Ball)}


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
