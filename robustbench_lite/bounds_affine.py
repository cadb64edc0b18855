"""Linear layers as bounds need them: of intervals, of linear functions traced back, and of rounding errors.

An operation takes what came out of others and has one result. `interval` bounds it, `back` writes linear functions of
it as linear functions of what it takes, `error` bounds how far float32 may be from exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .bounds_ball import Interval

UNIT = 2.0**-24  # half the distance from 1 to the next float32


def rounding(count: int) -> float:
    """The relative error of a sum of `count` rounded products, in any order (Higham 2002, section 3.1)."""
    return count * UNIT / (1 - count * UNIT)


class Operation(Protocol):
    """One layer."""

    def interval(self, *given: Interval) -> Interval:
        """Bounds of the result, (N, ...), from those of what it takes."""

    def back(self, ways: Tensor, *given: Interval) -> tuple[list[Tensor], Tensor | float]:
        """For linear functions `ways` (N, S, ...) of the result: of what it takes, and a constant (N, S) or a number.

        In sum they are nowhere larger than the functions they come from, within the bounds `given`.
        """

    def error(self, *given: tuple[Tensor, Tensor]) -> Tensor:
        """A bound of the float32 result's error, (N, ...), from pairs of error and largest absolute value."""


class Affine:
    """An operation without a bend: what `back` gives is equal to what it is given."""


@dataclass(frozen=True)
class Dense(Affine):
    """`weight z + bias` over the last axis."""

    weight: Tensor
    bias: Tensor | None = None

    def interval(self, *given: Interval) -> Interval:
        """Of middle and radius."""
        (z,) = given
        middle = F.linear((z.lower + z.upper) / 2, self.weight, self.bias)
        reach = F.linear((z.upper - z.lower) / 2, self.weight.abs())
        return Interval(middle - reach, middle + reach)

    def back(self, ways: Tensor, *given: Interval) -> tuple[list[Tensor], Tensor | float]:
        """`ways W`."""
        del given
        constant: Tensor | float = 0.0
        if self.bias is not None:
            constant = (ways @ self.bias).reshape(*ways.shape[:2], -1).sum(2)
        return [ways @ self.weight], constant

    def error(self, *given: tuple[Tensor, Tensor]) -> Tensor:
        """That of the sums, and what comes in, enlarged."""
        ((error, size),) = given
        weight = self.weight.abs()
        bias = None if self.bias is None else self.bias.abs()
        most = F.linear(size + error, weight, bias)
        return F.linear(error, weight) + rounding(self.weight.shape[1] + 2) * most


