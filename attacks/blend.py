"""What photographs suffer: less contrast, blur, other colours; by the smallest amount that fools the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.filters import smoothed
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class AmountState(State):
    """`candidate`: the image of the smallest amount that fooled, else of the last tried.

    low, high: (N,) float64, amounts between which the change of mind lies: at `low` it was not fooled, at `high` it
    was; `high` is inf until one fooled.
    """

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Amount(Attack):
    """Base of attacks with one amount in [0, 1]: the smallest that fools, by a line and then by halving.

    steps: amounts 1/steps, 2/steps, ... 1 tried in turn, >= 1. bisections: halvings between the first that
    fooled and the one before it, >= 0.
    """

    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf", "l1")
    targeted: ClassVar[bool] = False
    minimal: ClassVar[bool] = True

    steps: int = 100
    bisections: int = 10

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if self.bisections < 0:
            raise UserError(f"bisections must be >= 0, got {self.bisections}")

    @property
    def length(self) -> int:
        """One amount a step."""
        return self.steps + self.bisections

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A query a step."""
        return self.length, 0

    def changed(self, x: Tensor, amount: Tensor) -> Tensor:
        """The images (N, C, H, W) by these amounts (N,) float64 in [0, 1], where 0 changes nothing."""
        raise NotImplementedError

    def start(self, query: Query, batch: Batch) -> AmountState:
        """The image itself."""
        zero = batch.ball.eps.double() * 0
        return AmountState(batch.ball.x.clone(), zero, torch.full_like(zero, torch.inf))

    def step(self, query: Query, batch: Batch, state: AmountState) -> AmountState:  # type: ignore[override]
        """The next amount along the line, or the middle of what is left."""
        walking = state.high == torch.inf
        amount = torch.where(walking, state.low + 1 / self.steps, (state.low + state.high) / 2).clamp_max(1)
        tried = batch.ball.project(self.changed(batch.ball.x, amount))
        labels = query.labels(tried)
        fooled = labels != batch.y
        return AmountState(
            torch.where(per_row(walking | fooled, tried), tried, state.candidate),
            torch.where(fooled, state.low, amount),
            torch.where(fooled, amount, state.high),
        )

    def finished(self, batch: Batch, state: State) -> Tensor:
        """Those halved often enough, and those that the whole amount did not fool."""
        assert isinstance(state, AmountState)
        width = (state.high - state.low) * self.steps * 2.0**self.bisections
        return (width < 1.5) | ((state.high == torch.inf) & (state.low > 1 - 0.5 / self.steps))


@dataclass(frozen=True)
class Contrast(Amount):
    """The least loss of contrast that fools: pixels drawn towards mid grey (after Rauber et al. 2020, foolbox).

    An amount of a shows (1 - a) x + a level. steps, bisections: see Amount. level: the grey, in [0, 1].

    >>> Contrast(level=0.0).level
    0.0
    """

    name: ClassVar[str] = "contrast"
    summary: ClassVar[str] = "least reduction of contrast towards grey that fools"
    source: ClassVar[str] = "Rauber et al. 2020, doi:10.21105/joss.02607"

    level: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.level <= 1:
            raise UserError(f"level must be in [0, 1], got {self.level:g}")

    def changed(self, x: Tensor, amount: Tensor) -> Tensor:
        """Drawn towards the grey."""
        share = per_row(amount, x)
        return ((1 - share) * x.double() + share * self.level).to(x.dtype)


@dataclass(frozen=True)
class Blur(Amount):
    """The least Gaussian blur that fools (after Rauber et al. 2020, foolbox).

    An amount of a has a standard deviation of a `largest` of the longer side. largest: in (0, 10]. steps,
    bisections: see Amount.
    The image is mirrored at its edges.
    """

    name: ClassVar[str] = "blur"
    summary: ClassVar[str] = "least Gaussian blur that fools"
    source: ClassVar[str] = "Rauber et al. 2020, doi:10.21105/joss.02607"

    largest: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.largest <= 10:
            raise UserError(f"largest must be in (0, 10], a share of the longer side, got {self.largest:g}")

    def changed(self, x: Tensor, amount: Tensor) -> Tensor:
        """Blurred."""
        return smoothed(x, amount * self.largest * max(x.shape[-2:]))


@dataclass(frozen=True)
class ColourState(State):
    """`done`: (N,) bool, whether a shift has fooled."""

    done: Tensor


@dataclass(frozen=True)
class Colour(Attack):
    """Hue and saturation shifted at random, brightness kept (Hosseini and Poovendran 2018, arXiv:1804.00499).

    steps: random shifts tried, >= 1: the hue by any angle, the saturation by up to the number of the try over
    `steps`, in both directions; the first that fools ends it, so that saturation is moved little. Images need three
    channels, red, green and blue; UserError for others.

    >>> Colour(steps=10).length
    10
    """

    name: ClassVar[str] = "colour"
    summary: ClassVar[str] = "hue and saturation shifted at random"
    source: ClassVar[str] = "Hosseini and Poovendran 2018, arXiv:1804.00499"
    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    targeted: ClassVar[bool] = False
    own_limits: ClassVar[bool] = True

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")

    @property
    def length(self) -> int:
        """The tries."""
        return self.steps

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A query a shift."""
        return self.steps, 0

    def start(self, query: Query, batch: Batch) -> ColourState:
        """The image itself."""
        x = batch.ball.x
        if x.shape[1] != 3:
            raise UserError(f"attack colour: expected images of 3 channels, red, green and blue, got {x.shape[1]}")
        return ColourState(x.clone(), torch.zeros_like(batch.y, dtype=torch.bool))

    def step(self, query: Query, batch: Batch, state: ColourState) -> ColourState:  # type: ignore[override]
        """The next shift."""
        x = batch.ball.x
        drawn = batch.stream.child("shift").uniform((2,), draw=batch.step).double()
        hue, saturation, value = to_hsv(x.double())
        hue = (hue + drawn[:, :1, None]) % 1
        most = batch.step.double() / self.steps
        saturation = (saturation + ((2 * drawn[:, 1] - 1) * most)[:, None, None]).clamp(0, 1)
        tried = batch.ball.project(from_hsv(hue, saturation, value).to(x.dtype))
        labels = query.labels(tried)
        fooled = labels != batch.y
        return ColourState(torch.where(per_row(state.done, x), state.candidate, tried), state.done | fooled)

    def finished(self, batch: Batch, state: State) -> Tensor:
        """Those that are fooled."""
        assert isinstance(state, ColourState)
        return state.done


def to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in [0, 1), saturation and value in [0, 1], (N, H, W) each, of red, green and blue (N, 3, H, W)."""
    value, low = x.amax(1), x.amin(1)
    spread = value - low
    red, green, blue = x.unbind(1)
    width = spread.clamp_min(1e-12)
    hue = torch.where(
        value == red,
        ((green - blue) / width) % 6,
        torch.where(value == green, (blue - red) / width + 2, (red - green) / width + 4),
    )
    return torch.where(spread > 0, hue / 6, 0) % 1, spread / value.clamp_min(1e-12), value


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Red, green and blue (N, 3, H, W); the reverse of `to_hsv`."""
    channels = []
    for offset in (5, 3, 1):
        k = (offset + hue * 6) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)
