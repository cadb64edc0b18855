"""A portfolio that states what is not so is found out; an honest one is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from robustbench_lite.attack import Access, Attack
from robustbench_lite.attacks.fgsm import FGSM
from robustbench_lite.attacks.noise import Noise
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.conformance import check_attack, failed
from robustbench_lite.portfolio import Portfolio
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class Honest(Portfolio):
    """Noise, then gradients."""

    name: ClassVar[str] = "honest"
    summary: ClassVar[str] = "noise, then gradients"
    source: ClassVar[str] = "this test"

    def parts(self, threat: Threat) -> tuple[Attack, ...]:
        return Noise(), PGD(steps=4)


@dataclass(frozen=True)
class NoParts(Honest):
    def parts(self, threat: Threat) -> tuple[Attack, ...]:
        return ()


@dataclass(frozen=True)
class Nested(Honest):
    def parts(self, threat: Threat) -> tuple[Attack, ...]:
        return Noise(), Honest()


@dataclass(frozen=True)
class Peeks(Honest):
    access: ClassVar[Access] = "score"


@dataclass(frozen=True)
class LinfOnly(FGSM):
    norms: ClassVar[tuple[str, ...]] = ("linf",)


@dataclass(frozen=True)
class NoNorm(Honest):
    def parts(self, threat: Threat) -> tuple[Attack, ...]:
        return (LinfOnly(),)


@dataclass(frozen=True)
class Unwritten(Portfolio):
    """Says nothing of its parts."""

    name: ClassVar[str] = "unwritten"
    summary: ClassVar[str] = "nothing"
    source: ClassVar[str] = "this test"


def test_an_honest_one_passes() -> None:
    assert failed(check_attack(Honest, shapes=((1, 6, 6),))) == []


@pytest.mark.parametrize(
    ("liar", "word"),
    [
        (NoParts, "parts must return"),
        (Nested, "a part is a portfolio itself"),
        (Peeks, "asks for gradient access, it declares score"),
        (NoNorm, "has no l2"),
        (Unwritten, "parts is not written"),
    ],
)
def test_a_lying_one_is_found_out(liar: type[Portfolio], word: str) -> None:
    found = failed(check_attack(liar, shapes=((1, 6, 6),)))
    assert found
    assert word in str(found[0])
