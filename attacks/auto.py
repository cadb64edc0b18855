"""Auto: ascents, searches from outside the ball and random search, each on the samples where it is promising."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from robustbench_lite.attacks.apgd import APGDCE
from robustbench_lite.attacks.apgd_t import APGDT
from robustbench_lite.attacks.fab import FABT
from robustbench_lite.attacks.fmn import FMN
from robustbench_lite.attacks.inward import Inward
from robustbench_lite.attacks.jsma import JSMA
from robustbench_lite.attacks.md import MD
from robustbench_lite.attacks.pointwise import Pointwise
from robustbench_lite.attacks.sigma_zero import SigmaZero
from robustbench_lite.attacks.square import Square
from robustbench_lite.errors import unknown_name
from robustbench_lite.portfolio import Part, Portfolio
from robustbench_lite.threat import Threat

Effort = Literal["quick", "standard", "exhaustive"]


@dataclass(frozen=True)
class Auto(Portfolio):
    """Robust accuracy near that of AutoAttack (Croce and Hein 2020, arXiv:2003.01690), for a tenth of its passes.

    The reference spends most of its passes on samples that no attack moves. Here each part is short, and is run on the
    samples for which it is promising. Three families take turns. Gradient ascents, and random search, enter by the
    margin that earlier parts reached (`Part.hope`, a share of the clean margin); later parts begin where the best of
    the earlier ones ended, and searches stop where their progress would not lead to the goal (`Square.patience`). The
    third family starts outside the ball (`inward`): a network masks its gradients in a threat that it was not trained
    for, and ascent from inside stalls. After one restart for all, it enters where its nearest adversarial example is
    within a multiple of eps (`Part.max_distance`) and nearer than the ascents promise; short ascents then begin at that
    example, projected into the ball. What a part adapts to is the sample's own record, so that no verdict depends on
    another sample.

    Args:
        effort: The largest cost of a sample that survives; `calls` gives it. "quick": one ascent for all, a few
            queries, and a targeted ascent. "standard": the parts as listed by `parts`. "exhaustive": for every sample
            also AutoAttack's own targeted ascents and searches.

    In l1 the ascents are those of AutoAttack for l1, in l0 there are minimum-norm attacks alone (`sigma-zero`, `fmn`).
    In linf and l2 it was measured at or below AutoAttack, in l1 above it (docs/benchmarks.md).
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "ascents, search from outside and random search, where they are promising"
    source: ClassVar[str] = "own; after Croce and Hein 2020, arXiv:2003.01690"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")
    targeted: ClassVar[bool] = False

    effort: Effort = "standard"

    def __post_init__(self) -> None:
        if self.effort not in get_args(Effort):
            raise unknown_name("effort", self.effort, get_args(Effort))

    def parts(self, threat: Threat) -> tuple[Part, ...]:
        """As the effort says."""
        if threat.norm == "l0":
            return self._l0()
        if threat.norm == "l1":
            return self._l1(threat)
        ascent = MD(steps=20, restarts=1, first_stage=0.0)
        near = replace(ascent, steps=10, step_share=0.3, random_start=False)
        polish = replace(ascent, step_share=1.0, random_start=False)
        if self.effort == "quick":
            return (
                Part(ascent),
                Part(Square(steps=50)),
                Part(APGDT(steps=20, classes=2), hope=0.5),
                Part(polish, hope=0.3, warm="margin"),
            )
        l2 = threat.norm == "l2"
        inward = Inward(steps=45 if l2 else 30, restarts=1, radius=2 * threat.eps or None)
        longer = replace(inward, steps=60)
        outside: tuple[Part, ...] = (
            Part(inward),
            Part(near, max_distance=1.5 if l2 else 1.2, warm="nearest"),
        )
        if l2:
            outside += (
                Part(replace(inward, restarts=2), max_distance=4.0),
                Part(near, max_distance=1.3, warm="nearest"),
                Part(replace(longer, restarts=3), max_distance=1.4),
                Part(near, max_distance=1.2, warm="nearest"),
                Part(replace(longer, restarts=6), max_distance=1.12),
                Part(replace(near, steps=30), max_distance=1.1, warm="nearest"),
            )
        else:
            outside += (
                Part(replace(inward, restarts=2), max_distance=1.1),
                Part(near, max_distance=1.1, warm="nearest"),
            )
        search = Square(steps=40, proposals=16, share=0.3, random_start=False, patience=2.0)
        middle: tuple[Part, ...]
        if l2:
            middle = (
                Part(polish, hope=0.4, warm="margin"),
                Part(Square(steps=60, proposals=4), hope=0.3),
                Part(polish, hope=0.3, warm="margin"),
                Part(polish, hope=0.2, warm="margin"),
                Part(MD(steps=20, restarts=8), hope=0.15),
                Part(polish, hope=0.15, warm="margin"),
            )
        else:
            middle = (
                Part(Square(steps=60, proposals=4), hope=0.4),
                Part(polish, hope=0.4, warm="margin"),
                Part(search, hope=0.25, warm="margin"),
                Part(polish, hope=0.25, warm="margin"),
            )
        few = Part(Square(steps=40, proposals=2))
        standard = (
            Part(ascent),
            *((*outside, few) if l2 else (few, *outside)),
            Part(APGDT(steps=20, classes=3), hope=0.6),
            *middle,
            Part(Square(steps=100, proposals=16, patience=2.0), hope=0.15),
            Part(polish, hope=0.15, warm="margin"),
            Part(APGDT(steps=40, classes=3) if l2 else APGDT(steps=60, classes=4), hope=0.1),
            Part(search if l2 else replace(search, steps=100, proposals=32), hope=0.1, warm="margin"),
            Part(polish, hope=0.1, warm="margin"),
            Part(Square(steps=100, proposals=32, patience=2.0), hope=0.06),
            Part(polish, hope=0.06, warm="margin"),
        )
        if self.effort == "standard":
            return standard
        return (standard[0], Part(APGDT()), Part(Square()), *standard[1:])

    def _l1(self, threat: Threat) -> tuple[Part, ...]:
        """AutoAttack's attacks for l1, shortened, and the search from outside."""
        ascent = APGDCE(steps=40)
        if self.effort == "quick":
            return Part(ascent), Part(APGDT(steps=20, classes=2), hope=0.5)
        inward = Inward(steps=60, restarts=1, radius=30 * threat.eps or None, shrink=0.75, alpha_max=0.1, eta=2.5)
        standard = (
            Part(ascent),
            Part(inward),
            Part(replace(inward, restarts=2), max_distance=3.0),
            Part(APGDT(steps=40, classes=3), hope=0.6),
            Part(replace(inward, restarts=4), max_distance=1.5),
            Part(replace(inward, steps=80, restarts=6), max_distance=1.2),
            Part(replace(ascent, steps=100, restarts=2), hope=0.3),
            Part(Square(steps=100, proposals=4), hope=0.3),
            Part(APGDT(steps=100, classes=4), hope=0.15),
        )
        if self.effort == "standard":
            return standard
        return (standard[0], Part(APGDT(classes=5)), Part(FABT()), Part(Square()), *standard[1:])

    def _l0(self) -> tuple[Part, ...]:
        """Minimum-norm attacks: short for all, longer for the images that they came near."""
        quick = Part(SigmaZero(steps=60)), Part(FMN(steps=30))
        if self.effort == "quick":
            return quick
        standard = (
            *quick,
            Part(SigmaZero(steps=200), max_distance=3.0),
            Part(FMN(steps=100), max_distance=2.0),
            Part(SigmaZero(steps=400), max_distance=1.5),
        )
        if self.effort == "standard":
            return standard
        return (*standard, Part(SigmaZero()), Part(JSMA()), Part(Pointwise()))
