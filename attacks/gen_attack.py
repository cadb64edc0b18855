"""Genetic attack: a small population of noise, bred by crossing and mutation towards the goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Batch, State
from robustbench_lite.query import Query
from robustbench_lite.rows import take
from robustbench_lite.threat import Ball, Threat

from .scores import ScoreSearch, above_zero, at_least, fraction, scores_of_each


@dataclass(frozen=True)
class GenAttackState(State):
    """population: (N, members, C, H, W), images in the ball; fitness: (N, members).

    best: (N,), the largest fitness yet; stale: (N,) int64, generations since it grew or a plateau was counted;
    plateaus: (N,) int64, how many were.
    """

    population: Tensor
    fitness: Tensor
    best: Tensor
    stale: Tensor
    plateaus: Tensor


@dataclass(frozen=True)
class GenAttack(ScoreSearch):
    """A genetic algorithm in the ball (Alzantot et al. 2019, arXiv:1805.11090, algorithm 1).

    The fittest member lives on. Each other of the next generation is a child of two parents, drawn with the softmax of
    the fitness as probability: each number of its image is the one parent's or the other's, in proportion to their
    probabilities, and some are moved at random.
    steps: generations, >= 1. population: members, >= 2, all but one of them queries of a step. mutation_rate: share of
    the numbers that is moved, in (0, 1]. mutation_range: how far at most, as a share of eps, > 0. adaptive: begin with
    a rate of 0.5 and a range of 0.4 instead, and take nine tenths of both after each plateau, down to 0.1 and 0.15
    (the paper's for large images). patience: generations without a better member that make a plateau, >= 1.
    restarts: populations tried until one succeeds. loss: `ce` is the paper's fitness, log p_t - log(1 - p_t), or where
    no class is aimed at log(1 - p_y) - log p_y; else margin or dlr.
    Departures: 2000 generations (10,000 queries) where the paper goes on to 100,000 queries; no noise of fewer numbers
    than the image has, the paper's for large images; the best member is not asked about again.
    """

    name: ClassVar[str] = "gen-attack"
    summary: ClassVar[str] = "genetic algorithm over noise in the ball"
    source: ClassVar[str] = "Alzantot et al. 2019, arXiv:1805.11090"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    steps: int = 2000
    population: int = 6
    mutation_rate: float = 0.05
    mutation_range: float = 1.0
    adaptive: bool = False
    patience: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, population=2, patience=1)
        fraction(self, "mutation_rate")
        above_zero(self, "mutation_range")

    def calls(self, threat: Threat) -> tuple[int, int]:
        """The first population, then all but the fittest a step."""
        return (self.population + (self.population - 1) * self.steps) * self.restarts, 0

    def start(self, query: Query, batch: Batch) -> GenAttackState:
        """Uniform noise."""
        shape = (self.population, *batch.ball.x.shape[1:])
        noise = batch.stream.child("start").uniform(shape).mul_(2).sub_(1)
        members = _legal(batch.ball, batch.ball.x.unsqueeze(1) + noise * batch.ball.eps.reshape(-1, 1, 1, 1, 1))
        fitness = self._fitness(query, batch, members)
        none = torch.zeros_like(batch.y)
        return GenAttackState(_fittest(members, fitness), members, fitness, fitness.amax(1), none, none.clone())

    def step(self, query: Query, batch: Batch, state: GenAttackState) -> GenAttackState:  # type: ignore[override]
        """The next generation."""
        members, children = state.population, self.population - 1
        stream = batch.stream.child("breed")
        chance = (state.fitness.double() - state.fitness.double().amax(1, keepdim=True)).softmax(1)
        drawn = stream.child("parents").uniform((2 * children,), draw=batch.step).double()
        parents = (drawn.unsqueeze(2) >= chance.cumsum(1).unsqueeze(1)).sum(2).clamp_max(self.population - 1)
        one, other = parents[:, :children], parents[:, children:]
        ones, others = (chance.gather(1, index) for index in (one, other))
        share = (ones / (ones + others).clamp_min(1e-300)).float()[:, :, None, None, None]
        shape = (children, *members.shape[2:])
        crossed = stream.child("cross").uniform(shape, draw=batch.step) < share
        child = torch.where(crossed, _at(members, one), _at(members, other))
        rate, reach = self._mutation(state.plateaus)
        moved = stream.child("mutate").uniform(shape, draw=batch.step) < rate.reshape(-1, 1, 1, 1, 1)
        noise = stream.child("noise").uniform(shape, draw=batch.step).mul_(2).sub_(1)
        noise *= (reach * batch.ball.eps).reshape(-1, 1, 1, 1, 1)
        child = _legal(batch.ball, torch.where(moved, child + noise, child))
        kept = state.fitness.argmax(1, keepdim=True)
        members = torch.cat([_at(members, kept), child], 1)
        fitness = torch.cat([state.fitness.gather(1, kept), self._fitness(query, batch, child)], 1)
        better = fitness.amax(1) > state.best
        stale = torch.where(better, 0, state.stale + 1)
        over = stale >= self.patience
        best = torch.maximum(fitness.amax(1), state.best)
        plateaus, stale = state.plateaus + over, torch.where(over, 0, stale)
        return GenAttackState(_fittest(members, fitness), members, fitness, best, stale, plateaus)

    def _mutation(self, plateaus: Tensor) -> tuple[Tensor, Tensor]:
        """Rate and range for each sample, (N,)."""
        if not self.adaptive:
            one = torch.ones_like(plateaus, dtype=torch.float32)
            return one * self.mutation_rate, one * self.mutation_range
        shrunk = (0.9 ** plateaus.double()).float()
        return (0.5 * shrunk).clamp_min(0.1), (0.4 * shrunk).clamp_min(0.15)

    def _fitness(self, query: Query, batch: Batch, members: Tensor) -> Tensor:
        def image(rows: Tensor, numbers: Tensor) -> Tensor:
            return members[rows, numbers]

        return scores_of_each(query, batch, image, each=members.shape[1], loss=self.loss)


def _legal(ball: Ball, members: Tensor) -> Tensor:
    """Members (N, M, C, H, W), each projected."""
    rows = torch.arange(len(members), device=members.device).repeat_interleave(members.shape[1])
    return take(ball, rows).project(members.flatten(0, 1)).reshape(members.shape)


def _at(members: Tensor, index: Tensor) -> Tensor:
    """The members of these numbers (N, K)."""
    return members[torch.arange(len(members), device=members.device).unsqueeze(1), index]


def _fittest(members: Tensor, fitness: Tensor) -> Tensor:
    return _at(members, fitness.argmax(1, keepdim=True))[:, 0]