@dataclass(frozen=True)
class Convolution(Affine):
    """A convolution of images with zeros around them."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    shape: tuple[int, ...]  # of what it takes, (C, H, W)

    def _apply(self, z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(z, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def interval(self, *given: Interval) -> Interval:
        """Of middle and radius."""
        (z,) = given
        middle = self._apply((z.lower + z.upper) / 2, self.weight, self.bias)
        reach = self._apply((z.upper - z.lower) / 2, self.weight.abs(), None)
        return Interval(middle - reach, middle + reach)

    def back(self, ways: Tensor, *given: Interval) -> tuple[list[Tensor], Tensor | float]:
        """The transposed convolution."""
        del given
        n, count = ways.shape[:2]
        size = [
            (out - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1
            for out, stride, pad, dilation, kernel in zip(
                ways.shape[3:], self.stride, self.padding, self.dilation, self.weight.shape[2:], strict=True
            )
        ]
        short = (self.shape[1] - size[0], self.shape[2] - size[1])
        traced = F.conv_transpose2d(
            ways.flatten(0, 1), self.weight, None, self.stride, self.padding, short, self.groups, self.dilation
        )
        constant: Tensor | float = 0.0
        if self.bias is not None:
            constant = ways.sum((3, 4)) @ self.bias
        return [traced.reshape(n, count, *self.shape)], constant

    def error(self, *given: tuple[Tensor, Tensor]) -> Tensor:
        """That of the sums, and what comes in, enlarged."""
        ((error, size),) = given
        weight = self.weight.abs()
        most = self._apply(size + error, weight, None if self.bias is None else self.bias.abs())
        return self._apply(error, weight, None) + rounding(self.weight[0].numel() + 2) * most


@dataclass(frozen=True)
class Scale(Affine):
    """`scale z + shift`, number by number; each of a shape that broadcasts over that of one result.

    terms: the largest absolute value of what is added on the way, for the rounding (a normalisation subtracts first).
    """

    scale: Tensor
    shift: Tensor
    terms: Tensor

    def interval(self, *given: Interval) -> Interval:
        """Ends change places where the scale is negative."""
        (z,) = given
        one, other = self.scale * z.lower + self.shift, self.scale * z.upper + self.shift
        return Interval(torch.minimum(one, other), torch.maximum(one, other))

    def back(self, ways: Tensor, *given: Interval) -> tuple[list[Tensor], Tensor | float]:
        """Scaled."""
        del given
        return [ways * self.scale], (ways * self.shift).flatten(2).sum(2)

    def error(self, *given: tuple[Tensor, Tensor]) -> Tensor:
        """Of a handful of operations."""
        ((error, size),) = given
        return self.scale.abs() * error + rounding(8) * (self.scale.abs() * (size + error) + self.terms)


@dataclass(frozen=True)
class Arranged(Affine):
    """A linear function without negative weights: another shape, a part, a mean, zeros around, one image repeated.

    terms: how many numbers are added to one at most; 0 where none is computed.
    """

    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    terms: int = 0

    def interval(self, *given: Interval) -> Interval:
        """Ends stay ends."""
        (z,) = given
        return Interval(self.function(z.lower), self.function(z.upper))

    def back(self, ways: Tensor, *given: Interval) -> tuple[list[Tensor], Tensor | float]:
        """The adjoint, by differentiation."""
        del given
        n, count = ways.shape[:2]
        flat = ways.flatten(0, 1)
        with torch.enable_grad():
            at = torch.zeros((n * count, *self.shape), dtype=ways.dtype, device=ways.device, requires_grad=True)
            out = self.function(at)
        (traced,) = torch.autograd.grad(out, at, flat, create_graph=ways.requires_grad)
        return [traced.reshape(n, count, *self.shape)], 0.0

    def error(self, *given: tuple[Tensor, Tensor]) -> Tensor:
        """Arranged alike."""
        ((error, size),) = given
        moved: Tensor = self.function(error)
        return moved + rounding(self.terms + 1) * self.function(size + error) if self.terms else moved


@dataclass(frozen=True)
class Sum(Affine):
    """Two results added, or the second taken from the first; both of one shape."""

    sign: int = 1

    def interval(self, *given: Interval) -> Interval:
        """Of the parts."""
        a, b = given
        if self.sign < 0:
            b = Interval(-b.upper, -b.lower)
        return Interval(a.lower + b.lower, a.upper + b.upper)

    def back(self, ways: Tensor, *given: Interval) -> tuple[list[Tensor], Tensor | float]:
        """To both."""
        del given
        return [ways, self.sign * ways], 0.0

    def error(self, *given: tuple[Tensor, Tensor]) -> Tensor:
        """Of both, and of one addition."""
        (one, size), (other, more) = given
        return one + other + UNIT * (size + more + one + other)


@dataclass(frozen=True)
class Joined(Affine):
    """Results one behind another along an axis, counted without that of the images."""

    axis: int
    sizes: tuple[int, ...]

    def interval(self, *given: Interval) -> Interval:
        """Joined alike."""
        return Interval(*(torch.cat([getattr(z, end) for z in given], self.axis + 1) for end in ("lower", "upper")))

    def back(self, ways: Tensor, *given: Interval) -> tuple[list[Tensor], Tensor | float]:
        """To each its part."""
        del given
        return list(torch.split(ways, list(self.sizes), self.axis + 2)), 0.0

    def error(self, *given: tuple[Tensor, Tensor]) -> Tensor:
        """Joined alike."""
        return torch.cat([error for error, _ in given], self.axis + 1)


def pair(value: Any) -> tuple[int, int]:
    """A number for both sides of an image, or one for each."""
    return (int(value[0]), int(value[-1])) if isinstance(value, (tuple, list)) else (int(value), int(value))
