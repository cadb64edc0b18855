"""One perturbation for all images, learned from many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss, reached
from robustbench_lite.query import Query
from robustbench_lite.threat import BALLS, Ball


@dataclass(frozen=True)
class UAP(Attack):
    """A universal perturbation (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401), added to each image as it is.

    method: "sgd" ascends the mean of a loss over a minibatch by projected steepest steps (Shafahi et al. 2020,
    arXiv:1811.11304, algorithm 1); "deepfool" goes from image to image, adds to the perturbation the shortest step
    that would move an image that it does not move yet, and projects (algorithm 1 of the first paper), until it moves
    `rate` of the images, in (0, 1]. epochs: passes over the images to learn from, at most, >= 1.
    Of sgd alone, minibatch: images of a step, >= 1. step_size: its length as a share of eps, > 0. loss: ce, margin or
    dlr. clip: an image whose loss is above it pulls no more (eq. 4), > 0.
    Of deepfool alone, steps: linear models of one image's boundaries, at most, >= 1. classes: how many wrong classes
    are looked at, those of the highest logits, >= 1. overshoot: share by which its steps are lengthened, >= 0.

    Learned: `delta` (C, H, W) in the ball of eps around zero. It costs `epochs` gradients an image with sgd, and with
    deepfool for each of them two forward passes, and up to `steps` times `classes` gradients where it has to move. At
    evaluation an image costs no gradient: x + delta, cut to the box and to a ball of its own where it has one.
    Departures: the papers do not keep the sum in the box while learning; here the network is asked about images cut
    to it, and the slope is taken as if they were not. `ce` grows as cross entropy does without its underflow (see
    robustbench_lite.losses), so that an image far from the boundary weighs as much as one near it. With a target
    deepfool steps towards that class alone; of its perturbations after each epoch the one that moves most is kept.
    """

    name: ClassVar[str] = "uap"
    summary: ClassVar[str] = "one perturbation for all images, learned"
    source: ClassVar[str] = "Moosavi-Dezfooli et al. 2017, arXiv:1610.08401"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    one_target: ClassVar[bool] = True

    method: Literal["sgd", "deepfool"] = "sgd"
    epochs: int = 20
    minibatch: int = 64
    step_size: float = 0.25
    loss: str = "ce"
    clip: float = 9.0
    steps: int = 10
    classes: int = 10
    overshoot: float = 0.02
    rate: float = 0.8

    def __post_init__(self) -> None:
        if self.method not in ("sgd", "deepfool"):
            raise UserError(f"method must be sgd or deepfool, got {self.method!r}")
        get_loss(self.loss)
        for name in ("epochs", "minibatch", "steps", "classes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("step_size", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be > 0, got {getattr(self, name):g}")
        if not self.overshoot >= 0:
            raise UserError(f"overshoot must be >= 0, got {self.overshoot:g}")
        if not 0 < self.rate <= 1:
            raise UserError(f"rate must be in (0, 1], got {self.rate:g}")

    @property
    def length(self) -> int:
        """No step: the start is the image and what was learned."""
        return 0

    def fit(self, query: Query, batch: Batch) -> dict[str, Tensor]:
        """The perturbation."""
        # A perturbation is an image in the ball around none, with pixels of either sign.
        none = torch.zeros_like(batch.ball.x[:1])
        width = batch.ball.high - batch.ball.low
        ball = BALLS[batch.ball.norm](none, batch.ball.eps[:1], -width, width)
        learned = self._sgd(query, batch, ball) if self.method == "sgd" else self._deepfool(query, batch, ball)
        return {"delta": learned[0]}

    def _sgd(self, query: Query, batch: Batch, ball: Ball) -> Tensor:
        """Algorithm 1 of Shafahi et al."""
        x, delta = batch.ball.x, ball.x

        def loss(logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
            return get_loss(self.loss)(logits, y, targets).clamp_max(self.clip)

        for epoch in range(self.epochs):
            for rows in torch.split(shuffled(batch, epoch), self.minibatch):
                shown = (x[rows] + delta).clamp(batch.ball.low, batch.ball.high)
                slope = query.gradient(shown, loss, rows=rows).gradient
                slope = slope.sum(0, keepdim=True, dtype=torch.float64)
                slope = slope / slope.abs().amax().clamp_min(1e-300)  # in float32 a small one would be none
                delta = ball.ascend(delta, slope.float(), ball.eps * self.step_size)
        return delta

    def _deepfool(self, query: Query, batch: Batch, ball: Ball) -> Tensor:
        """Algorithm 1 of Moosavi-Dezfooli et al."""
        x, delta, best, most = batch.ball.x, ball.x, ball.x, -1.0
        for epoch in range(self.epochs + 1):
            shown = (x + delta).clamp(batch.ball.low, batch.ball.high)
            moved = reached(query.logits(shown), batch.y, batch.targets)
            if (rate := float(moved.double().mean())) > most:
                best, most = delta, rate
            if rate >= self.rate or epoch == self.epochs:
                break
            for row in torch.split(shuffled(batch, epoch), 1):
                delta = ball.project(delta + self._shortest(query, batch, row, delta))
        return best

    def _shortest(self, query: Query, batch: Batch, row: Tensor, delta: Tensor) -> Tensor:
        """The shortest step, by linear models, from a moved image (1,) to the goal; none where it is there."""
        x, y = batch.ball.x[row], batch.y[row]
        targets = None if batch.targets is None else batch.targets[row]
        linf, step, others = batch.ball.norm == "linf", torch.zeros_like(delta), targets
        for _ in range(self.steps):
            image = (x + delta + (1 + self.overshoot) * step).clamp(batch.ball.low, batch.ball.high)
            logits = query.logits(image, rows=row)
            if bool(reached(logits, y, targets)):
                break
            if targets is None:
                wrong = logits.scatter(1, y.unsqueeze(1), float("-inf"))[0]
                others = wrong.argsort(descending=True, stable=True)[: min(self.classes, len(wrong) - 1)]
            assert others is not None
            count, top = len(others), logits.argmax(1)
            extra = (others, top.expand(count))
            many = query.gradient(image.expand(count, -1, -1, -1), _lead, *extra, rows=row.expand(count))
            slope, gap = many.gradient.double(), -_lead(many.logits, y, None, *extra).double().clamp_max(0)
            flat = slope.flatten(1)
            dual = (flat.abs().sum(1) if linf else flat.square().sum(1).sqrt()).clamp_min(1e-300)
            best = (gap / dual).argmin()
            # A little further than the model says: on the boundary nothing is decided.
            length = (gap[best] + 1e-4) / dual[best]
            step = step + (length * (slope[best].sign() if linf else slope[best] / dual[best])).float()
        return (1 + self.overshoot) * step

    def start(self, query: Query, batch: Batch) -> State:
        """The image and the perturbation."""
        delta = batch.learned.get("delta")  # whoever has learned nothing moves nothing
        return State(batch.ball.x.clone() if delta is None else batch.ball.project(batch.ball.x + delta))

    def step(self, query: Query, batch: Batch, state: State) -> State:
        """Nothing to do."""
        return state


def shuffled(batch: Batch, epoch: int) -> Tensor:
    """The rows of the images to learn from in the order of an epoch, by a number of each image's own."""
    return batch.stream.child("order").uniform((), draw=epoch).argsort(stable=True)


def _lead(logits: Tensor, _y: Tensor, _t: Tensor | None, other: Tensor, top: Tensor) -> Tensor:
    """The logit of a class over that of another."""
    return (logits.gather(1, other.unsqueeze(1)) - logits.gather(1, top.unsqueeze(1)))[:, 0]
