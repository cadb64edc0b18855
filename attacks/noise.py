"""Random noise of the size that an attack is allowed: the control that every table needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class Noise(Attack):
    """One random image in the ball, a control: it asks the network nothing.

    distribution: "uniform" draws uniformly from the ball; "gaussian" draws a normal direction and
    scales it until its norm is eps. restarts: draws tried until one succeeds. Both are cut to the box.
    """

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "random noise of the allowed size, a control"
    source: ClassVar[str] = "control; compare Fawzi et al. 2016, arXiv:1608.08967"
    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")

    distribution: Literal["uniform", "gaussian"] = "uniform"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise UserError(f"restarts must be >= 1, got {self.restarts}")

    @property
    def length(self) -> int:
        """No step: the start is the attack."""
        return 0

    @property
    def attempts(self) -> int:
        """The draws."""
        return self.restarts

    def calls(self, threat: Threat) -> tuple[int, int]:
        """It asks nothing."""
        return 0, 0

    def start(self, query: Query, batch: Batch) -> State:
        """The random image."""
        if self.distribution == "uniform":
            return State(batch.ball.random(batch.stream))
        return State(batch.ball.scaled(batch.stream.normal(batch.ball.x.shape[1:])))

    def step(self, query: Query, batch: Batch, state: State) -> State:
        """Nothing to do."""
        return state
