"""Carlini and Wagner's attacks: Adam in tanh space on the distance plus a weighted margin, searched again and again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import margin, reached
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row
from robustbench_lite.threat import Ball, Threat

# Of (-1, 1), the range of tanh, what the box takes: nearer to its ends the slope vanishes and black pixels stay black.
_RANGE = 0.999
_SEARCHES = {"l2": 9, "linf": 60, "l0": 100}
_GROWTH = {"l2": 10.0, "linf": 2.0, "l0": 2.0}  # of c, where nothing was found
_LARGEST_STEP = 0.1
_MOST_FAILURES = 6  # searches in a row with ever larger c, once an image is known


@dataclass(frozen=True)
class CWState(State):
    """`candidate`: the nearest image at the goal so far, at first x. All that follows is of the search under way.

    image: (N, C, H, W), the iterate; first, second: Adam's moments; free: (N, C, H, W) bool, numbers that may move
    (l0), else (N, 0). The rest is (N,): searches done and failures in a row; age, Adam's steps; stalled, steps since
    the objective was least; step_size; c, with what is known to be too little and enough; tau (linf); distances
    of the candidate and of what was known when the search began (squared for l2); found, whether it succeeded.
    """

    image: Tensor
    first: Tensor
    second: Tensor
    free: Tensor
    searches: Tensor
    failures: Tensor
    age: Tensor
    stalled: Tensor
    least: Tensor
    step_size: Tensor
    c: Tensor
    little: Tensor
    enough: Tensor
    tau: Tensor
    nearest: Tensor
    before: Tensor
    found: Tensor


@dataclass(frozen=True)
class CW(Attack):
    """The nearest adversarial image by optimisation in tanh space (Carlini and Wagner 2017, arXiv:1608.04644).

    A search is a run of Adam on distance + c max(confidence - margin, 0), the margin in logits (the paper's f6).
    l2 (section VI.A): the squared distance; c bisected between what failed and what did not, times 10 until one
    does not. linf (VI.C): the sum of what exceeds tau; a search ends where nothing does and the goal is reached,
    then tau is 0.9 of the distance; where it fails c is doubled. l0 (VI.B): l2 over the numbers that may still move;
    a search ends at the goal, then a share of the numbers is frozen, those of least gradient times change.

    steps: Adam's steps of a search at most, >= 1. searches: >= 1; default 9 for l2, 60 for linf, 100 for l0.
    step_size: of Adam, in tanh space, in (0, 0.5]; default `pace` times what the linear model of the margin at the
    image says is needed, 0.1 at most (the paper: 0.01). c: the first, > 0; default from the linear model (the paper:
    0.001 and 1e-5). confidence: margin wanted, in logits, >= 0. pace: > 0. patience: steps without progress that
    end a search, >= 1. gain: share of the distance, in [0, 1), that a search must win for another to follow (l2).
    freeze: share of the numbers that a success freezes, in (0, 1).
    Departures: progress is watched for each sample at every step (the authors' code: for the batch, at each tenth of
    10000); a search begins at the nearest image known, or where the last ended, not at x; the box takes 0.999 of
    tanh's range; a step of Adam is taken as the tanh of the difference; a share of l0's numbers is frozen, each
    channel by itself.
    """

    name: ClassVar[str] = "cw"
    summary: ClassVar[str] = "nearest image by Adam in tanh space, with a search over the margin's weight"
    source: ClassVar[str] = "Carlini and Wagner 2017, arXiv:1608.04644"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf", "l0")
    minimal: ClassVar[bool] = True

    steps: int = 1000
    searches: int | None = None
    step_size: float | None = None
    c: float | None = None
    confidence: float = 0.0
    pace: float = 0.3
    patience: int = 10
    gain: float = 0.02
    freeze: float = 0.1

    def __post_init__(self) -> None:
        for name in ("steps", "searches", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be >= 1, got {value}")
        if self.step_size is not None and not 0 < self.step_size <= 0.5:
            raise UserError(f"step_size must be in (0, 0.5], got {self.step_size:g}")
        for name in ("c", "pace"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be > 0, got {value:g}")
        if not self.confidence >= 0:
            raise UserError(f"confidence must be >= 0, got {self.confidence:g}")
        if not 0 <= self.gain < 1:
            raise UserError(f"gain must be in [0, 1), got {self.gain:g}")
        if not 0 < self.freeze < 1:
            raise UserError(f"freeze must be in (0, 1), got {self.freeze:g}")

    @property
    def length(self) -> int:
        """One gradient a step, every search to its last."""
        return self.steps * (self.searches or max(_SEARCHES.values()))

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step of each search."""
        return self.length, self.length

    def resolve(self, threat: Threat) -> Self:
        """With the norm's number of searches."""
        return self if self.searches else replace(self, searches=_SEARCHES[threat.norm])

    def start(self, query: Query, batch: Batch) -> CWState:
        """The image itself; the first step's gradient says how fast to go and how much the margin weighs."""
        x, l0 = batch.ball.x, batch.ball.norm == "l0"
        none, zero = torch.zeros_like(batch.y), torch.zeros_like(batch.ball.eps).double()
        far = torch.full_like(zero, float("inf"))
        return CWState(
            candidate=x.clone(),
            image=x.clone(),
            first=torch.zeros_like(x),
            second=torch.zeros_like(x),
            free=torch.ones_like(x, dtype=torch.bool) if l0 else x.new_empty((len(x), 0)),
            searches=none,
            failures=none,
            age=none,
            stalled=none,
            least=far,
            step_size=zero + (self.step_size or 0.0),
            c=zero + (self.c or 0.0),
            little=zero,
            enough=far,
            tau=zero + (batch.ball.high - batch.ball.low),
            nearest=far,
            before=far,
            found=none > 0,
        )

    def step(self, query: Query, batch: Batch, state: CWState) -> CWState:  # type: ignore[override]
        """One gradient: judge the iterate, move it as Adam does, and begin the next search where this one is over."""
        x, norm = batch.ball.x, batch.ball.norm
        answer = query.gradient(state.image, margin)
        value = margin(answer.logits, batch.y, batch.targets).double()
        short = (self.confidence - value).clamp_min(0)
        if bool((batch.step == 0).any()):
            state = self._scales(state, batch, answer.gradient, short)
        delta = state.image - x
        away, pull = _distance(delta, state.tau, norm)
        objective = away + state.c * short
        at_goal = reached(answer.logits, batch.y, batch.targets) & (value >= self.confidence)
        distance = away if norm == "l2" else batch.ball.distance(state.image)
        nearer = at_goal & (distance < state.nearest)
        falls = objective < state.least * (1 - 1e-3)
        stalled = torch.where(falls, 0, state.stalled + 1)
        arrived = at_goal if norm == "l0" else at_goal & (away <= 0)
        tired = (stalled >= self.patience) | (state.age + 1 >= self.steps)
        over = arrived | tired if norm != "l2" else tired
        use = answer.gradient * delta if norm == "l0" and bool(over.any()) else delta
        weight = torch.where(short > 0, -state.c, 0.0).float()
        push = answer.gradient.mul_(per_row(weight, x)).add_(pull)
        state = replace(
            self._adam(state, push, batch.ball),
            candidate=torch.where(per_row(nearer, x), state.image, state.candidate),
            nearest=torch.where(nearer, distance, state.nearest),
            stalled=stalled,
            least=torch.where(falls, objective, state.least),
            found=state.found | (at_goal if norm == "l2" else arrived),
        )
        if not bool(over.any()):
            return state
        return self._next_search(state, x, use, over, norm)

    def finished(self, batch: Batch, state: CWState) -> Tensor | None:  # type: ignore[override]
        """Those whose searches are done."""
        return state.searches >= (self.searches or _SEARCHES[batch.ball.norm])

    def _scales(self, state: CWState, batch: Batch, slope: Tensor, short: Tensor) -> CWState:
        """c and the step size of the samples at their first step, from the linear model of the margin."""
        flat, first = slope.flatten(1).double(), batch.step == 0
        square, total = flat.square().sum(1).clamp_min(1e-24), flat.abs().sum(1).clamp_min(1e-24)
        if batch.ball.norm == "linf":
            # Past tau a pixel costs 1, so it moves there once its slope times c is more.
            # The penalty pulls back all at once what is past tau: smaller steps.
            c, step_size = 5 * total / square, 2 / 3 * short / total
        else:
            half = (batch.ball.high - batch.ball.low) / 2
            turned = ((batch.ball.x.flatten(1).double() - batch.ball.low) / half - 1) * _RANGE
            bend = (1 - turned.square()).square().sum(1).sqrt() * (2 * half)
            c, step_size = 8 * short / square, 2 * short / square.sqrt() / bend
        c, step_size = c.clamp(1e-6, 1e9), (self.pace * step_size).clamp(1e-4, _LARGEST_STEP)
        if batch.ball.norm == "l0":
            step_size = torch.full_like(step_size, _LARGEST_STEP)
        if self.c is None:
            state = replace(state, c=torch.where(first, c, state.c))
        if self.step_size is None:
            state = replace(state, step_size=torch.where(first, step_size, state.step_size))
        return state

    def _adam(self, state: CWState, push: Tensor, ball: Ball) -> CWState:
        """The iterate moved against `push`, the objective's gradient in the image, which is overwritten."""
        half = (ball.high - ball.low) / 2
        turned = state.image.sub(ball.low).div_(half).sub_(1).mul_(_RANGE)  # tanh of the variable
        push.mul_(turned.square().neg_().add_(1)).div_(_RANGE / half)
        age = state.age + 1
        first = state.first.mul(0.9).add_(push, alpha=0.1)
        second = state.second.mul(0.999).add_(push.square_(), alpha=0.001)
        scale = state.step_size * (1 - 0.999 ** age.double()).sqrt() / (1 - 0.9 ** age.double())
        move = (first / second.sqrt().add_(1e-12)).mul_(per_row(-scale.float(), first)).clamp_(-0.9, 0.9)
        # tanh(a + b) = (tanh a + tanh b) / (1 + tanh a tanh b): no tanh to compute, whose last bit is the processor's.
        image = move.add(turned).div_(move.mul_(turned).add_(1)).div_(_RANGE).add_(1).mul_(half).add_(ball.low)
        image = image.clamp_(ball.low, ball.high)
        if state.free.shape[1]:
            image = torch.where(state.free, image, state.image)
        return replace(state, image=image, first=first, second=second, age=age)

    def _next_search(self, state: CWState, x: Tensor, use: Tensor, over: Tensor, norm: str) -> CWState:
        """The next search, of samples whose search is over; `use` (N, C, H, W): gradient times change."""
        found = over & state.found
        failed = over & ~state.found
        known = torch.isfinite(state.nearest)
        c, little, enough, tau, free = state.c, state.little, state.enough, state.tau, state.free
        searches = state.searches + over.long()
        failures = torch.where(found, 0, state.failures + failed.long())
        done = failed & known & (failures >= _MOST_FAILURES)
        if norm == "l2":
            little, enough = torch.where(failed, c, little), torch.where(found, c, enough)
            bisected = torch.where(torch.isfinite(enough), (little + enough) / 2, c * _GROWTH[norm])
            c = torch.where(over, bisected, c)
            # Of squared distances.
            done = done | (found & (state.nearest > state.before * (1 - self.gain) ** 2))
        else:
            c = torch.where(failed, c * _GROWTH[norm], c)
        if norm == "linf":
            tau = torch.where(found, 0.9 * torch.minimum(tau, state.nearest), tau)
            done = done | (found & (tau < 1 / 256 / 8))
        if norm == "l0":
            free = self._freeze(state, use, found)
            done = done | (found & ~free.flatten(1).any(1))
        wide = per_row(over, x)
        image = torch.where(wide & per_row(known, x), state.candidate, state.image)
        if norm == "l0":
            image = torch.where(wide & ~free, x, image)
        return replace(
            state,
            image=image,
            first=torch.where(wide, 0.0, state.first),
            second=torch.where(wide, 0.0, state.second),
            free=free,
            searches=torch.where(done, self.length, searches),
            failures=failures,
            age=torch.where(over, 0, state.age),
            stalled=torch.where(over, 0, state.stalled),
            least=torch.where(over, float("inf"), state.least),
            c=c.clamp_max(1e12),
            little=little,
            enough=enough,
            tau=tau,
            before=torch.where(over, state.nearest, state.before),
            found=state.found & ~over,
        )

    def _freeze(self, state: CWState, use: Tensor, found: Tensor) -> Tensor:
        """What may still move, (N, C, H, W) bool: where a search succeeded, the least useful are frozen."""
        free = state.free.flatten(1)
        worth = torch.where(free, use.flatten(1).double().abs(), float("inf"))
        count = (self.freeze * free.sum(1)).ceil().long()
        rank = worth.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        still = free & (rank >= count.unsqueeze(1)) & (use.flatten(1) != 0)
        return torch.where(found.unsqueeze(1), still, free).reshape(state.free.shape)


def _distance(delta: Tensor, tau: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """What a search makes small beside the margin, (N,) float64, and its gradient in the image."""
    if norm != "linf":
        return delta.flatten(1).square().sum(1, dtype=torch.float64), delta * 2
    excess = (delta.abs() - per_row(tau.float(), delta)).clamp_min_(0)
    return excess.flatten(1).sum(1, dtype=torch.float64), delta.sign() * (excess > 0)
