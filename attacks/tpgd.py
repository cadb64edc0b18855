"""Ascent of the divergence from the clean prediction, the inner loop of TRADES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_lite.attack import Batch
from robustbench_lite.errors import UserError
from robustbench_lite.losses import divergence
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat

from .ascent import Ascent, AscentState


@dataclass(frozen=True)
class TPGDState(AscentState):
    """`clean`: (N, K), the logits of the image."""

    clean: Tensor


@dataclass(frozen=True)
class TPGD(Ascent):
    """Steepest ascent of KL(p(x) || p(x')), blind to the label (Zhang et al. 2019, arXiv:1901.08573, eq. 5).

    steps: gradients, >= 1. step_size: length of a step in the threat's norm, in pixels of [0, 1], > 0; default 2.25
    eps / steps, near the authors' 0.007 at eps 0.031 and 10 steps. noise: standard deviation of the normal numbers
    added at the start, where the divergence has no slope, in pixels, >= 0. restarts: starts tried until one succeeds.
    Departure: the divergence is taken in float64, so that it keeps a slope where a prediction is sure.
    """

    name: ClassVar[str] = "tpgd"
    summary: ClassVar[str] = "ascent of the divergence from the clean prediction (TRADES)"
    source: ClassVar[str] = "Zhang et al. 2019, arXiv:1901.08573"
    targeted: ClassVar[bool] = False
    reach: ClassVar[float] = 2.25

    noise: float = 1e-3
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noise >= 0:
            raise UserError(f"noise must be >= 0, got {self.noise:g}")

    def calls(self, threat: Threat) -> tuple[int, int]:
        """A gradient a step, and the logits of the image at each start."""
        forwards, backwards = super().calls(threat)
        return forwards + self.attempts, backwards

    def begin(self, batch: Batch) -> Tensor:
        """Next to the image."""
        x = batch.ball.x
        return batch.ball.project(x + self.noise * batch.stream.normal(x.shape[1:]))

    def start(self, query: Query, batch: Batch) -> TPGDState:
        """Next to the image, whose logits are asked."""
        still = super().start(query, batch)
        return TPGDState(still.candidate, still.velocity, query.logits(batch.ball.x))

    def step(self, query: Query, batch: Batch, state: TPGDState) -> AscentState:  # type: ignore[override]
        """One step up the divergence."""
        return self.moved(batch, state, query.gradient(state.candidate, _divergence, state.clean).gradient)


def _divergence(logits: Tensor, _y: Tensor, _targets: Tensor | None, clean: Tensor) -> Tensor:
    return divergence(clean, logits)
