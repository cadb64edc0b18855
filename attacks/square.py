"""Square: random search with squares of one colour at random places."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, take
from robustbench_lite.threat import Ball, L1Ball, LinfBall, Threat

# Of 10,000 queries: where the share of changed pixels is halved.
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class SquareState(State):
    """`loss`: (N,), at the candidate, which is the best image so far; `seen`: (N,), what it was when progress was
    last looked at, and `rate`: (N,), by how much it rose a step before that.
    """

    loss: Tensor
    seen: Tensor
    rate: Tensor


@dataclass(frozen=True)
class Square(Attack):
    """Random search over images on the surface of the ball (Andriushchenko et al. 2020, arXiv:1912.00049).

    steps: changes tried, each for `proposals` queries, >= 1. share: of the pixels in the first squares, in (0, 1]; it
    is halved after 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80 % of the steps (algorithm 1 and the schedule of section
    4). restarts: runs with other random numbers. proposals: queries of a step, >= 1, of which the best counts; 1 is
    the paper's, and where few are accepted several cost no more queries and fewer steps. random_start: else each
    begins at the image (in a portfolio, where the parts before it ended). loss: `margin`, the paper's for any wrong
    class, or `ce`, which it takes with a class aimed at; default the paper's. patience: every eighth of the steps but
    the first a sample is given up whose margin, rising from now on `patience` times as fast as in the last eighth,
    would not reach the goal; > 0, for `margin` only; default None, nobody is.
    linf (algorithm 2): the first image has vertical stripes, one sign a column and channel; a step repaints one
    square, one sign a channel. One that would change nothing is repainted with all signs turned.
    l2 (algorithm 3): the first image is tiled with bumps; a step empties one square and puts what it held, and
    what clipping had left over, into another, as what was there plus a bump. A step is kept where the loss grows.
    l1 (Croce and Hein 2021, arXiv:2103.01208): as in l2, with lengths in l1, and with the exact projection on ball and
    box.
    Departures: each sample has a square of its own, where the authors' code draws one for a whole batch, so that
    its verdict hangs on the batch; signs are turned where that code draws them again until the square changes
    something, which with one channel is the same; the schedule is scaled to the steps whatever their number.
    """

    name: ClassVar[str] = "square"
    summary: ClassVar[str] = "random search with squares, no gradient"
    source: ClassVar[str] = "Andriushchenko et al. 2020, arXiv:1912.00049"
    access: ClassVar[Access] = "score"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    steps: int = 5000
    share: float = 0.8
    restarts: int = 1
    proposals: int = 1
    random_start: bool = True
    loss: str | None = None
    patience: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "proposals"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise UserError(f"share must be in (0, 1], got {self.share:g}")
        if self.loss is not None:
            get_loss(self.loss)
        if self.patience is not None and not (self.patience > 0 and self.loss in (None, "margin")):
            raise UserError(f"patience must be > 0 and the loss margin, got {self.patience:g} and {self.loss}")

    @property
    def length(self) -> int:
        """One query a step."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts

    def calls(self, threat: Threat) -> tuple[int, int]:
        """One query at the start, then `proposals` a step."""
        return (1 + self.steps * self.proposals) * self.restarts, 0

    @property
    def ends_early(self) -> bool:
        """With patience alone."""
        return self.patience is not None

    def start(self, query: Query, batch: Batch) -> SquareState:
        """Vertical stripes in linf, tiles of bumps in l2 and l1."""
        if not self.random_start:
            x = batch.origin.clone()
        else:
            x = _stripes(batch) if isinstance(batch.ball, LinfBall) else _tiles(batch)
        loss = self._loss(query, batch, x)
        return SquareState(x, loss, loss.clone(), torch.full_like(loss, torch.inf))

    def finished(self, batch: Batch, state: SquareState) -> Tensor | None:  # type: ignore[override]
        """Who shows too little progress to arrive."""
        if self.patience is None or batch.targets is not None:
            return None
        missing = -state.loss / (self.steps - batch.step).clamp_min(1)
        return self._looks(batch.step) & (batch.step > self._window) & (self.patience * state.rate < missing)

    @property
    def _window(self) -> int:
        return max(1, self.steps // 8)

    def _looks(self, step: Tensor) -> Tensor:
        """Whether progress is looked at after so many steps."""
        return step % self._window == 0

    def step(self, query: Query, batch: Batch, state: SquareState) -> SquareState:  # type: ignore[override]
        """One square changed, and kept where that raises the loss; of several proposals the best."""
        best, several = state.candidate, self.proposals > 1
        linf = isinstance(batch.ball, LinfBall)
        rows = torch.arange(len(best), device=best.device).repeat_interleave(self.proposals)
        numbers = (2 if linf else 5) + best.shape[1]
        drawn = batch.stream.uniform((self.proposals, numbers), draw=batch.step).flatten(0, 1)
        if linf:
            x = self._repainted(batch, rows, drawn, best)
        elif several:
            x = self._refilled(take(batch.ball, rows), drawn, batch.step[rows], best[rows])
        else:
            x = self._refilled(batch.ball, drawn, batch.step, best)
        loss = self._loss(query, batch, x, rows if several else None)
        loss, which = loss.reshape(-1, self.proposals).max(1)
        better = loss > state.loss
        # Few are: a choice over all images takes as long as a small network.
        won = better.nonzero()[:, 0]
        if len(won):
            best = best.index_copy(0, won, x.index_select(0, won * self.proposals + which[won]))
        loss, look = torch.where(better, loss, state.loss), self._looks(batch.step + 1)
        rate = torch.where(look, (loss - state.seen) / self._window, state.rate)
        return SquareState(best, loss, torch.where(look, loss, state.seen), rate)

    def _loss(self, query: Query, batch: Batch, x: Tensor, rows: Tensor | None = None) -> Tensor:
        loss = get_loss(self.loss or ("margin" if batch.targets is None else "ce"))
        logits = query.logits(x, rows=rows)
        if rows is None:
            return loss(logits, batch.y, batch.targets)
        return loss(logits, batch.y[rows], None if batch.targets is None else batch.targets[rows])

    def _side(self, step: Tensor, height: int, width: int) -> Tensor:
        """The side of each sample's square in pixels, (N,) int64."""
        sides = _sides(self.share, height, width, step.device)
        return sides[_times_halved(self.steps, step.device)[step]]

    def _repainted(self, batch: Batch, rows: Tensor, drawn: Tensor, best: Tensor) -> Tensor:
        """Algorithm 2: the best images at `rows` with a square at the ball's upper or lower bound in each channel.

        Nothing but the squares is looked at: with whole images a step takes as long as a small network.
        """
        assert isinstance(batch.ball, LinfBall)
        _, channels, height, width = best.shape
        place = _square(drawn, self._side(batch.step, height, width)[rows], height, width)
        planes = torch.arange(best.numel() // (height * width), device=rows.device).reshape(-1, channels, 1)
        index = planes[rows] * (height * width) + place.unsqueeze(1)
        lower, upper, now = (
            image.flatten().index_select(0, index.flatten()).reshape(index.shape)
            for image in (batch.ball.lower, batch.ball.upper, best)
        )
        up = drawn[:, 2:].unsqueeze(2) < 0.5
        colour = _either(up, upper, lower)
        same = (colour == now).flatten(1).all(1)
        if same.any():
            colour = _either(up ^ per_row(same, up), upper, lower)
        x = best.index_select(0, rows)
        x.flatten(2).scatter_(2, place.unsqueeze(1).expand(index.shape), colour)
        return x

    def _refilled(self, ball: Ball, drawn: Tensor, step: Tensor, best: Tensor) -> Tensor:
        """Algorithm 3: one square emptied into another, with what is left of the ball's budget."""
        channels, height, width = best.shape[1:]
        halved = _times_halved(self.steps, best.device)[step]
        side = _odd_sides(self.share, height, width, best.device)[halved]
        rows, columns = _place(drawn[:, 0], side, height), _place(drawn[:, 1], side, width)
        filled = _window(rows, columns, side)
        emptied = _window(_place(drawn[:, 2], side, height), _place(drawn[:, 3], side, width), side)
        delta = best - ball.x
        # In l2 budgets add up as squares, in l1 as they are.
        l1 = isinstance(ball, L1Ball)
        spent = delta.abs() if l1 else delta.square()
        held = _sums(spent * (filled | emptied))
        budget = ball.eps.double() if l1 else ball.eps.double().square()
        spare = (budget - _sums(spent).sum(1)).clamp_min(0).unsqueeze(1)
        # What was there and a bump, each of length 1, together as long as what is to be had.
        there = torch.where(filled, delta, 0)
        there *= _inverse(_sums(spent * filled), l1)
        bumps = _bumps(self.share, height, width, best.device)
        bump = _at(bumps, 2 * halved + (drawn[:, 4] < 0.5), rows, columns).unsqueeze(1)
        if l1:
            bump = bump * _inverse(_sums(bump.abs()), l1)
        there.addcmul_(bump, (drawn[:, 5:, None, None] < 0.5).to(best.dtype).mul_(2).sub_(1))
        had = held + spare / channels
        length = (had if l1 else had.sqrt()).float()[:, :, None, None]
        there *= length * _inverse(_sums(there.abs() if l1 else there.square()), l1)
        moved = torch.where(filled, there.add_(ball.x), torch.where(emptied, ball.x, best))
        return ball.project(moved) if l1 else moved.clamp_(ball.low, ball.high)


def _stripes(batch: Batch) -> Tensor:
    """Each column of each channel at the ball's upper or lower bound."""
    assert isinstance(batch.ball, LinfBall)
    channels, _, width = batch.ball.x.shape[1:]
    up = batch.stream.child("stripes").uniform((channels, 1, width)) < 0.5
    return torch.where(up, batch.ball.upper, batch.ball.lower)


def _tiles(batch: Batch) -> Tensor:
    """Five by five bumps and more where the image is longer than wide, eps long together."""
    x = batch.ball.x
    channels, height, width = x.shape[1:]
    side = max(1, min(height, width) // 5)
    down, across = height // side, width // side
    drawn = batch.stream.child("tiles").uniform((1 + channels, down, across)) < 0.5
    upright = torch.tensor(_bump(side), device=x.device)
    bump = torch.where(drawn[:, :1, :, :, None, None], upright, upright.T)
    bump = torch.where(drawn[:, 1:, :, :, None, None], bump, -bump)
    tiles = bump.transpose(3, 4).reshape(-1, channels, down * side, across * side)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta = torch.zeros_like(x)
    delta[:, :, top : top + down * side, left : left + across * side] = tiles
    return batch.ball.scaled(delta)


@functools.lru_cache(maxsize=16)
def _times_halved(steps: int, device: torch.device) -> Tensor:
    """How often the share was halved before each step, (steps,) int64."""
    step = torch.arange(steps) * 10_000 // steps
    return torch.searchsorted(torch.tensor(_HALVED), step).to(device)


def _sides_of(share: float, height: int, width: int) -> list[int]:
    wanted = [round((share * 0.5**times * height * width) ** 0.5) for times in range(len(_HALVED) + 1)]
    return [min(max(1, side), max(1, min(height, width) - 1)) for side in wanted]


@functools.lru_cache(maxsize=16)
def _sides(share: float, height: int, width: int, device: torch.device) -> Tensor:
    """The side of a square in pixels by how often the share was halved, (10,) int64."""
    return torch.tensor(_sides_of(share, height, width), device=device)


@functools.lru_cache(maxsize=16)
def _odd_sides(share: float, height: int, width: int, device: torch.device) -> Tensor:
    """The same for bumps, which need a middle: odd and at least 3, where the image is as large."""
    sides = [max(side, 3) // 2 * 2 + 1 for side in _sides_of(share, height, width)]
    largest = max(1, (min(height, width) - 1)) // 2 * 2 - 1
    return torch.tensor([min(side, max(1, largest)) for side in sides], device=device)


@functools.lru_cache(maxsize=16)
def _bumps(share: float, height: int, width: int, device: torch.device) -> Tensor:
    """Bumps of these sides, upright and lying by turns, with zeros around, (20, S + 1, S + 1)."""
    sides: list[int] = _odd_sides(share, height, width, device).tolist()
    bumps = torch.zeros(2 * len(sides), max(sides) + 1, max(sides) + 1)
    for i, side in enumerate(sides):
        upright = torch.tensor(_bump(side))
        bumps[2 * i, :side, :side] = upright
        bumps[2 * i + 1, :side, :side] = upright.T
    return bumps.to(device)


@functools.lru_cache(maxsize=64)
def _bump(side: int) -> list[list[float]]:
    """Two hills of opposite signs, one above the other, of length 1 together (equation 2 and figure 3)."""
    first = side // 2
    hills = [_hill(rows, side) for rows in (first, side - first) if rows]
    both = torch.cat([hills[0], -hills[-1]]) if len(hills) > 1 else -hills[0]
    bump: list[list[float]] = (both / both.square().sum().sqrt()).float().tolist()
    return bump


def _hill(height: int, width: int) -> Tensor:
    """Rectangles one within another around the middle, the k-th of height 1 / (k + 1)^2; length 1."""
    ring = torch.maximum(
        (torch.arange(height) - height // 2).abs().unsqueeze(1), (torch.arange(width) - width // 2).abs()
    )
    heights = 1.0 / torch.arange(1, max(height, width) // 2 + 2).double().square()
    hill = heights.flip(0).cumsum(0).flip(0)[ring]
    return hill / hill.square().sum().sqrt()


def _place(drawn: Tensor, side: Tensor, length: int) -> Tensor:
    """Where `length` places are, counted from a first one that `drawn` in [0, 1) picks, (N, length) int64."""
    first = torch.floor(drawn.double() * (length - side + 1)).long().unsqueeze(1)
    return torch.arange(length, device=drawn.device) - first


def _square(drawn: Tensor, side: Tensor, height: int, width: int) -> Tensor:
    """Where in an image's plane the square is whose corner `drawn` (N, 2 or more) picks, (N, P) int64.

    P is the number of pixels of the largest; of a smaller square some come several times.
    """
    along = torch.arange(int(side.max()), device=side.device).minimum((side - 1).unsqueeze(1))
    down, across = (
        torch.floor(drawn[:, axis].double() * (length - side + 1)).long().unsqueeze(1) + along
        for axis, length in enumerate((height, width))
    )
    return ((down * width).unsqueeze(2) + across.unsqueeze(1)).flatten(1)


def _either(first: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """One where `first`, else the other, of finite numbers: as products many times as fast as by `where`."""
    weight = first.to(one.dtype)
    return (one * weight).addcmul_(other, 1 - weight)


def _window(rows: Tensor, columns: Tensor, side: Tensor) -> Tensor:
    """The square at these places, (N, 1, H, W) bool."""
    side = side.unsqueeze(1)
    down, across = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (down.unsqueeze(2) & across.unsqueeze(1)).unsqueeze(1)


def _at(bumps: Tensor, which: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """One of the bumps for each sample, its first pixel where rows and columns are 0, (N, H, W)."""
    size = bumps.shape[1]
    down, across = (torch.where((place < 0) | (place >= size), size - 1, place) for place in (rows, columns))
    start = which * (size * size)
    found: Tensor = bumps.take((start.unsqueeze(1) + down * size).unsqueeze(2) + across.unsqueeze(1))
    return found


def _sums(squares: Tensor) -> Tensor:
    """The sum of each channel, (N, C) float64: in float32 its last bits would hang on the batch size."""
    return squares.flatten(2).sum(2, dtype=torch.float64)


def _inverse(total: Tensor, l1: bool) -> Tensor:
    """One over each channel's length, of its sum of sizes or of squares; where that is 0 something finite."""
    return (1.0 / ((total if l1 else total.sqrt()) + 1e-10)).float()[:, :, None, None]
