"""Auto-PGD: projected ascent with momentum whose step size follows the progress of each sample's loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, put, take
from robustbench_lite.threat import Ball, Threat

# l1 only (arXiv:2103.01208, sections 3.2 and 3.3): radii of the phases in eps, and where each begins in the steps.
_RADII, _BEGINS = (3.0, 2.0, 1.0), (0.0, 0.3, 0.6)


@dataclass(frozen=True)
class APGDState(State):
    """`candidate` is the present iterate x^(k), in l1 drawn into the ball, for there the first phases leave it.

    iterate: x^(k); previous: x^(k-1); gradient: at the iterate; loss: (N,) where the last step led. best,
    best_gradient, best_loss: where the loss was largest. aim: (N,) int64, the class that the attack chose, -1 for
    none. step_size: (N,) in the norm. rises: (N,) int64, steps since the last checkpoint that raised the loss.
    checked_loss: (N,) best loss at that checkpoint; reduced: (N,) bool, whether the step was halved there, true before
    the first. In l1 only, changed: (N,) pixels that the best changed at the last checkpoint; density: (N,) share of
    the pixels that a step moves.
    """

    iterate: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    aim: Tensor
    step_size: Tensor
    rises: Tensor
    checked_loss: Tensor
    reduced: Tensor
    changed: Tensor
    density: Tensor


@dataclass(frozen=True)
class APGD(Attack):
    """What the members of the family share: all but the loss.

    In l1 the attack is that of Croce and Hein 2021 (arXiv:2103.01208): 30, 30 and 40 % of the steps in balls of
    3, 2 and 1 eps, each from the best of the one before; a step moves the pixels of largest gradient alike, and
    their share follows how many pixels the best has changed.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    loss: ClassVar[str]

    steps: int = 100
    restarts: int = 1
    momentum: float = 0.25
    rho: float = 0.75

    def __post_init__(self) -> None:
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("momentum", "rho"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be in [0, 1], got {getattr(self, name):g}")

    @property
    def length(self) -> int:
        """One gradient a step, and one at the start."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step and one at each start; in l1 also where the ball shrinks."""
        begins = len({begin for begin in self._phases() if begin}) if threat.norm == "l1" else 0
        asked = (self.steps + 1 + begins) * self.attempts
        return asked, asked

    def choose(self, query: Query, batch: Batch) -> Tensor:
        """The class that each sample aims at of its own accord, (N,) int64; -1 for none."""
        return torch.full_like(batch.y, -1)

    def start(self, query: Query, batch: Batch) -> APGDState:
        """The loss and its gradient at a random point: uniform in the linf ball, normal and as far as eps in others."""
        aim = self.choose(query, batch)
        ball = self._ball(batch)
        if ball.norm == "linf":
            x = ball.random(batch.stream)
        else:
            direction = batch.stream.normal(ball.x.shape[1:])
            x = ball.scaled(direction) if ball.norm == "l2" else ball.project(ball.x + direction)
        return self._begin(query, batch, ball, x, aim)

    def step(self, query: Query, batch: Batch, state: APGDState) -> APGDState:  # type: ignore[override]
        """One step of algorithm 1 of the paper."""
        if batch.ball.norm == "l1":
            state = self._next_radius(query, batch, state)
        ball = self._ball(batch)
        x = self._move(ball, batch, state)
        gradient, loss = self.ask(query, batch, x, aim=state.aim)
        better = loss > state.best_loss
        state = replace(
            state,
            iterate=x,
            previous=state.iterate,
            gradient=gradient,
            loss=loss,
            rises=state.rises + (loss > state.loss),
            best=_where(better, x, state.best),
            best_gradient=_where(better, gradient, state.best_gradient),
            best_loss=torch.where(better, loss, state.best_loss),
        )
        if ball.norm != "l1":
            state = self._checkpoint(batch, state)
            return replace(state, candidate=state.iterate)
        state = self._checkpoint_l1(ball, batch, state)
        return replace(state, candidate=batch.ball.project(state.iterate))

    def ask(
        self, query: Query, batch: Batch, x: Tensor, *, aim: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the loss at x and its value, (M,), both of one pass."""
        loss = get_loss(self.loss)
        answer = query.gradient(x, loss, rows=rows)
        y, targets = batch.y, batch.targets
        if rows is not None:
            y, targets = y[rows], None if targets is None else targets[rows]
        return answer.gradient, loss(answer.logits, y, targets)

    def _begin(
        self, query: Query, batch: Batch, ball: Ball, x: Tensor, aim: Tensor, *, rows: Tensor | None = None
    ) -> APGDState:
        """The state at x before a first step."""
        gradient, loss = self.ask(query, batch, x, aim=aim, rows=rows)
        none = torch.zeros_like(loss)
        first = 1.0 if ball.norm == "l1" else 2.0
        limit = batch.ball if rows is None else take(batch.ball, rows)
        return APGDState(
            candidate=limit.project(x) if ball.norm == "l1" else x,
            iterate=x,
            previous=x,
            gradient=gradient,
            loss=loss,
            best=x,
            best_gradient=gradient,
            best_loss=loss,
            aim=aim,
            step_size=first * ball.eps,
            rises=torch.zeros_like(aim),
            checked_loss=loss,
            reduced=torch.ones_like(aim, dtype=torch.bool),
            changed=none + x[0].numel() if len(x) else none,
            density=none + 0.2,
        )

    def _move(self, ball: Ball, batch: Batch, state: APGDState) -> Tensor:
        """The next iterate: eq. 3 and 4 of the paper; in l1 a sparse step."""
        x = state.iterate
        if ball.norm == "l1":
            sign = _largest(state.gradient, state.density).sign_()
            size = state.step_size / sign.flatten(1).abs().sum(1).clamp_min(1)
            return ball.project(x + sign * per_row(size, x))
        z = ball.ascend(x, state.gradient.clone(), state.step_size)
        # The first step has no other before it.
        momentum = per_row(torch.where(batch.step == 0, 0.0, self.momentum), x)
        return ball.project(x + (1 - momentum) * (z - x) + momentum * (x - state.previous))

    def _checkpoint(self, batch: Batch, state: APGDState) -> APGDState:
        """Halve the step of samples that stagnate, and set them back to their best: conditions 1 and 2."""
        width = torch.tensor(checkpoint_widths(self.steps), device=batch.step.device)[batch.step + 1]
        due = width > 0
        if not due.any():
            return state
        few_rises = state.rises <= self.rho * width
        stuck = ~state.reduced & (state.best_loss <= state.checked_loss)
        halve = due & (few_rises | stuck)
        return replace(
            _to_best(state, halve),
            step_size=torch.where(halve, state.step_size / 2, state.step_size),
            rises=torch.where(due, 0, state.rises),
            checked_loss=torch.where(due, state.best_loss, state.checked_loss),
            reduced=torch.where(due, halve, state.reduced),
        )

    # -- l1 -------------------------------------------------------------------------------------

    def _phases(self) -> list[int]:
        """The steps at which the phases of l1 begin."""
        return [int(share * self.steps) for share in _BEGINS]

    def _ball(self, batch: Batch) -> Ball:
        """The ball of the present phase."""
        if batch.ball.norm != "l1":
            return batch.ball
        radius = torch.zeros_like(batch.ball.eps)
        for begin, factor in zip(self._phases(), _RADII, strict=True):
            radius = torch.where(batch.step >= begin, factor, radius)
        return replace(batch.ball, eps=batch.ball.eps * radius)

    def _next_radius(self, query: Query, batch: Batch, state: APGDState) -> APGDState:
        """Where a phase begins: on from the best point, drawn into the smaller ball."""
        begins = torch.tensor([begin for begin in self._phases() if begin > 0], device=batch.step.device)
        rows = torch.isin(batch.step, begins).nonzero()[:, 0]
        if not len(rows):
            return state
        ball = take(self._ball(batch), rows)
        x = ball.project(state.best[rows])
        fresh = self._begin(query, batch, ball, x, state.aim[rows], rows=rows)
        changed = _changed(ball, x)
        return put(state, rows, replace(fresh, changed=changed, density=changed / (1.5 * max(1, x[0].numel()))))

    def _checkpoint_l1(self, ball: Ball, batch: Batch, state: APGDState) -> APGDState:
        """Follow the sparsity of the best: where it fell, begin again from there with full steps, else shorten them."""
        begins = torch.tensor([*self._phases(), self.steps], device=batch.step.device)
        phase = torch.searchsorted(begins, batch.step, right=True)
        begin, end = begins[phase - 1], begins[phase]
        every = (0.04 * (end - begin)).long().clamp_min(1)
        due = (batch.step + 1 - begin) % every == 0
        changed = _changed(ball, state.best)
        sparser = due & (changed < 0.95 * state.changed)
        shorter = torch.clamp(state.step_size / 1.5, ball.eps / 10, ball.eps)
        return replace(
            _to_best(state, sparser),
            step_size=torch.where(sparser, ball.eps, torch.where(due, shorter, state.step_size)),
            density=torch.where(due, changed / (1.5 * ball.x[0].numel()), state.density),
            changed=torch.where(due, changed, state.changed),
        )


@dataclass(frozen=True)
class APGDCE(APGD):
    """Auto-PGD on the cross entropy (Croce and Hein 2020, arXiv:2003.01690, section 3).

    steps: gradient steps, >= 1. restarts: random starts tried until one succeeds, >= 1. momentum: weight of the
    last move against the present one, in [0, 1], 0 for none (1 - alpha in the paper, alpha 0.75). rho: the step size
    stays where more than this share of the steps between two checkpoints raised the loss, in [0, 1].
    The first step is 2 eps long. Checkpoints lie after 22 % of the steps, then at distances shorter by 3 % each
    time down to 6 %; where the loss stagnates the step is halved and the best point taken up again.
    Departures: as in the authors' code the start is random, the step is also halved where just that share of steps
    raised the loss (the paper: where fewer did), a step counts as a rise against the one before it even where that
    one was taken back at a checkpoint, and the first checkpoint looks at the rises alone. The first step is compared
    with the start, as in the paper; their code compares it with 0. `ce` orders images as cross entropy does without its
    underflow (see robustbench_lite.losses). In l1: Croce and Hein 2021 (arXiv:2103.01208).
    """

    name: ClassVar[str] = "apgd-ce"
    summary: ClassVar[str] = "auto-PGD on cross entropy: the step size follows the loss"
    source: ClassVar[str] = "Croce and Hein 2020, arXiv:2003.01690"
    loss: ClassVar[str] = "ce"


@dataclass(frozen=True)
class APGDDLR(APGD):
    """Auto-PGD on the difference of logits ratio (Croce and Hein 2020, arXiv:2003.01690, section 4).

    The hyperparameters are those of `apgd-ce`. Departure: with fewer classes than the ratio needs, see
    robustbench_lite.losses.dlr. With a class aimed at, the targeted ratio of the paper.
    """

    name: ClassVar[str] = "apgd-dlr"
    summary: ClassVar[str] = "auto-PGD on the difference of logits ratio, blind to the logits' scale"
    source: ClassVar[str] = "Croce and Hein 2020, arXiv:2003.01690"
    loss: ClassVar[str] = "dlr"


def checkpoint_widths(steps: int) -> list[int]:
    """For each number of steps taken, 0 to `steps`: the steps since the last checkpoint where one is due, else 0.

    w_j = ceil(p_j steps) with p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06).

    >>> [k for k, width in enumerate(checkpoint_widths(100)) if width]
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    widths, last = [0] * (steps + 1), 0
    percent, gap = 22, 22
    while percent <= 100:
        now = -(-percent * steps // 100)
        if now > last:
            widths[now], last = now - last, now
        gap = max(gap - 3, 6)
        percent += gap
    return widths


def _where(which: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(per_row(which, one), one, other)


def _to_best(state: APGDState, which: Tensor) -> APGDState:
    """The samples `which` set back to their best point."""
    return replace(
        state,
        iterate=_where(which, state.best, state.iterate),
        gradient=_where(which, state.best_gradient, state.gradient),
    )


def _changed(ball: Ball, x: Tensor) -> Tensor:
    """How many pixels differ from the image, (N,) float32."""
    return (x != ball.x).flatten(1).sum(1).float()


def _largest(gradient: Tensor, density: Tensor) -> Tensor:
    """The gradient with only this share of its components, (N,), the largest in size; the others are zero."""
    size = gradient.flatten(1).abs()
    place = ((1 - density) * size.shape[1]).long().clamp(0, size.shape[1] - 1)
    least = size.sort(1).values.gather(1, place.unsqueeze(1))
    return torch.where(size >= least, gradient.flatten(1), 0.0).reshape(gradient.shape)
