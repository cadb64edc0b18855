"""Adaptive auto attack: short ascents of the margin from learned directions, and hopeless images given up."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import margin
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, take
from robustbench_lite.threat import Threat

# The authors' rounds: the share of the survivors that is still attacked, steps of a restart, restarts.
_ROUNDS = (
    *((1.0, 8, 1),) * 3,
    *((0.7, 25, 1), (0.6, 30, 1), (0.5, 30, 1), (0.4, 35, 1), (0.3, 40, 1), (0.2, 45, 1), (0.1, 50, 1)),
    *((0.1, 50, 4), (0.065, 55, 4), (0.03, 60, 50)),
)
_LEARNED, _FINAL = 2, 10  # the first round that uses what was learned, and the first of the last ones


@dataclass(frozen=True)
class A3State(State):
    """`candidate`: the present iterate. others: (N, K - 1) int64, the wrong classes, likeliest first.

    hope: (N,), the best margin of the first two rounds; done: (N,) bool, given up.
    """

    others: Tensor
    hope: Tensor
    done: Tensor


@dataclass(frozen=True)
class _Plan:
    """For each step, (S,) int64: its round, its restart, its place there, the restart's first steps and all of them."""

    rounds: Tensor
    restarts: Tensor
    places: Tensor
    firsts: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class A3(Attack):
    """Restarts that learn where to begin and whom to give up (Liu et al. 2022, arXiv:2203.05154, algorithm 1).

    A restart begins at a random point of the ball, takes `start_steps` steps of eps along the slope of w . logits (none
    in the first round), and then climbs the margin with steps that fall from eps as a cosine. w is uniform on [-1, 1]
    in the second round. Which sign it had at the true class and at the class that won, where an image fell there, is
    counted; from the third on w takes those signs at the label and at one of the likeliest wrong classes, each in turn
    ("adaptive direction initialisation"). Later rounds take more steps and attack ever fewer of the images, those
    nearest to falling, 3 % in the last ("online statistics-based discarding").
    rounds: how many of the authors' 13, >= 2. start_steps: >= 0. last_restarts: of the 13th round, >= 1. least: so many
    of the images learned from are kept in every round, >= 0.
    Departures: no operation here mixes samples, so both statistics are learned beforehand (`fit`), by the first two
    rounds on the images to learn from: the signs are those of the second round, where the authors count on; who is
    given up hangs on the best margin of the first two rounds, and the bar is that of the images learned from. The
    authors' other plan, for networks on which the first steps alone fool one image in twenty, and their cut of a
    round's steps where a total is spent, are left out. A restart's last image is looked at, at one forward pass.
    """

    name: ClassVar[str] = "a3"
    summary: ClassVar[str] = "adaptive auto attack: learned directions of start, hopeless images given up"
    source: ClassVar[str] = "Liu et al. 2022, arXiv:2203.05154"
    targeted: ClassVar[bool] = False

    rounds: int = 13
    start_steps: int = 7
    last_restarts: int = 50
    least: int = 100

    def __post_init__(self) -> None:
        if not 2 <= self.rounds <= len(_ROUNDS):
            raise UserError(f"rounds must be in 2..{len(_ROUNDS)}, got {self.rounds}")
        if self.last_restarts < 1:
            raise UserError(f"last_restarts must be >= 1, got {self.last_restarts}")
        for name in ("start_steps", "least"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be >= 0, got {getattr(self, name)}")

    @property
    def _plan(self) -> _Plan:
        return _plan(self.rounds, self.start_steps, self.last_restarts)

    @property
    def length(self) -> int:
        """One gradient a step."""
        return len(self._plan.rounds)

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step, a look at the end of each restart, and one at the image."""
        return self.length + int(self._plan.restarts[-1]) + 2, self.length

    def fit(self, query: Query, batch: Batch) -> dict[str, Tensor]:
        """The first two rounds: `signs` (2,), sums of w at the winning and the true class; `bars`, one a round."""
        state, plan = self.start(query, batch), self._plan
        fallen = state.hope > 0
        begun = len(state.hope) - int(fallen.sum())
        signs = torch.zeros(2, dtype=torch.float64, device=state.hope.device)
        for k in range(int((plan.rounds < _LEARNED).sum())):
            now = replace(batch, step=torch.full_like(batch.y, k))
            w = self._directions(now, state, query.n_classes)
            state, logits = self._advance(query, now, state)
            new = (margin(logits, batch.y, None) > 0) & ~fallen
            if int(plan.rounds[k]) == _LEARNED - 1:
                places = torch.stack([logits.argmax(1), batch.y], 1)[new]
                signs += w[new].gather(1, places).double().sum(0)
            fallen = state.hope > 0
        hopes = state.hope[~fallen].sort(descending=True).values
        bars = torch.full((len(_ROUNDS),), torch.finfo(hopes.dtype).min, device=hopes.device)
        for which, (share, _, _) in enumerate(_ROUNDS):
            kept = max(math.ceil(share * len(hopes)), min(self.least, begun))
            if kept < len(hopes):
                bars[which] = hopes[kept - 1]
        return {"signs": signs, "bars": bars}

    def start(self, query: Query, batch: Batch) -> A3State:
        """The image, and its wrong classes in order."""
        logits = query.logits(batch.ball.x)
        wrong = logits.scatter(1, batch.y.unsqueeze(1), float("-inf"))
        others = wrong.argsort(dim=1, descending=True, stable=True)[:, :-1]
        none = torch.zeros_like(batch.y, dtype=torch.bool)
        return A3State(batch.ball.x.clone(), others, margin(logits, batch.y, None), none)

    def step(self, query: Query, batch: Batch, state: A3State) -> A3State:  # type: ignore[override]
        """One step of a restart; before a round begins, those without hope are given up."""
        state, _ = self._advance(query, batch, state)
        bars = batch.learned.get("bars")
        if bars is None:
            return state
        rounds = self._plan.rounds.to(batch.step.device)
        coming = rounds[(batch.step + 1).clamp_max(len(rounds) - 1)]
        return replace(state, done=state.done | ((coming != rounds[batch.step]) & (state.hope < bars[coming])))

    def finished(self, batch: Batch, state: A3State) -> Tensor:  # type: ignore[override]
        """Those given up."""
        return state.done

    def _advance(self, query: Query, batch: Batch, state: A3State) -> tuple[A3State, Tensor]:
        """The state after one step, and the logits before it."""
        ball, plan = batch.ball, take(self._plan, batch.step.cpu())
        rounds, restarts, places, firsts, lengths = (
            part.to(ball.x.device) for part in (plan.rounds, plan.restarts, plan.places, plan.firsts, plan.lengths)
        )
        x = state.candidate
        begins = (places == 0).nonzero()[:, 0]
        if len(begins):
            fresh = take(ball, begins).random(take(batch.stream, begins).child(restarts[begins]))
            x = x.index_copy(0, begins, fresh)
        starting = places < firsts
        answer = query.gradient(x, _ascent, self._directions(batch, state, query.n_classes), starting)
        climbed, count = (places - firsts).double(), (lengths - firsts).double()
        least = torch.where(count <= 10, 0.1, 0.001)
        size = least + (1 - least) * (1 + torch.cos(math.pi * climbed / (count + 1))) / 2
        moved = ball.ascend(x, answer.gradient, ball.eps * torch.where(starting, 1.0, size).float())
        value = margin(answer.logits, batch.y, None)
        ends = (places == lengths - 1).nonzero()[:, 0]
        if len(ends):
            last = margin(query.logits(moved[ends], rows=ends), batch.y[ends], None)
            value = value.index_copy(0, ends, torch.maximum(value[ends], last))
        hope = torch.where(rounds < _LEARNED, torch.maximum(state.hope, value), state.hope)
        return replace(state, candidate=moved, hope=hope), answer.logits

    def _directions(self, batch: Batch, state: A3State, classes: int) -> Tensor:
        """w of the present restart, (N, K)."""
        plan = take(self._plan, batch.step.cpu())
        rounds, restarts = plan.rounds.to(batch.y.device), plan.restarts.to(batch.y.device)
        stream = batch.stream.child("direction")
        w = stream.uniform((classes,), draw=restarts) * 2 - 1
        signs = batch.learned.get("signs", w.new_zeros(2))
        final = rounds >= _FINAL
        # The authors' bounds at the label, and how many wrong classes come in turn.
        least = torch.where(final, -0.8, -0.1 if signs[1] > 0 else -0.5)
        most = torch.where(final, 0.1, 0.5 if signs[1] > 0 else 0.1)
        many = 9 if classes < 100 else 14 if classes < 1000 else 20
        turns = torch.where(final & (classes < 100), 4, many).clamp_max(classes - 1)
        scale = max(1.0, classes / 10)
        own = scale * (least + (most - least) * stream.child("label").uniform((1,), draw=restarts)[:, 0])
        other = scale * torch.where(final | (signs[0] >= 0), 0.8, -0.8)
        rank = ((restarts - 1) % turns).clamp_min(0)
        learned = w.scatter(1, batch.y.unsqueeze(1), own.unsqueeze(1))
        learned = learned.scatter(1, state.others.gather(1, rank.unsqueeze(1)), other.unsqueeze(1))
        return torch.where(per_row(rounds >= _LEARNED, w), learned, w)


def _ascent(logits: Tensor, y: Tensor, _targets: Tensor | None, w: Tensor, starting: Tensor) -> Tensor:
    """w . logits in the first steps of a restart, then the margin."""
    return torch.where(starting, (w * logits).sum(1), margin(logits, y, None))


@functools.cache
def _plan(rounds: int, start_steps: int, last_restarts: int) -> _Plan:
    columns: list[tuple[int, int, int, int, int]] = []
    restart = 0
    for which, (_, steps, restarts) in enumerate(_ROUNDS[:rounds]):
        first = start_steps if which else 0
        for _ in range(restarts if which < len(_ROUNDS) - 1 else last_restarts):
            columns += [(which, restart, place, first, first + steps) for place in range(first + steps)]
            restart += 1
    return _Plan(*torch.tensor(columns).unbind(1))
