"""An attack driven step by step over samples that can be taken apart and joined at any moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attack import Access, Attack, Batch, State
from ..fitting import Fit, FitData, fit_attack
from ..losses import reached
from ..network import Network
from ..query import Gradient, Query
from ..rows import take, to_tensors
from ..streams import Stream, content_hashes
from ..threat import Threat
from .check import Failed
from .samples import Shape, images, small_network

COUNT = 8
STEPS = 8  # of each run; an attack's whole length is run once, up to MOST
MOST = 200
FITTED = 16  # images that an attack with a `fit` learns from
SAME = 1e-5
# Large enough that one linear layer is fooled, small enough that noise alone seldom does it.
EPS = {"linf": 0.05, "l2": 0.5, "l1": 8.0, "l0": 20.0}


@dataclass(frozen=True)
class Running:
    """Samples under way; every tensor inside has one row a sample, so rows can be taken and joined."""

    batch: Batch
    state: State
    noise: Stream
    forwards: Tensor
    backwards: Tensor
    fooled: Tensor


class _Watched(Query):
    """A query that remembers the highest access that was asked."""

    asked: set[str]

    def logits(self, x: Tensor, *, rows: Tensor | None = None) -> Tensor:
        """As Query.logits."""
        self.asked.add("score")
        return super().logits(x, rows=rows)

    def labels(self, x: Tensor, *, rows: Tensor | None = None) -> Tensor:
        """As Query.labels."""
        self.asked.add("label")
        return super().labels(x, rows=rows)

    def gradient(self, x: Tensor, loss: Callable[..., Tensor], *extra: Tensor, rows: Tensor | None = None) -> Gradient:
        """As Query.gradient."""
        self.asked.add("gradient")
        return super().gradient(x, loss, *extra, rows=rows)


@dataclass
class Driver:
    """Runs `attack`, resolved for `threat`, against a frozen network.

    alone: compute every image in a pass of its own, so that what then differs between two batches comes
    from the attack and not from how a processor groups rows.
    isolate: give every step a copy of the state, so that one that overwrites it does not rewrite the past.
    """

    attack: Attack
    threat: Threat
    model: nn.Module
    classes: int
    alone: bool = False
    isolate: bool = True
    asked: set[str] = field(default_factory=set)
    fits: dict[Shape, Fit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.attack = self.attack.resolve(self.threat)
        self.network = Network(self.model, n_classes=self.classes, block=1 if self.alone else None)

    def labels(self, x: Tensor) -> Tensor:
        """What the network says of images, (N,): the label from which an attack must move it."""
        with torch.no_grad():
            labels: Tensor = self.model(x).argmax(1)
        return labels

    def fit(self, shape: Shape) -> Fit:
        """What the attack learns, once for each shape, from images that no check attacks."""
        if shape not in self.fits:
            x = images(FITTED, shape, seed=9)
            with torch.no_grad():
                network = Network(self.model, n_classes=self.classes)
                self.fits[shape] = (
                    fit_attack(self.attack, network, FitData(x, self.labels(x)), threat=self.threat)
                    if self.attack.learns
                    else Fit({})
                )
        return self.fits[shape]

    def batch(
        self, x: Tensor, y: Tensor, *, eps: Tensor | None = None, targets: Tensor | None = None, seed: int = 0
    ) -> Batch:
        """The batch that an attack is given at its start; its random streams belong to the images."""
        stream = Stream.of(content_hashes(x), seed=seed).child(f"attack {self.attack.name}")
        zero = torch.zeros_like(y)
        ball, learned = self.attack.ball(self.threat, x, eps), self.fit(_shape(x)).learned
        return Batch(ball, y, targets, zero, stream.child(zero), zero, learned=learned)

    def start(self, batch: Batch) -> Running:
        """The samples before their first step."""
        zero = torch.zeros_like(batch.y)
        noise = batch.stream.child("network")
        query = self._query(batch, noise, zero)
        with torch.no_grad():
            state = self.attack.start(query, batch)
        self._check(state, batch)
        return self._running(query, batch, state, noise, zero, torch.zeros_like(zero, dtype=torch.bool))

    def step(self, running: Running) -> Running:
        """The samples after one more step of each."""
        batch = running.batch
        query = self._query(batch, running.noise, running.forwards)
        before = running.state
        if self.isolate and all(len(tensor) == len(batch.y) for tensor in to_tensors(before).values()):
            before = take(before, torch.arange(len(batch.y)))
        with torch.no_grad():
            state = self.attack.step(query, batch, before)
        self._check(state, batch)
        batch = replace(batch, step=batch.step + 1)
        return self._running(query, batch, state, running.noise, running.backwards, running.fooled)

    def run(self, batch: Batch, *, steps: int) -> list[Running]:
        """Everything from the start to the last step, at most `steps` of them."""
        trace = [self.start(batch)]
        for _ in range(min(steps, self.attack.length)):
            trace.append(self.step(trace[-1]))
            with torch.no_grad():
                over = self.attack.finished(trace[-1].batch, trace[-1].state)
            if over is not None and (over.shape != batch.y.shape or over.dtype != torch.bool):
                raise Failed(f"finished must be ({len(batch.y)},) bool or None, got {over.dtype} {tuple(over.shape)}")
        return trace

    def success(self, last: Running) -> Tensor:
        """Which samples reached the goal on the way or with the last candidate, (N,) bool."""
        batch = last.batch
        candidate = batch.ball.project(last.state.candidate.clone())
        with torch.no_grad():
            found = reached(self.model(candidate), batch.y, batch.targets)
        if self.attack.minimal:
            found &= batch.ball.distance(candidate) <= self.threat.eps
        return last.fooled | found

    def _query(self, batch: Batch, noise: Stream, forwards: Tensor) -> _Watched:
        access: Access = self.attack.access
        low = torch.zeros_like(batch.y, dtype=torch.bool)
        asker = f"attack {self.attack.name}"
        nearest = torch.full(batch.y.shape, float("inf"), dtype=torch.float64) if self.attack.minimal else None
        query = _Watched(
            self.network, batch, access=access, asker=asker, noise=noise, forwards=forwards, low=low, nearest=nearest
        )
        query.asked = self.asked
        return query

    def _running(
        self, query: Query, batch: Batch, state: State, noise: Stream, backwards: Tensor, fooled: Tensor
    ) -> Running:
        fooled = fooled.clone()
        if self.attack.minimal:
            fooled |= query.nearest <= self.threat.eps
        else:
            fooled[query.claims()[0]] = True
        return Running(batch, state, noise, query.forwards, backwards + query.backwards, fooled)

    @staticmethod
    def _check(state: Any, batch: Batch) -> None:
        if not isinstance(state, State):
            raise Failed(f"start and step must return a robustbench_lite.State, got {type(state).__name__}")
        if not isinstance(state.candidate, Tensor) or state.candidate.shape != batch.ball.x.shape:
            came = getattr(state.candidate, "shape", type(state.candidate).__name__)
            raise Failed(f"state.candidate must have the shape {tuple(batch.ball.x.shape)}, got {came}")


def _shape(x: Tensor) -> Shape:
    channels, height, width = x.shape[1:]
    return channels, height, width


def difference(one: Running, other: Running) -> float:
    """The largest difference between the numbers that an attack keeps of the same samples; inf for other counts."""
    if not (torch.equal(one.forwards, other.forwards) and torch.equal(one.backwards, other.backwards)):
        return float("inf")
    mine, others = to_tensors(one.state), to_tensors(other.state)
    gaps = [0.0]
    for name, tensor in mine.items():
        if name not in others or others[name].shape != tensor.shape:
            return float("inf")
        if tensor.numel():
            gap = (tensor.double() - others[name].double()).abs().nan_to_num(nan=float("inf"))
            gap[tensor == others[name]] = 0  # two infinities are no gap
            gaps.append(float((gap / (1 + tensor.double().abs().nan_to_num())).max()))
    return max(gaps)


def threat_of(attack: Attack, norm: str) -> Threat:
    """The threat of the checks in this norm; the box for an attack with limits of its own."""
    return Threat(norm, 1.0 if attack.own_limits else EPS.get(norm, 1.0))


def driver_of(attack: Attack, norm: str, shape: Shape, *, classes: int = 3, alone: bool = True) -> Driver:
    """The attack against a small smooth network in this norm."""
    return Driver(attack, threat_of(attack, norm), small_network(shape, classes=classes), classes, alone=alone)


def samples_of(driver: Driver, shape: Shape, *, count: int = COUNT, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images and what the driver's network says of them."""
    x = images(count, shape, seed=seed)
    return x, driver.labels(x)
