"""The images of a second look: some that an attack left standing, and what the small attacks on them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .losses import margin
from .network import Network, Noise
from .rows import take
from .streams import Stream
from .threat import Ball, Threat

STEPS = 10  # gradients of each ascent
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Subjects:
    """Images that the model classifies right and an attack left standing.

    x: (n, C, H, W); y: (n,) labels; targets: (n,) the class that was aimed at, or None; eps: (n,); keys: (n,) of the
    content. weight: (n,) how many images that stand each is looked at for. witness: (n,) whether the box is known to
    hold an image of a class that counts as a success: another image of the run, as the model itself classifies it.
    """

    x: Tensor
    y: Tensor
    targets: Tensor | None
    eps: Tensor
    keys: Tensor
    weight: Tensor
    witness: Tensor

    @property
    def noise(self) -> Noise:
        """The draws of a verdict."""
        return Noise(Stream(self.keys), torch.zeros_like(self.keys))

    def copies(self, count: int) -> tuple[Subjects, Stream]:
        """Each image `count` times in a row, and a stream of random numbers for each copy."""
        rows = torch.arange(len(self.y), device=self.y.device).repeat_interleave(count)
        many = take(self, rows)
        return many, Stream(many.keys).child(torch.arange(len(rows), device=rows.device) % count)


@dataclass(frozen=True)
class Scene:
    """What small attacks are given. votes: draws of a verdict."""

    network: Network
    threat: Threat
    left: Subjects
    votes: int

    @property
    def ball(self) -> Ball:
        """The balls around the images."""
        return self.threat.around(self.left.x, self.left.eps)

    def gradient(self, x: Tensor, loss: Loss = margin) -> Tensor:
        """The gradient of a loss of (logits, y, targets), like x."""
        return self.network.gradient(x, self.left.noise, loss, self.left.y, self.left.targets)[0]

    def value(self, x: Tensor, some: Subjects | None = None) -> Tensor:
        """The margin by the draws of a verdict, (n,): positive where the image is at the goal."""
        some = some or self.left
        return margin(self.network.logits(x, some.noise, draws=self.votes, y=some.y), some.y, some.targets)

    def climb(
        self, loss: Loss = margin, gradient: Callable[[Tensor], Tensor] | None = None, ball: Ball | None = None
    ) -> tuple[Tensor, Tensor]:
        """A short ascent from a random point of the ball: the best margin of each image (n,), and where it is."""
        left, ball = self.left, ball or self.ball
        x = at = ball.random(Stream(left.keys).child("battery start"))
        best = torch.full((len(x),), -torch.inf, device=x.device)
        for step in range(STEPS + 1):
            slope: Tensor | None = None
            if gradient is None and self.votes == 1 and step < STEPS:
                slope, logits = self.network.gradient(x, left.noise, loss, left.y, left.targets)
                value = margin(logits, left.y, left.targets)
            else:  # A verdict of a randomised model takes its own number of draws.
                value = self.value(x)
            at = torch.where((value > best).reshape(-1, 1, 1, 1), x, at)
            best = torch.maximum(best, value)
            if step == STEPS or (best > 0).all():
                break
            if slope is None:
                slope = self.gradient(x, loss) if gradient is None else gradient(x)
            x = ball.ascend(x, slope, 2 * ball.eps * (1 - step / STEPS))
        return best, at
