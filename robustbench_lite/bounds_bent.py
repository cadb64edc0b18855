"""Layers with a bend as bounds need them: activations that grow everywhere, and the maximum, between two lines each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .bounds_affine import UNIT
from .bounds_ball import Interval


@dataclass(frozen=True)
class Lines:
    """For every number z, `low_slope z + low` below and `high_slope z + high` above the activation, (N, ...) each."""

    low_slope: Tensor
    low: Tensor
    high_slope: Tensor
    high: Tensor


class Bent:
    """An activation that works number by number and never falls; it is bounded between the two lines of `lines`."""

    def value(self, z: Tensor) -> Tensor:
        """The activation."""
        raise NotImplementedError

    def lines(self, z: Interval) -> Lines:
        """A line below and one above, over the interval."""
        raise NotImplementedError

    def open(self, z: Interval) -> Tensor:
        """Where better bounds of z give better lines, (N, ...) bool."""
        return z.lower < z.upper

    def interval(self, *given: Interval) -> Interval:
        """Ends stay ends."""
        (z,) = given
        return Interval(self.value(z.lower), self.value(z.upper))

    def back(self, ways: Tensor, *given: Interval) -> tuple[list[Tensor], Tensor | float]:
        """By the line below where the function grows with the result, by that above where it falls."""
        (z,) = given
        lines = self.lines(z)
        falls = ways.clamp_max(0)
        grows = ways - falls
        constant = _dot(grows, lines.low) + _dot(falls, lines.high)
        traced = grows * lines.low_slope.unsqueeze(1) + falls * lines.high_slope.unsqueeze(1)
        return [traced], constant

    def error(self, *given: tuple[Tensor, Tensor]) -> Tensor:
        """What comes in, as no slope is above 1, and a few units in the last place of the result."""
        ((error, size),) = given
        return error + 8 * UNIT * (1 + size + error)


def _dot(ways: Tensor, numbers: Tensor) -> Tensor:
    return (ways.flatten(2) @ numbers.flatten(1).unsqueeze(2)).squeeze(2)


@dataclass(frozen=True)
class Rectifier(Bent):
    """max(z, slope z), with slope in [0, 1]; 0 is the ReLU.

    Above, the line through both ends; below, the one of the two pieces that is nearer in area (the adaptive slope of
    CROWN, Zhang et al. 2018, arXiv:1811.00866, section 3.3).
    """

    slope: float = 0.0

    def value(self, z: Tensor) -> Tensor:
        """The activation."""
        return F.relu(z) if self.slope == 0 else F.leaky_relu(z, self.slope)

    def open(self, z: Interval) -> Tensor:
        """Where it is not known on which side of 0 z is."""
        return (z.lower < 0) & (z.upper > 0)

    def lines(self, z: Interval) -> Lines:
        """Both equal to the activation where it is not bent."""
        off, both = z.upper <= 0, self.open(z)
        chord = (z.upper - self.slope * z.lower) / (z.upper - z.lower).clamp_min(torch.finfo(z.lower.dtype).tiny)
        one, flat = torch.ones_like(chord), torch.full_like(chord, self.slope)
        high_slope = torch.where(both, chord, torch.where(off, flat, one))
        low_slope = torch.where(both, torch.where(z.upper >= -z.lower, one, flat), high_slope)
        zero = torch.zeros_like(chord)
        return Lines(low_slope, zero, high_slope, torch.where(both, (self.slope - chord) * z.lower, zero))

    def error(self, *given: tuple[Tensor, Tensor]) -> Tensor:
        """What comes in; the ReLU itself is exact."""
        ((error, size),) = given
        return error if self.slope == 0 else error + UNIT * (size + error)


@dataclass(frozen=True)
class Smooth(Bent):
    """An activation whose slope over an interval is least at one of its ends: tanh, the sigmoid, softplus, ELU.

    Both lines have that least slope, one through the lower end and one through the upper (Singh et al. 2018,
    "Fast and effective robustness certification").
    """

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]

    def value(self, z: Tensor) -> Tensor:
        """The activation."""
        return self.function(z)

    def lines(self, z: Interval) -> Lines:
        """Two of one slope."""
        slope = torch.minimum(self.derivative(z.lower), self.derivative(z.upper))
        # A slope that was rounded up would cross the activation; a smaller one is as sound.
        slope = slope * (1 - 1e-12)
        low, high = (self.function(end) - slope * end for end in (z.lower, z.upper))
        return Lines(slope, low, slope, high)


@dataclass(frozen=True)
class Clipped(Bent):
    """clamp(z, low, high): hardtanh and ReLU6. As it is where it is straight over the interval, else two constants."""

    low: float
    high: float

    def value(self, z: Tensor) -> Tensor:
        """The activation."""
        return z.clamp(self.low, self.high)

    def lines(self, z: Interval) -> Lines:
        """Slope 1 within the limits."""
        within = (z.lower >= self.low) & (z.upper <= self.high)
        slope, zero = within.to(z.lower.dtype), torch.zeros_like(z.lower)
        low, high = (torch.where(within, zero, self.value(end)) for end in (z.lower, z.upper))
        return Lines(slope, low, slope, high)


@dataclass(frozen=True)
class Largest:
    """Max pooling. Below, the number of the largest lower bound; above too where it beats all others, else a constant.

    kernel, stride, padding: of both sides.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def _pool(self, z: Tensor) -> Tensor:
        return F.max_pool2d(z, self.kernel, self.stride, self.padding)

    def interval(self, *given: Interval) -> Interval:
        """Ends stay ends."""
        (z,) = given
        return Interval(self._pool(z.lower), self._pool(z.upper))

    def open(self, z: Interval) -> Tensor:
        """Everywhere."""
        return z.lower < z.upper

    def back(self, ways: Tensor, *given: Interval) -> tuple[list[Tensor], Tensor | float]:
        """To one number of each window."""
        (z,) = given
        low, place = F.max_pool2d(z.lower, self.kernel, self.stride, self.padding, return_indices=True)
        # Of the others the largest upper bound: that of all, without the chosen ones. A number chosen by one window
        # may be among the others of the next, so each window is looked at by itself.
        beaten = low >= self._others(z.upper, place)
        falls = ways.clamp_max(0)
        grows = ways - falls
        kept = grows + falls * beaten.unsqueeze(1)
        constant = _dot(falls, torch.where(beaten, torch.zeros_like(low), self._pool(z.upper)))
        height, width = z.lower.shape[2:]
        traced = ways.new_zeros((*ways.shape[:3], height * width))
        at = place.flatten(2).unsqueeze(1).expand(-1, ways.shape[1], -1, -1)
        traced = traced.scatter_add(3, at, kept.flatten(3))
        return [traced.reshape(*ways.shape[:3], height, width)], constant

    def _others(self, upper: Tensor, place: Tensor) -> Tensor:
        """The largest upper bound of each window but that of the chosen number."""
        width = upper.shape[3]
        most = torch.full(place.shape, -torch.inf, dtype=upper.dtype, device=upper.device)
        around = F.pad(upper, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]), value=-torch.inf)
        rows = torch.arange(place.shape[2], device=upper.device) * self.stride[0]
        columns = torch.arange(place.shape[3], device=upper.device) * self.stride[1]
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                seen = around[:, :, rows + i][:, :, :, columns + j]
                own = (rows + i - self.padding[0])[:, None] * width + (columns + j - self.padding[1])[None, :]
                most = torch.where(place == own, most, most.maximum(seen))
        return most

    def error(self, *given: tuple[Tensor, Tensor]) -> Tensor:
        """The largest of what comes in."""
        return self._pool(given[0][0])
