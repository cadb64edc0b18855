"""Images whose features are those of others: the constructions of one kind of feature alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..network import Network, Noise
from ..rows import per_row
from ..streams import Stream
from .construction import Block, Construction, Made, Workshop


@dataclass(frozen=True)
class Matching(Construction):
    """min |g(x_r) - g(x)|_2 over x_r in [0, 1], from another image (Ilyas et al. 2019, eq. 6, and appendix C.3).

    g: the features before the network's last linear layer. x_r starts as a training image drawn independently of x
    and y, so that what is not in g is not in x_r either; it keeps the label y.
    steps: of gradient descent, >= 1; the paper's 1,000. step_size: l2 length of each, in pixels of [0, 1], > 0; the
    paper's 0.1. Departure: of all iterates the nearest in g is kept; steps of one length overshoot at the end.
    """

    steps: int = 1000
    step_size: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if not self.step_size > 0:
            raise UserError(f"step_size must be > 0, got {self.step_size:g}")

    def check(self, workshop: Workshop) -> None:
        """The network must have a last linear layer."""
        _ = workshop.features

    def make(self, workshop: Workshop, block: Block) -> Made:
        """The images, each with the label of the image whose features it has."""
        place = block.stream.child("start").integers(len(workshop.data))
        start = workshop.data.images(place.cpu()).to(block.x.device)
        network = workshop.features
        goal = network.logits(block.x, _noise(block.stream))
        images, first, last = match(
            network, start, goal, steps=self.steps, step_size=self.step_size, stream=block.stream
        )
        passes = torch.full_like(block.y, self.steps)
        notes = {"start_index": place, "start_feature_distance": first, "feature_distance": last}
        return Made(images, block.y, passes + 2, passes, notes=notes)


def match(
    network: Network, start: Tensor, goal: Tensor, *, steps: int, step_size: float, stream: Stream
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, C, H, W) with features near `goal` (N, F), by descent from `start` in steps of one l2 length.

    network: images to features. Returns the nearest of all iterates, and the distances |g - goal|_2, (N,) float64, of
    the first and of that one. Costs `steps` forward and backward passes an image, and a forward.
    """
    candidate = start.clone()
    nearest, best = start.clone(), torch.full((len(start),), float("inf"), dtype=torch.float64, device=start.device)
    first = best
    for step in range(steps):
        gradient, features = network.gradient(candidate, _noise(stream), _distance, goal)
        distance = _length(features, goal)
        first = distance if step == 0 else first
        _keep(nearest, best, candidate, distance)
        length = gradient.flatten(1).double().square().sum(1).sqrt()
        move = torch.where(length > 0, step_size / length.clamp_min(1e-300), 0.0).to(gradient.dtype)
        candidate = (candidate - gradient * per_row(move, gradient)).clamp_(0, 1)
    _keep(nearest, best, candidate, _length(network.logits(candidate, _noise(stream)), goal))
    return nearest, first, best


def _keep(nearest: Tensor, best: Tensor, candidate: Tensor, distance: Tensor) -> None:
    nearer = distance < best
    nearest[nearer], best[nearer] = candidate[nearer], distance[nearer]


def _distance(features: Tensor, goal: Tensor) -> Tensor:
    # The square: its gradient points the same way and is there at distance 0 too.
    return (features - goal).square().sum(1)


def _length(features: Tensor, goal: Tensor) -> Tensor:
    return (features.double() - goal.double()).square().sum(1).sqrt()


def _noise(stream: Stream) -> Noise:
    return Noise(stream, torch.zeros_like(stream.keys))
