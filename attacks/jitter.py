"""Jitter: ascent of the distance between scaled, noisy probabilities and the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lite.attack import Batch
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.streams import Stream

from .ascent import Ascent


@dataclass(frozen=True)
class Jitter(Ascent):
    """Steepest ascent of ||softmax(scale z / max|z|) + noise - onehot(y)||^2 (Schwinn et al. 2021, arXiv:2105.10304).

    steps: gradients, >= 1. step_size: length of a step in the threat's norm, in pixels of [0, 1], > 0; default 2.5
    eps / steps. scale: largest logit after scaling (the paper's alpha), > 0. std: standard deviation of the normal
    noise on the probabilities, >= 0. random_start: start from a uniform point of the ball, else from the image.
    restarts: runs with other random numbers until one succeeds, >= 1.
    Departure: the paper divides the loss by the perturbation's norm once the image is fooled, to make it smaller;
    here a sample that is fooled leaves. With a class aimed at the distance from that class falls.
    """

    name: ClassVar[str] = "jitter"
    summary: ClassVar[str] = "ascent of the distance between scaled, noisy probabilities and the label"
    source: ClassVar[str] = "Schwinn et al. 2021, arXiv:2105.10304"
    reach: ClassVar[float] = 2.5

    scale: float = 10.0
    std: float = 0.1
    random_start: bool = True
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise UserError(f"scale must be > 0, got {self.scale:g}")
        if not self.std >= 0:
            raise UserError(f"std must be >= 0, got {self.std:g}")

    def begin(self, batch: Batch) -> Tensor:
        """A random point of the ball, or the image."""
        return batch.ball.random(batch.stream) if self.random_start else super().begin(batch)

    def ask(self, query: Query, batch: Batch, x: Tensor) -> Tensor:
        """The gradient of the noisy distance."""
        return query.gradient(x, self._distance, batch.stream.child("jitter").keys, batch.step).gradient

    def _distance(self, logits: Tensor, y: Tensor, targets: Tensor | None, keys: Tensor, draw: Tensor) -> Tensor:
        # In float64, so that a sure prediction keeps a slope.
        z = logits.double()
        probabilities = (self.scale * z / z.abs().amax(1, keepdim=True).clamp_min(1e-12)).softmax(1)
        noise = Stream(keys).normal((z.shape[1],), draw=draw)
        goal = torch.nn.functional.one_hot(y if targets is None else targets, z.shape[1])
        distance = (probabilities + self.std * noise - goal).square().sum(1)
        return distance if targets is None else -distance
