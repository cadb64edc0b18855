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
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Ball, L1Ball, LinfBall, Threat

# Of 10,000 queries: where the share of changed pixels is halved.
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_AHEAD = 32  # proposals of a sample that are drawn at once: one at a time, drawing takes as long as a small network


@dataclass(frozen=True)
class SquareState(State):
    """What the search remembers of each sample.

    loss: (N,), at the candidate, which is the best image so far. seen: (N,), the loss when progress was last measured,
    and rate: (N,), how fast it rose a step before that. spare: (N, 1) float64, of l2 and l1: what the candidate leaves
    of the ball's budget (in l2 of its square), for each channel; below 0 where rounding could use up the rest.
    plan: (N, K, P, F) int64, the random choices of the K steps from `planned`, (N,), on; see `Square._plan`.
    """

    loss: Tensor
    seen: Tensor
    rate: Tensor
    spare: Tensor
    planned: Tensor
    plan: Tensor


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
    l1 (Croce and Hein 2021, arXiv:2103.01208): as in l2, with lengths in l1.
    Every image asked about is in the ball and in the valid range exactly.
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
        rate = torch.full_like(loss, torch.inf)
        plan = self._plan(batch.stream, batch.step, batch.ball)
        return SquareState(x, loss, loss.clone(), rate, _spare(batch.ball, x), batch.step.clone(), plan)

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
        best, ball, several = state.candidate, batch.ball, self.proposals > 1
        planned, plan, choices = self._choices(batch, state)
        halved, spare, rows = _times_halved(self.steps, best.device).index_select(0, batch.step), state.spare, None
        x = best.clone()
        if several:
            rows = torch.arange(len(best), device=best.device).repeat_interleave(self.proposals)
            x, ball, spare, halved = best.index_select(0, rows), take(ball, rows), spare[rows], halved[rows]
        self._change(x, ball, choices, spare, halved)
        loss = self._loss(query, batch, x, rows)
        first = None
        if several:
            loss, which = loss.reshape(-1, self.proposals).max(1)
            first = torch.arange(0, len(x), self.proposals, device=x.device) + which
        # Few are better: a choice over all images takes as long as a small network.
        won = (loss > state.loss).nonzero().squeeze(1)
        spare = state.spare
        if won.numel():
            kept = x.index_select(0, won if first is None else first.index_select(0, won))
            best = best.index_copy(0, won, kept)
            if not isinstance(batch.ball, LinfBall):
                spare = spare.index_copy(0, won, _spare(take(batch.ball, won), kept))
        loss, seen, rate = torch.maximum(loss, state.loss), state.seen, state.rate
        if self.patience is not None:
            look = self._looks(batch.step + 1)
            rate = torch.where(look, (loss - seen) / self._window, rate)
            seen = torch.where(look, loss, seen)
        return SquareState(best, loss, seen, rate, spare, planned, plan)

    def _loss(self, query: Query, batch: Batch, x: Tensor, rows: Tensor | None = None) -> Tensor:
        loss = get_loss(self.loss or ("margin" if batch.targets is None else "ce"))
        logits = query.logits(x, rows=rows)
        if rows is None:
            return loss(logits, batch.y, batch.targets)
        return loss(logits, batch.y[rows], None if batch.targets is None else batch.targets[rows])

    def _plan(self, stream: Stream, step: Tensor, ball: Ball) -> Tensor:
        """The random choices of each sample in the steps from `step` on, (N, K, P, F) int64, P proposals each.

        In linf: the pixel at which the square begins in its plane, then the sign of each channel, 1 or -1. In l2 and
        l1: where the filled square begins, where the emptied one, 0 for an upright bump and 1 for a lying one, signs.
        """
        channels, height, width = ball.x.shape[1:]
        ahead = torch.arange(max(1, min(self.steps, _AHEAD // self.proposals)), device=step.device)
        steps = step.unsqueeze(1) + ahead
        linf = isinstance(ball, LinfBall)
        numbers = (2 if linf else 5) + channels
        streams = Stream(stream.keys.repeat_interleave(len(ahead)))
        drawn = streams.uniform((self.proposals, numbers), draw=steps.flatten()).reshape(*steps.shape, -1, numbers)
        halved = _times_halved(self.steps, step.device)[steps.clamp_max(self.steps - 1)]
        sides = torch.tensor(_sides(self.share, height, width, bumps=not linf), device=step.device)[halved]

        def corner(number: int) -> Tensor:
            down, across = (
                torch.floor(drawn[..., number + axis].double() * (length - sides + 1).unsqueeze(2)).long()
                for axis, length in enumerate((height, width))
            )
            return (down * width + across).unsqueeze(3)

        signs = torch.where(drawn[..., -channels:] < 0.5, 1, -1)
        if linf:
            return torch.cat([corner(0), signs], 3)
        return torch.cat([corner(0), corner(2), (drawn[..., 4:5] < 0.5).long(), signs], 3)

    def _choices(self, batch: Batch, state: SquareState) -> tuple[Tensor, Tensor, Tensor]:
        """The plan, drawn again for samples past its end, and its choices for this step, (N * P, F)."""
        planned, plan, length = state.planned, state.plan, state.plan.shape[1]
        ahead = batch.step - planned
        if int(ahead.max()) >= length:
            due = (ahead >= length).nonzero().squeeze(1)
            step = batch.step.index_select(0, due)
            planned = planned.index_copy(0, due, step)
            plan = plan.index_copy(0, due, self._plan(take(batch.stream, due), step, batch.ball))
            ahead = batch.step - planned
        rows = torch.arange(0, len(ahead) * length, length, device=ahead.device) + ahead
        return planned, plan, plan.flatten(0, 1).index_select(0, rows).flatten(0, 1)

    def _change(self, x: Tensor, ball: Ball, choices: Tensor, spare: Tensor, halved: Tensor) -> None:
        """Write each proposal into x, which holds the best images; those with squares of one size at a time."""
        least, most = (int(end) for end in torch.aminmax(halved))
        if least == most:
            self._change_alike(x, ball, choices, spare, least)
            return
        for times in torch.unique(halved).tolist():
            rows = (halved == times).nonzero().squeeze(1)
            some = x.index_select(0, rows)
            self._change_alike(some, take(ball, rows), choices.index_select(0, rows), spare[rows], times)
            x.index_copy_(0, rows, some)

    def _change_alike(self, x: Tensor, ball: Ball, choices: Tensor, spare: Tensor, times: int) -> None:
        """The same where the share was halved so many `times` for all.

        Nothing but the squares is read or written: with whole images a step takes as long as a small network.
        """
        _, channels, height, width = x.shape
        linf = isinstance(ball, LinfBall)
        side = _sides(self.share, height, width, bumps=not linf)[times]
        corners = choices[:, : 1 if linf else 2].unsqueeze(2)
        place = (corners + _offsets(side, width, x.device)).flatten(1).unsqueeze(1).expand(-1, channels, -1)
        signs, images, clean = choices[:, -channels:].unsqueeze(2), x.flatten(2), ball.x.flatten(2)
        if isinstance(ball, LinfBall):
            _repaint(images, clean, ball, place, signs)
            return
        bumps = _bumps(side, isinstance(ball, L1Ball), x.device).index_select(0, choices[:, 2])
        _refill(images, clean, ball, place, signs * bumps.unsqueeze(1), spare)


def _repaint(images: Tensor, clean: Tensor, ball: LinfBall, place: Tensor, signs: Tensor) -> None:
    """Algorithm 2: the squares at the ball's upper or lower bound in each channel; all (N, C, pixels)."""
    reach = signs * ball.reach.flatten(2)
    was = clean.gather(2, place)
    colour = (was + reach).clamp_(ball.low, ball.high)
    same = (colour == images.gather(2, place)).flatten(1).all(1)
    reach = torch.where(per_row(same, reach), -reach, reach)
    images.scatter_(2, place, (was + reach).clamp_(ball.low, ball.high))


def _refill(images: Tensor, clean: Tensor, ball: Ball, place: Tensor, bumps: Tensor, spare: Tensor) -> None:
    """Algorithm 3: one square emptied into another, with what is left of the ball's budget; all (N, C, pixels).

    place: the pixels of the square to fill, then of the one to empty.
    """
    l1 = isinstance(ball, L1Ball)
    filled, emptied = place.chunk(2, 2)
    was, empty = clean.gather(2, place).chunk(2, 2)
    delta = images.gather(2, place)
    there, moved = delta.chunk(2, 2)
    there.sub_(was)
    held = _size(moved - empty, l1)
    images.scatter_(2, emptied, empty)
    # Where the two overlap, what was there is counted once.
    held += _size(images.gather(2, filled) - was, l1)
    # What was there and a bump, each of length 1, together as long as what is to be had. In l2 budgets add up as
    # squares, in l1 as they are.
    there.mul_(_inverse(_size(there, l1), l1)).add_(bumps)
    had = (held + spare).clamp_min_(0)
    length = (had if l1 else had.sqrt_()).float().unsqueeze(2)
    there.mul_(length * _inverse(_size(there, l1), l1, _SHORTER)).add_(was)
    images.scatter_(2, filled, there.clamp_(ball.low, ball.high))


def _size(delta: Tensor, l1: bool) -> Tensor:
    """The sum of sizes, or in l2 of squares, of each channel of (N, C, pixels), (N, C) float64.

    In float32 its last bits would depend on the batch size.
    """
    return (delta.abs() if l1 else delta.square()).sum(2, dtype=torch.float64)


def _inverse(size: Tensor, l1: bool, more: float = 1e-10) -> Tensor:
    """One over each channel's length, of its size (N, C), as (N, C, 1); where that is 0 something finite."""
    return ((size if l1 else size.sqrt()) + more).reciprocal_().float().unsqueeze(2)


# Added to a length of about 1 that is divided by: the result is shorter than wanted by more than factors are rounded.
_SHORTER = 2e-6


def _spare(ball: Ball, x: Tensor) -> Tensor:
    """What images x leave of the budget, a channel's share, (N, 1) float64: 0 in linf.

    Short of eps by more than rounding the pixels of one step can add, so that no proposal leaves the ball.
    """
    if isinstance(ball, LinfBall):
        return torch.zeros((len(x), 1), dtype=torch.float64, device=x.device)
    l1, (channels, *_), count = isinstance(ball, L1Ball), x.shape[1:], x.shape[1:].numel()
    slack = 2.0**-25 * max(abs(ball.low), abs(ball.high)) * (1 + channels) * (count if l1 else count**0.5)
    reach = (ball.eps.double() * (1 - 1e-6) - slack).clamp_min(0)
    size = _size(x.flatten(2) - ball.x.flatten(2), l1).sum(1)
    return (((reach if l1 else reach.square()) - size) / channels).unsqueeze(1)


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


@functools.lru_cache(maxsize=16)
def _sides(share: float, height: int, width: int, *, bumps: bool) -> list[int]:
    """The side of a square in pixels by how often the share was halved, 10 of them.

    bumps: of squares that need a middle: odd and at least 3, where the image is as large.
    """
    wanted = [round((share * 0.5**times * height * width) ** 0.5) for times in range(len(_HALVED) + 1)]
    most = max(1, min(height, width) - 1)
    sides = [min(max(1, side), most) for side in wanted]
    if not bumps:
        return sides
    return [min(max(side, 3) // 2 * 2 + 1, max(1, most // 2 * 2 - 1)) for side in sides]


@functools.lru_cache(maxsize=64)
def _offsets(side: int, width: int, device: torch.device) -> Tensor:
    """Where the pixels of a square are in its plane, counted from its first, (side * side,) int64."""
    along = torch.arange(side, device=device)
    return (along.unsqueeze(1) * width + along).flatten()


@functools.lru_cache(maxsize=64)
def _bumps(side: int, l1: bool, device: torch.device) -> Tensor:
    """The bump of this side, upright and lying, of length 1 in l2 or l1, (2, side * side)."""
    upright = torch.tensor(_bump(side))
    bumps = torch.stack([upright, upright.T]).flatten(1)
    if l1:
        bumps = bumps / bumps.abs().sum(1, keepdim=True, dtype=torch.float64).float()
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
