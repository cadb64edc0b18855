"""Auto: gradients and random search in turn, cheapest first, the budget kept for the samples that may still fall."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from robustbench_lite.attacks.apgd_t import APGDT
from robustbench_lite.attacks.inward import Inward
from robustbench_lite.attacks.md import MD
from robustbench_lite.attacks.square import Square
from robustbench_lite.errors import unknown_name
from robustbench_lite.portfolio import Part, Portfolio
from robustbench_lite.threat import Threat

Effort = Literal["quick", "standard", "exhaustive"]


@dataclass(frozen=True)
class Auto(Portfolio):
    """The verdict of AutoAttack (Croce and Hein 2020, arXiv:2003.01690) or a lower one, for a small part of its passes.

    The reference spends most of its passes on samples that no attack moves. Here each part is short, and goes to the
    samples that the parts before brought near to the goal (`Part.hope`, a share of the clean margin, in brackets
    below); those whom a search without gradients brought nearer than gradients did are kept whatever their margin, as
    gradients mislead there. Later parts begin where the best of the earlier ones ended (`Part.warm`): random search
    from there, and a short ascent from where the search ended. Searches stop where their progress would not lead to
    the goal (`Square.patience`). What a part adapts to is the sample's own margin, so that no verdict depends on
    another sample.

    effort: what an image costs at most that is never fooled and never given up, `calls` says.
    "quick": an ascent of 20 steps and 50 queries of random search for all; then apgd-t, 2 classes of 20 steps (0.5),
    and a warm ascent (0.3).
    "standard": an ascent of 20 steps and 80 queries for all; apgd-t, 3 classes of 20 steps (0.6); 240 queries and a
    warm ascent (0.4); a warm search of 640 queries and an ascent (0.25); 1,600 queries and an ascent (0.15); apgd-t, 4
    classes of 60 steps, a warm search of 3,200 and an ascent (0.1); 3,200 queries and an ascent (0.06). In l2, where
    random search makes less way than ascents from elsewhere, what lies between apgd-t and the 1,600 queries is: a
    warm ascent (0.4), 240 queries and an ascent (0.3), another (0.2), eight of 20 steps from random points and a warm
    one (0.15); apgd-t then takes 3 classes of 40 steps, and the only warm search is one of 640 queries (0.1).
    "exhaustive": before anybody is given up it aims at nine classes in turn, 100 steps each, and asks 5,000 queries of
    random search, as the reference does; then as standard.
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "gradients and random search in turn, on the samples that may still fall"
    source: ClassVar[str] = "own; after Croce and Hein 2020, arXiv:2003.01690"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    targeted: ClassVar[bool] = False

    effort: Effort = "standard"

    def __post_init__(self) -> None:
        if self.effort not in get_args(Effort):
            raise unknown_name("effort", self.effort, get_args(Effort))

    def parts(self, threat: Threat) -> tuple[Part, ...]:
        """As the effort says."""
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
        inward = Inward(steps=45, restarts=1, radius=2 * threat.eps or None)
        longer = replace(inward, steps=60)
        outside = (
            Part(inward),
            Part(near, max_distance=1.5, warm="nearest"),
            Part(replace(inward, restarts=2), max_distance=4.0),
            Part(near, max_distance=1.3, warm="nearest"),
            Part(replace(longer, restarts=3), max_distance=1.7),
            Part(near, max_distance=1.2, warm="nearest"),
            Part(replace(longer, restarts=6), max_distance=1.3),
            Part(replace(near, steps=30), max_distance=1.15, warm="nearest"),
        )
        search = Square(steps=40, proposals=16, share=0.3, random_start=False, patience=2.0)
        l2 = threat.norm == "l2"
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
        standard = (
            Part(ascent),
            *outside,
            Part(Square(steps=40, proposals=2)),
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
        # Whoever is given up comes back no more: so what is for all stands before.
        return (*standard[:2], Part(APGDT()), Part(Square()), *standard[2:])
