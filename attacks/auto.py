"""Auto: gradients and random search in turn, cheapest first, the budget kept for the samples that may still fall."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from robustbench_lite.attacks.apgd_t import APGDT
from robustbench_lite.attacks.md import MD
from robustbench_lite.attacks.square import Square
from robustbench_lite.portfolio import Part, Portfolio
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class Auto(Portfolio):
    """The verdict of a long portfolio for a small part of its passes; our own.

    effort: "quick", "standard" or "exhaustive".
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "gradients and random search in turn, on the samples that may still fall"
    source: ClassVar[str] = "own"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    targeted: ClassVar[bool] = False

    effort: Literal["quick", "standard", "exhaustive"] = "standard"

    def parts(self, threat: Threat) -> tuple[Part, ...]:
        """As the effort says."""
        ascent = MD(steps=20, restarts=1, first_stage=0.0)
        polish = replace(ascent, step_size=threat.eps or None, random_start=False)
        search = Square(steps=250, proposals=8, share=0.3, random_start=False)
        return (
            Part(ascent),
            Part(Square(steps=100)),
            Part(APGDT(steps=20, classes=3), hope=0.6),
            Part(Square(steps=150, proposals=2), hope=0.4),
            Part(polish, hope=0.4, warm=True),
            Part(search, hope=0.25, warm=True),
            Part(polish, hope=0.25, warm=True),
        )
