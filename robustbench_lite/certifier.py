"""The contract of a method of certification: for every image how far its class is proved to stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .bounds import Bounds, Method
from .defense import InferenceDefense, wrap_all
from .errors import UserError
from .network import Network, Noise
from .streams import Stream
from .threat import Threat

_GRAIN = 2.0**24  # of a logit


@dataclass(frozen=True)
class Proofs:
    """What is proved of images, a row each.

    prediction: (n,) int64, the class; -1 where the method abstains. radius: (n,) float64, within which no image has
    another class; 0 where nothing is proved. bound: (n,) float64, what the proof stands on, NaN where none was made.
    """

    prediction: Tensor
    radius: Tensor
    bound: Tensor


@dataclass(frozen=True)
class Problem:
    """What is certified: a network behind its defenses, on images of one shape, in evaluation mode on its device.

    network: the same, as it is asked for its answers.
    """

    module: nn.Module
    defenses: Sequence[InferenceDefense]
    network: Network
    shape: tuple[int, ...]
    threat: Threat


class Prover(Protocol):
    """A method made ready for one network."""

    def __call__(self, x: Tensor, y: Tensor, stream: Stream, *, tick: Callable[[float], None]) -> Proofs:
        """Proofs for images x (n, C, H, W) with labels y (n,), each with a stream of random numbers of its own.

        tick: to be told how many images more are done, in parts of one where one takes long; it may raise.
        """


@dataclass(frozen=True)
class Certifier:
    """Base of every method: a frozen dataclass whose fields are its options.

    Class attributes: name, summary, source (paper). norms: that it certifies, its default first. per_image: it finds a
    radius of its own for every image, whatever eps is; else the radius of what it certifies is eps. one_by_one: images
    take so long that each is done, and kept, by itself.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    norms: ClassVar[tuple[str, ...]]
    per_image: ClassVar[bool] = False
    one_by_one: ClassVar[bool] = False

    def check(self, defenses: Sequence[InferenceDefense], threat: Threat) -> None:
        """Raise UserError for what it cannot certify whatever the network is."""
        if other := [defense.name for defense in defenses if defense.rejects or defense.fit_samples]:
            raise UserError(
                f"method: {self.name} certifies what classifies every image and learned nothing beside its weights, "
                f"and {other[0]} does not; leave it out"
            )
        if threat.norm not in self.norms:
            raise UserError(f"norm: method {self.name} certifies {', '.join(self.norms)}, got {threat.norm!r}")

    def doubts(self, defenses: Sequence[InferenceDefense], threat: Threat) -> list[str]:
        """Settings that leave little to find whatever the network is, one line each, to be told before the run."""
        del defenses
        if threat.eps == 0:
            return ["eps is 0: certified accuracy is clean accuracy, as no image may change"]
        return []

    def told(self, defenses: Sequence[InferenceDefense]) -> dict[str, Any]:
        """What a record says of the method beside its options."""
        del defenses
        return {}

    def prepare(self, problem: Problem) -> Prover:
        """The method for this network. Raises UserError for a network that it cannot certify."""
        raise NotImplementedError


@dataclass(frozen=True)
class Bounding(Certifier):
    """A method that bounds what the network can answer in the ball: certified where the label's margin is above 0.

    bound: the least margin of the label's logit over all others, less what float32 may be off.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")
    method: ClassVar[Method]

    def check(self, defenses: Sequence[InferenceDefense], threat: Threat) -> None:
        """Bounds are of what is computed, not of what is drawn."""
        super().check(defenses, threat)
        if drawn := [defense.name for defense in defenses if defense.randomized]:
            raise UserError(f"method: {self.name} cannot bound the randomised defense {drawn[0]}; leave it out")

    def prepare(self, problem: Problem) -> Prover:
        """The network's layers."""
        bounds = Bounds(wrap_all(problem.module, problem.defenses), problem.shape, method=self.method)

        def prove(x: Tensor, y: Tensor, stream: Stream, *, tick: Callable[[float], None]) -> Proofs:
            prediction = problem.network.logits(x, Noise(stream, y * 0)).argmax(1)
            radius = x.new_zeros(len(x)).double()
            bound = radius + float("nan")
            right = (prediction == y).nonzero()[:, 0]
            tick(len(x) - len(right))
            for some in torch.split(right, bounds.rows):
                _, least = bounds.certified(x[some], y[some], norm=problem.threat.norm, eps=problem.threat.eps)
                # Rounded down, beyond what the company of other images may change in the last bits.
                least = torch.floor(least * _GRAIN) / _GRAIN
                bound[some] = least
                radius[some] = problem.threat.eps * (least > 0).double()
                tick(len(some))
            return Proofs(prediction, radius, bound)

        return prove
