"""Natural evolution strategies: a gradient estimated from scores along random directions, then projected steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Threat

_AT_ONCE = 2048  # images of one call, about


@dataclass(frozen=True)
class NESState(State):
    """velocity: (N, C, H, W), the averaged estimate; rate: (N,) step size as a share of the first.

    recent: (N, patience) losses since the rate was last changed, the oldest first; known: (N,) int64, how many.
    """

    velocity: Tensor
    rate: Tensor
    recent: Tensor
    known: Tensor


@dataclass(frozen=True)
class NES(Attack):
    """Projected ascent along a gradient estimated by antithetic Gaussian sampling (Ilyas et al. 2018,
    arXiv:1804.08598, algorithm 1 and section 3.1).

    steps: estimates, >= 1. samples: queries of an estimate, even, >= 2. sigma: standard deviation of the search in
    pixels of [0, 1], > 0. step_size: of the first steps, in the threat's norm; default eps / 5, which is the paper's
    0.01 at its eps of 0.05. momentum: share of the old estimate in the average, in [0, 1). patience: where the loss
    has not grown over so many steps the step size is halved, down to 1/200 of the first, >= 2. restarts: random
    starts tried until one succeeds. random_start: start from a uniform point of the ball, else from the image.
    loss: ce, margin or dlr.
    Departures: 200 steps (10,000 queries) where the paper goes on to a million; images asked about are clamped to
    the box; in other norms than linf a step of steepest ascent stands for the sign.
    """

    name: ClassVar[str] = "nes"
    summary: ClassVar[str] = "gradient estimated from scores along Gaussian directions"
    source: ClassVar[str] = "Ilyas et al. 2018, arXiv:1804.08598"
    access: ClassVar[Access] = "score"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")

    steps: int = 200
    samples: int = 50
    sigma: float = 0.001
    step_size: float | None = None
    momentum: float = 0.9
    patience: int = 5
    restarts: int = 1
    random_start: bool = False
    loss: str = "ce"

    def __post_init__(self) -> None:
        get_loss(self.loss)
        for name, least in (("steps", 1), ("restarts", 1), ("patience", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if self.samples < 2 or self.samples % 2:
            raise UserError(f"samples must be even and >= 2, got {self.samples}")
        if not self.sigma > 0:
            raise UserError(f"sigma must be > 0, got {self.sigma:g}")
        if self.step_size is not None and not self.step_size > 0:
            raise UserError(f"step_size must be > 0, got {self.step_size:g}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum:g}")

    @property
    def length(self) -> int:
        """One estimate a step."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts

    def calls(self, threat: Threat) -> tuple[int, int]:
        """The samples of each estimate, and the point itself."""
        return self.steps * (self.samples + 1) * self.restarts, 0

    def resolve(self, threat: Threat) -> Self:
        """With a fifth of eps as step size where none is given."""
        if self.step_size is not None or not threat.eps:
            return self
        return replace(self, step_size=threat.eps / 5)

    def start(self, query: Query, batch: Batch) -> NESState:
        """The image or a random point of the ball, at rest."""
        x = batch.ball.random(batch.stream.child("start")) if self.random_start else batch.origin.clone()
        recent = batch.ball.eps.new_zeros((len(x), self.patience))
        return NESState(x, torch.zeros_like(x), torch.ones_like(batch.ball.eps), recent, torch.zeros_like(batch.step))

    def step(self, query: Query, batch: Batch, state: NESState) -> NESState:  # type: ignore[override]
        """An estimate, a step along it, and a look at whether the loss still grows."""
        x, stream = state.candidate, batch.stream.child("directions")
        pairs = self.samples // 2

        def direction(i: int) -> Tensor:
            return stream.normal(x.shape[1:], draw=batch.step * pairs + i)

        slope, loss = estimated(query, batch, x, direction, pairs=pairs, reach=self.sigma, loss=self.loss)
        velocity = self.momentum * state.velocity + (1 - self.momentum) * slope
        recent = torch.cat([state.recent[:, 1:], loss.unsqueeze(1)], 1)
        known = (state.known + 1).clamp_max(self.patience)
        halved = (known == self.patience) & (recent[:, -1] < recent[:, 0])
        rate = torch.where(halved, (state.rate / 2).clamp_min(1 / 200), state.rate)
        size = batch.ball.eps / 5 if self.step_size is None else self.step_size
        moved = batch.ball.ascend(x, velocity.clone(), rate * size)
        return NESState(moved, velocity, rate, recent, torch.where(halved, 0, known))


def estimated(
    query: Query, batch: Batch, x: Tensor, direction: Callable[[int], Tensor], *, pairs: int, reach: float, loss: str
) -> tuple[Tensor, Tensor]:
    """The mean over `pairs` of u (f(x + reach u) - f(x - reach u)) / (2 reach), and the mean of f, (N,).

    `direction(i)`: the i-th u of each sample, (N, C, H, W). Images are clamped to the box. The sum is taken in one
    order in float64, so that it does not hang on how many images are asked about at once. x is asked about as well:
    what lies around it is mostly outside the ball, where nothing counts.
    """
    count, ball = len(x), batch.ball
    query.labels(x)
    slope, total = torch.zeros_like(x, dtype=torch.float64), x.new_zeros(count, dtype=torch.float64)
    several = max(1, _AT_ONCE // (2 * max(1, count)))
    for first in range(0, pairs, several):
        ways = [direction(i) for i in range(first, min(first + several, pairs))]
        images = torch.cat([torch.add(x, way, alpha=sign * reach) for way in ways for sign in (1, -1)])
        found = scores(query, batch, images.clamp_(ball.low, ball.high), loss).reshape(-1, 2, count).double()
        for way, (above, below) in zip(ways, found, strict=True):
            slope += way * per_row(above - below, way)
            total += above + below
    return (slope / (2 * reach * pairs)).to(x.dtype), (total / (2 * pairs)).to(x.dtype)


def scores(query: Query, batch: Batch, images: Tensor, loss: str) -> Tensor:
    """The loss of images of all samples in order, then of all samples again, and so on, (M,)."""
    rows = torch.arange(len(batch.y), device=images.device).repeat(len(images) // len(batch.y))
    targets = None if batch.targets is None else batch.targets[rows]
    return get_loss(loss)(query.logits(images, rows=rows), batch.y[rows], targets)
