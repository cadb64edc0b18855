"""Randomized smoothing: a radius in l2 from votes over noisy copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..certifier import Certifier, Problem, Proofs, Prover
from ..defense import InferenceDefense
from ..errors import UserError
from ..network import Noise
from ..streams import Stream
from ..threat import Threat


@dataclass(frozen=True)
class Smoothing(Certifier):
    """Certified radius of a network behind `randomized-smoothing` (Cohen et al. 2019, theorem 1 and CERTIFY).

    n0: noisy copies that choose the class. n: others, that count how often it wins. alpha: the chance that an image's
    radius is too large. copies: how many are computed at once. With a share of at least p (Clopper and Pearson 1934,
    one-sided, at 1 - alpha) the radius is sigma Phi^-1(p); where p is at most 1/2 it abstains. bound: p.
    The theorem is of noise without limits: noisy copies leave [0, 1].
    """

    name: ClassVar[str] = "smoothing"
    summary: ClassVar[str] = "a radius from votes over noisy copies"
    source: ClassVar[str] = "Cohen et al. 2019, arXiv:1902.02918"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    per_image: ClassVar[bool] = True
    one_by_one: ClassVar[bool] = True

    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    copies: int = 500

    def __post_init__(self) -> None:
        for name in ("n0", "n", "copies"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.alpha < 1:
            raise UserError(f"alpha must be in (0, 1), got {self.alpha:g}")
        if (share := lower_bound(self.n, self.n, self.alpha)) <= 0.5:
            least = math.floor(math.log(self.alpha) / math.log(0.5)) + 1
            raise UserError(
                f"n must be >= {least} for alpha {self.alpha:g}, got {self.n}: where all {self.n} noisy copies agree "
                f"they prove a share of {share:.2g} only, and no image is certified at 1/2 or below"
            )

    def check(self, defenses: Sequence[InferenceDefense], threat: Threat) -> None:
        """The first defense that an image meets must be one that adds Gaussian noise and votes."""
        super().check(defenses, threat)
        if not defenses or defenses[0].sigma_of_votes is None:
            first = f"the first defense is {defenses[0].name}" if defenses else "there is no defense"
            raise UserError(
                f"method: smoothing certifies a vote over noisy copies and {first}; "
                "give --defense randomized-smoothing before others"
            )
        if any(defense.randomized for defense in defenses[1:]):
            raise UserError("method: smoothing certifies one source of noise; leave out the other randomised defenses")

    def doubts(self, defenses: Sequence[InferenceDefense], threat: Threat) -> list[str]:
        """An eps beyond the largest radius that so many copies can prove."""
        sigma = defenses[0].sigma_of_votes
        assert sigma is not None
        largest = radius_of(lower_bound(self.n, self.n, self.alpha), sigma)
        if threat.eps <= largest:
            return super().doubts(defenses, threat)
        return [
            f"eps {threat.eps:g} is above {largest:.3g}, the largest radius that n = {self.n} noisy copies can prove "
            f"at sigma {sigma:g} and alpha {self.alpha:g}: certified accuracy at eps will be 0; raise n or sigma, or "
            "take a smaller eps"
        ]

    def told(self, defenses: Sequence[InferenceDefense]) -> dict[str, Any]:
        """The noise of the vote."""
        return {"sigma": defenses[0].sigma_of_votes}

    def prepare(self, problem: Problem) -> Prover:
        """Votes of the network behind its defenses."""
        sigma = problem.defenses[0].sigma_of_votes
        assert sigma is not None

        def prove(x: Tensor, y: Tensor, stream: Stream, *, tick: Callable[[float], None]) -> Proofs:
            del y
            rows = [
                self._one(problem, sigma, x[i : i + 1], Stream(stream.keys[i : i + 1]), tick) for i in range(len(x))
            ]
            prediction, radius, bound = zip(*rows, strict=True)
            return Proofs(
                torch.tensor(prediction, device=x.device),
                torch.tensor(radius, dtype=torch.float64, device=x.device),
                torch.tensor(bound, dtype=torch.float64, device=x.device),
            )

        return prove

    def _one(
        self, problem: Problem, sigma: float, x: Tensor, stream: Stream, tick: Callable[[float], None]
    ) -> tuple[int, float, float]:
        """Class (-1 where it abstains), radius and lower bound of the class's share, of one image."""
        every = self.n0 + self.n
        chosen = self._counts(problem, x, stream.child("choose"), self.n0, lambda k: tick(k / every)).argmax()
        count = self._counts(problem, x, stream.child("count"), self.n, lambda k: tick(k / every))[chosen]
        share = lower_bound(int(count), self.n, self.alpha)
        radius = radius_of(share, sigma)
        return (int(chosen) if radius > 0 else -1), radius, share

    def _counts(self, problem: Problem, x: Tensor, stream: Stream, count: int, tick: Callable[[int], None]) -> Tensor:
        """How often each class wins among so many noisy copies, (K,); copy d has draw d of the image's stream."""
        total: Tensor | None = None
        for first in range(0, count, self.copies):
            draw = torch.arange(first, min(first + self.copies, count), device=x.device)
            noise = Noise(Stream(stream.keys.expand(len(draw))), draw)
            logits = problem.network.logits(x.expand(len(draw), *x.shape[1:]), noise, draws=1)
            votes = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
            total = votes if total is None else total + votes
            tick(len(draw))
        assert total is not None
        return total


def lower_bound(count: int, n: int, alpha: float) -> float:
    """The one-sided Clopper-Pearson bound of a share that came `count` times in `n`: too high with chance alpha.

    >>> round(lower_bound(999, 1000, 0.001), 5)
    0.9908
    """
    from scipy.stats import beta

    return float(beta.ppf(alpha, count, n - count + 1)) if count else 0.0


def radius_of(share: float, sigma: float) -> float:
    """sigma Phi^-1(share), within which a class that wins at least this share keeps winning; 0 up to a share of 1/2.

    >>> round(radius_of(0.9908, 0.25), 4), radius_of(0.5, 1.0)
    (0.5893, 0.0)
    """
    from scipy.stats import norm

    return sigma * float(norm.ppf(share)) if share > 0.5 else 0.0
