"""Square: random search with squares of one colour at random places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row

# Of 10,000 queries: where the share of changed pixels is halved.
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class SquareState(State):
    """`loss`: (N,), at the candidate, which is the best image so far."""

    loss: Tensor


@dataclass(frozen=True)
class Square(Attack):
    """Random search over images at the corners of the ball (Andriushchenko et al. 2020, arXiv:1912.00049).

    steps: queries after the first, one a step, >= 1. share: of the pixels in the first squares, in (0, 1]; it is
    halved after 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80 % of the steps (algorithm 1 and the schedule of section 4).
    restarts: runs with other random numbers. loss: `margin`, the paper's for any wrong class, or `ce`, which it
    takes with a class aimed at; default the paper's. The first image has vertical stripes, one sign a column and
    channel; a step repaints one square, one sign a channel, and is kept where the loss grows.
    Departures: each sample has a square of its own, where the authors' code draws one for a whole batch, so that
    its verdict hangs on the batch; the schedule is scaled to the steps whatever their number; linf only.
    """

    name: ClassVar[str] = "square"
    summary: ClassVar[str] = "random search with squares, no gradient"
    source: ClassVar[str] = "Andriushchenko et al. 2020, arXiv:1912.00049"
    access: ClassVar[Access] = "score"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    steps: int = 5000
    share: float = 0.8
    restarts: int = 1
    loss: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise UserError(f"share must be in (0, 1], got {self.share:g}")
        if self.loss is not None:
            get_loss(self.loss)

    @property
    def length(self) -> int:
        """One query a step."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts

    def start(self, query: Query, batch: Batch) -> SquareState:
        """Vertical stripes."""
        channels, _, width = batch.ball.x.shape[1:]
        positive = batch.stream.child("stripes").uniform((channels, 1, width)) < 0.5
        x = _corner(batch, positive)
        return SquareState(x, self._loss(query, batch, x))

    def step(self, query: Query, batch: Batch, state: SquareState) -> SquareState:  # type: ignore[override]
        """One square repainted, and kept where that raises the loss."""
        channels, height, width = batch.ball.x.shape[1:]
        drawn = batch.stream.uniform((2 + channels,), draw=batch.step)
        side = self._side(batch.step, height, width)
        inside = _span(drawn[:, 0], side, height).unsqueeze(2) & _span(drawn[:, 1], side, width).unsqueeze(1)
        painted = _corner(batch, (drawn[:, 2:] < 0.5).reshape(-1, channels, 1, 1))
        x = torch.where(inside.unsqueeze(1), painted, state.candidate)
        loss = self._loss(query, batch, x)
        better = loss > state.loss
        return SquareState(torch.where(per_row(better, x), x, state.candidate), torch.where(better, loss, state.loss))

    def _loss(self, query: Query, batch: Batch, x: Tensor) -> Tensor:
        name = self.loss or ("margin" if batch.targets is None else "ce")
        return get_loss(name)(query.logits(x), batch.y, batch.targets)

    def _side(self, step: Tensor, height: int, width: int) -> Tensor:
        """The side of each sample's square in pixels, (N,) int64."""
        halved = torch.tensor([count * self.steps / 10_000 for count in _HALVED], device=step.device)
        times = torch.searchsorted(halved, step.to(halved.dtype))
        side = torch.sqrt(self.share * 0.5 ** times.double() * height * width).round().long()
        return side.clamp(1, max(1, min(height, width) - 1))


def _corner(batch: Batch, positive: Tensor) -> Tensor:
    """The image moved by eps, up where `positive` (broadcast over the pixels), else down."""
    x, eps = batch.ball.x, per_row(batch.ball.eps, batch.ball.x)
    return batch.ball.project(x + torch.where(positive, eps, -eps))


def _span(drawn: Tensor, side: Tensor, length: int) -> Tensor:
    """Which of `length` places lie within `side` of a first one that `drawn` in [0, 1) picks, (N, length) bool."""
    first = torch.floor(drawn.double() * (length - side + 1)).long().unsqueeze(1)
    places = torch.arange(length, device=drawn.device)
    return (places >= first) & (places < first + side.unsqueeze(1))
