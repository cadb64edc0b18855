"""Several attacks as one: an image is robust only where it survives each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from . import registry
from .attack import Access, Attack
from .errors import UserError
from .portfolio import Portfolio
from .threat import Threat

_RANK: dict[Access, int] = {"label": 0, "score": 1, "gradient": 2}


@dataclass(frozen=True)
class WorstCase(Portfolio):
    """The worst case over several attacks, which run in turn, each on the images that those before it left.

    An image is misclassified here exactly where one of the attacks by itself misclassifies it: each begins at the clean
    image and draws the random numbers that it draws alone. A minimum-norm attack stops at the first image within eps.

    Args:
        attacks: At least one, of one kind of threat and with a norm in common; portfolios may be among them.
        given: The options that the user named, each with the place of its attack and the attack's name for it. For the
            record only.

    Raises:
        UserError: Attacks that have no threat in common, that are equal, or that do not end at a success.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = "several attacks, the worst case of each image"
    source: ClassVar[str] = "own"
    apart: ClassVar[bool] = True

    attacks: tuple[Attack, ...]
    given: Mapping[str, tuple[int, str]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        attacks = self.attacks
        if not attacks or not all(isinstance(attack, Attack) for attack in attacks):
            raise UserError(f"attack: expected instances of Attack, at least one, got {attacks!r}")
        for attack in attacks:
            if isinstance(attack, WorstCase):
                raise UserError(f"attack: {attack.name} is several attacks already; give them one by one")
            if attack.persists:
                raise UserError(f"attack: {attack.name} does not end at a success; evaluate it alone")
        check_one_kind(attacks)
        _check_different(attacks, self.labels)
        norms = common_norms(attacks)
        access = max((attack.access for attack in attacks), key=lambda access: _RANK[access])
        said = {
            "name": " + ".join(attack.name for attack in attacks),
            "norms": norms,
            "access": access,
            "targeted": all(attack.targeted for attack in attacks),
            "own_limits": attacks[0].own_limits,
            "one_target": any(attack.one_target for attack in attacks),
        }
        for key, value in said.items():
            object.__setattr__(self, key, value)

    def parts(self, threat: Threat) -> tuple[Attack, ...]:
        """The attacks in their order."""
        return self.attacks

    def resolve(self, threat: Threat) -> Self:
        """With every attack resolved."""
        return replace(self, attacks=tuple(attack.resolve(threat) for attack in self.attacks))

    @property
    def labels(self) -> tuple[str, ...]:
        """What tells the attacks apart: the name, with a number where several have it (`pgd-1`, `pgd-2`)."""
        return numbered([attack.name for attack in self.attacks])

    @property
    def eot(self) -> int | None:
        """The most draws that one of the attacks states."""
        return max((attack.eot for attack in self.attacks if attack.eot is not None), default=None)

    @property
    def checked_as(self) -> Attack:
        """The attack that decides which sanity checks apply to the survivors: that to which most of them do."""

        from .surrogate import Transfer

        def rank(attack: Attack) -> tuple[bool, bool, int, bool]:
            portfolio = isinstance(attack, Portfolio)
            searches = portfolio or (attack.length > 1 and not isinstance(attack, Transfer))
            return not attack.own_limits, searches, _RANK[attack.access], not portfolio and not attack.minimal

        return max(self.attacks, key=rank)


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number behind each that is there more than once.

    >>> numbered(["pgd", "square", "pgd"])
    ('pgd-1', 'square', 'pgd-2')
    """
    return tuple(
        f"{name}-{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    )


def attack_class(spec: str) -> Any:
    """What the name of an attack stands for. UserError for an unknown name, and for several in one text."""
    names = [name for name in re.split(r"[\s,;+]+", spec.strip()) if name]
    if len(names) > 1 and all(name in registry.names("attacks") for name in names):
        raise UserError(
            f"attack: expected one name, got {spec!r}; give several one by one: "
            f"{' '.join(f'--attack {name}' for name in names)}, or a list in Python"
        )
    return registry.load("attacks", spec, argument="attack")


def check_one_kind(attacks: Sequence[Attack | type[Attack]]) -> None:
    """Raise UserError where some have limits of their own, and others those of a norm."""
    own = ", ".join(attack.name for attack in attacks if attack.own_limits)
    others = ", ".join(attack.name for attack in attacks if not attack.own_limits)
    if own and others:
        raise UserError(
            f"attack: expected attacks of one threat, got {own} with limits of its own beside {others}, bounded by a "
            "norm; evaluate them apart"
        )


def common_norms(attacks: Sequence[Attack | type[Attack]]) -> tuple[str, ...]:
    """The norms that all of them have, in the order of the first. UserError where there is none."""
    norms = tuple(norm for norm in attacks[0].norms if all(norm in attack.norms for attack in attacks))
    if not norms and all(attack.norms for attack in attacks):
        each = "; ".join(f"{attack.name}: {', '.join(attack.norms)}" for attack in attacks)
        raise UserError(f"attack: expected attacks with a norm in common, got {each}; evaluate them apart")
    return norms


def _check_different(attacks: Sequence[Attack], labels: Sequence[str]) -> None:
    for place, attack in enumerate(attacks):
        if attack in attacks[:place]:
            raise UserError(
                f"attack: {attack.name} is given twice with the same options; leave one out, or give one of them other "
                f"options, as attack option {labels[place]}.NAME=VALUE"
            )
