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
    for, and ascent from inside stalls. After one restart for all (in l2 one from noise and three from the clean image,
    towards a class each), it enters where its nearest adversarial example is
    within a multiple of eps (`Part.max_distance`) and nearer than the ascents promise; short ascents then begin at that
    example, projected into the ball. Where ascents and searches from outside agree how far the nearest adversarial
    example is, neither is masked, and parts that are there to find that out are left out (`Part.doubted`). What a part
    adapts to is the sample's own record, so that no verdict depends on another sample.

    Args:
        effort: The largest cost of a sample that survives; `calls` gives it. "quick": one ascent for all, a few
            queries, and a targeted ascent. "standard": the parts as listed by `parts`. "exhaustive": for every sample
            also AutoAttack's own targeted ascents and searches.

    In l1 the ascents are those of AutoAttack for l1, in l0 there are minimum-norm attacks alone (`sigma-zero`,
    `pointwise`, `fmn`).
    docs/benchmarks.md compares it with AutoAttack on networks attacked within and beyond what they were trained for.
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
            return self._l1()
        ascent = MD(steps=20, restarts=1, first_stage=0.0)
        polish = replace(ascent, step_share=1.0, random_start=False)
        if self.effort == "quick":
            return (
                Part(ascent),
                Part(Square(steps=50)),
                Part(APGDT(steps=20, classes=2), hope=0.5),
                Part(polish, hope=0.3, warm="margin"),
            )
        near = replace(ascent, steps=10, step_share=0.3, random_start=False)
        search = Square(steps=40, proposals=16, share=0.3, random_start=False, patience=2.0)
        standard = (Part(ascent), *(self._l2 if threat.norm == "l2" else self._linf)(near, polish, search))
        if self.effort == "standard":
            return standard
        return (standard[0], Part(APGDT()), Part(Square()), *standard[1:])

    def _linf(self, near: MD, polish: MD, search: Square) -> tuple[Part, ...]:
        inward = Inward(steps=30, restarts=1, reach=2)
        return (
            Part(inward),
            Part(near, max_distance=1.2, warm="nearest"),
            Part(Square(steps=40, proposals=1), doubted=True),
            Part(replace(inward, restarts=2), max_distance=1.1, doubted=True),
            Part(near, max_distance=1.1, warm="nearest"),
            Part(APGDT(steps=20, classes=3), hope=0.45),
            Part(Square(steps=60, proposals=4), hope=0.4, doubted=True),
            Part(polish, hope=0.4, warm="margin"),
            Part(search, hope=0.25, doubted=True, warm="margin"),
            Part(polish, hope=0.25, warm="margin"),
            Part(Square(steps=100, proposals=16, patience=2.0), hope=0.15, doubted=True),
            Part(polish, hope=0.15, warm="margin"),
            Part(APGDT(steps=40, classes=4), hope=0.06),
            Part(replace(search, steps=100), hope=0.06, warm="margin"),
            Part(polish, hope=0.1, warm="margin"),
            Part(Square(steps=100, proposals=16, patience=2.0), hope=0.04),
            Part(polish, hope=0.06, warm="margin"),
        )

    def _l2(self, near: MD, polish: MD, search: Square) -> tuple[Part, ...]:
        """Searches from noise and from the clean image in turn: each finds what the other does not."""
        noise = Inward(steps=30, restarts=1, reach=2, spread=False)
        clean = Inward(steps=20, restarts=3, random_start=False, shrink=0.5, eta=1.05)
        closer = replace(clean, restarts=1, shrink=0.85)
        return (
            Part(noise),
            Part(clean),
            Part(near, max_distance=1.5, warm="nearest"),
            Part(replace(noise, restarts=2), max_distance=2.0, doubted=True),
            Part(near, max_distance=1.3, warm="nearest"),
            Part(replace(clean, restarts=6), max_distance=1.25, doubted=True),
            Part(replace(noise, restarts=4), max_distance=1.2, doubted=True),
            Part(closer, max_distance=1.15, warm="nearest"),
            Part(near, max_distance=1.2, warm="nearest"),
            Part(replace(noise, steps=45, restarts=4), max_distance=1.08, doubted=True),
            Part(replace(near, steps=30), max_distance=1.1, warm="nearest"),
            Part(Square(steps=40, proposals=1), doubted=True),
            Part(APGDT(steps=20, classes=3), hope=0.25),
            Part(polish, hope=0.4, warm="margin"),
            Part(Square(steps=60, proposals=4), hope=0.3, doubted=True),
            Part(polish, hope=0.2, warm="margin"),
            Part(MD(steps=20, restarts=8), hope=0.08),
            Part(polish, hope=0.15, warm="margin"),
            Part(Square(steps=100, proposals=16, patience=2.0), hope=0.15, doubted=True),
            Part(APGDT(steps=40, classes=3), hope=0.06),
            Part(search, hope=0.06, warm="margin"),
            Part(polish, hope=0.1, warm="margin"),
        )

    def _l1(self) -> tuple[Part, ...]:
        """Short ascents of APGD, of which restarts bring more than steps, and the search from outside."""
        ascent = APGDCE(steps=15)
        inward = Inward(steps=60, restarts=1, reach=30, shrink=0.75, alpha_max=0.1, eta=2.5)
        first = Part(replace(ascent, restarts=2)), Part(replace(inward, steps=50))
        if self.effort == "quick":
            return first
        standard = (
            *first,
            # A search that has not moved from its start may do so from another.
            Part(replace(inward, reach=60), max_distance=99.0),
            Part(replace(ascent, restarts=4), hope=0.5),
            Part(replace(ascent, steps=100), hope=0.35),
            Part(replace(inward, restarts=2), max_distance=2.0),
            Part(replace(inward, restarts=4), max_distance=1.3),
            Part(replace(ascent, steps=25, restarts=4), hope=0.2),
            Part(APGDT(steps=25, classes=3), hope=0.2),
            Part(replace(ascent, steps=60, restarts=5), hope=0.12),
            Part(APGDT(steps=80, classes=3), hope=0.06),
        )
        if self.effort == "standard":
            return standard
        return (standard[0], Part(APGDT(classes=5)), Part(FABT()), Part(Square()), *standard[1:])

    def _l0(self) -> tuple[Part, ...]:
        """Minimum-norm attacks in turn: by gradients, and from outside by scores, which no masked gradient misleads."""
        search = Pointwise(steps=400, tries=100)
        quick = Part(SigmaZero(steps=40)), Part(search)
        if self.effort == "quick":
            return quick
        standard = (
            *quick,
            Part(SigmaZero(steps=100), max_distance=2.0),
            Part(replace(search, restarts=2), max_distance=2.0),
            Part(FMN(steps=50), max_distance=1.4),
            Part(SigmaZero(steps=300), max_distance=1.4),
            Part(replace(search, restarts=4), max_distance=1.3),
        )
        if self.effort == "standard":
            return standard
        return (*standard, Part(SigmaZero()), Part(JSMA()), Part(Pointwise()))
