"""What attacks that see scores share: options and their checks, the loss of many images, slopes from differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat

_AT_ONCE = 2048  # images of one call, about
_MEAN, _SQUARE = 0.9, 0.999  # how much of the past Adam's two averages keep


def at_least(attack: Attack, **least: int) -> None:
    """Raise UserError where one of these hyperparameters is below its least value; None passes."""
    for name, value in ((name, getattr(attack, name)) for name in least):
        if value is not None and value < least[name]:
            raise UserError(f"{name} must be >= {least[name]}, got {value}")


def above_zero(attack: Attack, *names: str) -> None:
    """Raise UserError where one of these hyperparameters is no number above 0; None passes."""
    for name, value in ((name, getattr(attack, name)) for name in names):
        if value is not None and not value > 0:
            raise UserError(f"{name} must be > 0, got {value:g}")


def fraction(attack: Attack, name: str) -> None:
    """Raise UserError where this hyperparameter is not in (0, 1]."""
    value = getattr(attack, name)
    if not 0 < value <= 1:
        raise UserError(f"{name} must be in (0, 1], got {value:g}")


def scores(query: Query, batch: Batch, images: Tensor, *, loss: str, rows: Tensor | None = None) -> Tensor:
    """The loss of images (M, C, H, W) of the samples `rows` (M,), or one of each sample in order, (M,)."""
    logits, y, targets = query.logits(images, rows=rows), batch.y, batch.targets
    if rows is not None:
        y, targets = y[rows], None if targets is None else targets[rows]
    return get_loss(loss)(logits, y, targets)


def scores_of_each(
    query: Query, batch: Batch, image: Callable[[Tensor, Tensor], Tensor], *, each: int, loss: str
) -> Tensor:
    """The loss of `each` images a sample, (N, each); `image(rows, numbers)` makes those of these numbers (M,)."""
    found = []
    for part in torch.split(torch.arange(len(batch.y) * each, device=batch.y.device), _AT_ONCE):
        rows = part // each
        found.append(scores(query, batch, image(rows, part % each), loss=loss, rows=rows))
    return torch.cat(found).reshape(len(batch.y), each)


def adam(
    mean: Tensor, square: Tensor, slope: Tensor, *, count: Tensor, rate: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's averages of the slope and of its square with one more, the `count`-th, and the way it goes uphill."""
    mean = _MEAN * mean + (1 - _MEAN) * slope
    square = _SQUARE * square + (1 - _SQUARE) * slope.square()
    times = count.double()
    rate = rate * torch.sqrt(1 - _SQUARE**times) / (1 - _MEAN**times)
    return mean, square, mean / (square.sqrt() + 1e-8) * rate.to(mean.dtype)


@dataclass(frozen=True)
class ScoreSearch(Attack):
    """A search for a larger loss, with other random numbers again until it succeeds.

    steps: >= 1. restarts: >= 1. loss: ce, margin or dlr.
    """

    access: ClassVar[Access] = "score"

    steps: int = 100
    restarts: int = 1
    loss: str = "ce"

    def __post_init__(self) -> None:
        get_loss(self.loss)
        at_least(self, steps=1, restarts=1)

    @property
    def length(self) -> int:
        """What is asked of one population, estimate or direction is a step."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts


@dataclass(frozen=True)
class EstimatedAscent(ScoreSearch):
    """Ascent along a gradient that is estimated from scores at pairs of points.

    samples: queries of an estimate, two for each pair, even, >= 2; one more a step asks about the image itself.
    step_size: > 0, or None for the member's own default. random_start: start from a uniform point of the ball, else
    from the image.
    """

    samples: int = 50
    step_size: float | None = None
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 or self.samples % 2:
            raise UserError(f"samples must be even and >= 2, got {self.samples}")
        above_zero(self, "step_size")

    def calls(self, threat: Threat) -> tuple[int, int]:
        """The samples of each estimate, and the point itself."""
        return self.steps * (self.samples + 1) * self.restarts, 0

    def begin(self, batch: Batch) -> Tensor:
        """The image or a random point of the ball."""
        return batch.ball.random(batch.stream.child("start")) if self.random_start else batch.origin.clone()

    def estimate(
        self, query: Query, batch: Batch, x: Tensor, *, direction: Callable[[Tensor], Tensor], reach: float
    ) -> tuple[Tensor, Tensor]:
        """The mean over pairs of u (f(x + reach u) - f(x - reach u)) / (2 reach), and the mean of the loss f, (N,).

        `direction(draw)`: u (N, C, H, W), for a number (N,) that no other pair of the sample's has. Images are clamped
        to the box. The sum is taken in one order in float64, so that it does not hang on how many images are asked
        about at once. x is asked about as well: what lies around it is mostly outside the ball, where nothing counts.
        """
        count, ball, pairs = len(x), batch.ball, self.samples // 2
        query.labels(x)
        slope, total = torch.zeros_like(x, dtype=torch.float64), x.new_zeros(count, dtype=torch.float64)
        several = max(1, _AT_ONCE // (2 * max(1, count)))
        for first in range(0, pairs, several):
            ways = [direction(batch.step * pairs + i) for i in range(first, min(first + several, pairs))]
            images = torch.cat([torch.add(x, way, alpha=sign * reach) for way in ways for sign in (1, -1)])
            rows = torch.arange(count, device=x.device).repeat(2 * len(ways))
            found = scores(query, batch, images.clamp_(ball.low, ball.high), loss=self.loss, rows=rows)
            for way, (above, below) in zip(ways, found.reshape(-1, 2, count).double(), strict=True):
                slope += way * per_row(above - below, way)
                total += above + below
        return (slope / (2 * reach * pairs)).to(x.dtype), (total / (2 * pairs)).to(x.dtype)
