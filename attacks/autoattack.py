"""AutoAttack: the reference portfolio, call for call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from robustbench_lite.attack import Attack
from robustbench_lite.attacks.apgd import APGDCE, APGDDLR
from robustbench_lite.attacks.apgd_t import APGDT
from robustbench_lite.attacks.fab import FAB, FABT
from robustbench_lite.attacks.square import Square
from robustbench_lite.errors import unknown_name
from robustbench_lite.portfolio import Portfolio
from robustbench_lite.threat import Threat

Version = Literal["standard", "plus", "rand"]


@dataclass(frozen=True)
class AutoAttack(Portfolio):
    """Croce and Hein 2020 (arXiv:2003.01690): four attacks of fixed hyperparameters, each on what the others left.

    version: "standard", `apgd-ce`, `apgd-t` on 9 classes, `fab-t` on 9 classes and `square` of 5,000 queries, 100
    steps each (in l1 5 restarts of the first and 5 classes for the second, Croce and Hein 2021, arXiv:2103.01208);
    "plus", `apgd-ce`, `apgd-dlr` and `fab` of 5 restarts each, `square`, `apgd-t` and `fab-t`; "rand", for randomised
    defenses, `apgd-ce` and `apgd-dlr` with 20 draws averaged for each query.
    Departures: those of the parts, above all that `square` draws for each sample apart.
    """

    name: ClassVar[str] = "autoattack"
    summary: ClassVar[str] = "the reference: apgd-ce, apgd-t, fab-t and square in turn"
    source: ClassVar[str] = "Croce and Hein 2020, arXiv:2003.01690"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    targeted: ClassVar[bool] = False

    version: Version = "standard"

    def __post_init__(self) -> None:
        if self.version not in get_args(Version):
            raise unknown_name("version", self.version, get_args(Version))

    @property
    def eot(self) -> int | None:
        """Draws of a randomised network for each query."""
        return 20 if self.version == "rand" else None

    def parts(self, threat: Threat) -> tuple[Attack, ...]:
        """The attacks of the version."""
        if self.version == "rand":
            return APGDCE(), APGDDLR()
        if self.version == "plus":
            return APGDCE(restarts=5), APGDDLR(restarts=5), FAB(restarts=5), Square(), APGDT(), FABT()
        if threat.norm == "l1":
            return APGDCE(restarts=5), APGDT(classes=5), FABT(), Square()
        return APGDCE(), APGDT(), FABT(), Square()
