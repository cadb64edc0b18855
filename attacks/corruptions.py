"""The common corruptions: not an adversary's, but what happens to photographs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from robustbench_lite.errors import UserError, unknown_name
from robustbench_lite.query import Query
from robustbench_lite.streams import Stream


@dataclass(frozen=True)
class Corruptions(Attack):
    """15 common corruptions at 5 severities (Hendrycks and Dietterich 2019, arXiv:1903.12261), one an attempt.

    kinds: names of corruptions with commas between them, or "all"; severities: of 1 (slight) to 5 (severe), alike.
    An image counts as robust where the network is right about it under all of them, so the attempts end at the first
    that fools. The accuracy under each, over all images, comes from a pass of its own: `rbl evaluate` prints it as a
    table, `robustbench_lite.cells.accuracy_by_cell` returns it. The most severe are tried first.
    What each does and where it departs from the authors' code: robustbench_lite.corruptions.

    >>> Corruptions(kinds="fog,snow", severities="1,5").cells[0]
    ('fog', '5')
    """

    name: ClassVar[str] = "corruptions"
    summary: ClassVar[str] = "15 common corruptions at 5 severities"
    source: ClassVar[str] = "Hendrycks and Dietterich 2019, arXiv:1903.12261"
    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    own_limits: ClassVar[bool] = True

    kinds: str = "all"
    severities: str = "1,2,3,4,5"

    def __post_init__(self) -> None:
        for kind in self._kinds:
            if kind not in CORRUPTIONS:
                raise unknown_name("kinds", kind, CORRUPTIONS)
        for severity in self._severities:
            if severity not in map(str, SEVERITIES):
                raise UserError(
                    f"severities must be of 1, 2, 3, 4, 5 with commas between them, got {self.severities!r}"
                )

    @property
    def _kinds(self) -> tuple[str, ...]:
        return tuple(CORRUPTIONS) if self.kinds == "all" else _listed(self.kinds)

    @property
    def _severities(self) -> tuple[str, ...]:
        return _listed(self.severities)

    @cached_property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """Corruption and severity of each attempt."""
        return tuple((kind, severity) for severity in sorted(self._severities, reverse=True) for kind in self._kinds)

    @property
    def length(self) -> int:
        """No step: the start is the corrupted image."""
        return 0

    @property
    def attempts(self) -> int:
        """Corruptions times severities."""
        return len(self.cells)

    def start(self, query: Query, batch: Batch) -> State:
        """The image under the corruption of its attempt."""
        x = batch.ball.x
        found = x.clone()
        cell = batch.attempt % len(self.cells)
        for number in sorted(set(cell.tolist())):
            rows = (cell == number).nonzero()[:, 0]
            kind, severity = self.cells[number]
            stream = Stream(batch.stream.keys[rows])
            found[rows] = corrupted(x[rows], kind, int(severity), stream)
        return State(batch.ball.project(found))

    def step(self, query: Query, batch: Batch, state: State) -> State:
        """Nothing to do."""
        return state


def _listed(text: str) -> tuple[str, ...]:
    """The different words of a list, in its order."""
    return tuple(dict.fromkeys(word.strip().replace("_", "-") for word in text.split(",")))
