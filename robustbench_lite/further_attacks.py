"""Whole attacks of a second look: the attack itself with more steps, and attacks of this package of another kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .attack import Attack
from .engine import Engine
from .errors import UserError
from .portfolio import Portfolio
from .registry import load
from .rows import take
from .subjects import Scene, Subjects

IMAGES = 16
_TIMES = (5, 2)  # the most that the passes allow
_PASSES = 1000  # forward passes that an image may cost

# By norm: attacks that need no gradient at the clean image, or many starts; each on the images that the last left.
_INWARD: tuple[str, dict[str, Any]] = ("inward", {"steps": 30, "restarts": 1, "reach": 2.0})
_OTHERS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "linf": (_INWARD,),
    "l2": (
        _INWARD,
        ("inward", {"steps": 20, "restarts": 2, "random_start": False, "shrink": 0.5, "eta": 1.05}),
    ),
    "l1": (
        ("apgd-ce", {"steps": 15, "restarts": 4}),
        ("inward", {"steps": 50, "restarts": 1, "reach": 30.0, "shrink": 0.75, "alpha_max": 0.1, "eta": 2.5}),
    ),
    "l0": (("sigma-zero", {"steps": 40}), ("pointwise", {"steps": 400, "tries": 100})),
}


@dataclasses.dataclass(frozen=True)
class _Few:
    """The looked-at images as a source of an engine."""

    x: Tensor
    y: Tensor
    eps: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next in order."""
        rows = slice(first, first + count)
        return torch.arange(len(self))[rows], self.x[rows], self.y[rows], self.eps[rows]

    def images(self, index: Tensor) -> Tensor:
        """The images at these places."""
        return self.x[index]


def longer(attack: Attack, scene: Scene) -> tuple[Attack, int] | None:
    """The same attack with several times its steps, and how many times; None where it has none or they cost much."""
    if isinstance(attack, Portfolio) or attack.learns or not isinstance(getattr(attack, "steps", None), int):
        return None
    for times in _TIMES:
        try:
            more = dataclasses.replace(attack, steps=attack.steps * times)  # type: ignore[attr-defined, call-arg]
        except (TypeError, UserError):
            return None
        calls = more.calls(scene.threat)
        if calls is not None and sum(calls) <= 2 * _PASSES:
            return more, times
    return None


def continued(
    attack: Attack, scene: Scene, *, seed: int, target: str | int | None, learned: Mapping[str, Tensor] | None = None
) -> tuple[str, Tensor] | None:
    """What more steps of the attack, from its own first start, bring to the goal, (n,) bool: some of the first images.

    The same seed and step size: an attack whose steps do not depend on their number goes on where it ended.
    """
    found = longer(attack, scene)
    if found is None:
        return None
    more, times = found
    fooled = torch.zeros(len(scene.left.y), dtype=torch.bool, device=scene.left.y.device)
    some = take(scene.left, torch.arange(min(IMAGES, len(fooled)), device=fooled.device))
    fooled[: len(some.y)] = _fooled(more, scene, some, seed=seed, target=target, learned=learned)
    return f"more steps: the attack with {times} times its steps", fooled


def others(attack: Attack, scene: Scene, *, seed: int, target: str | int | None) -> tuple[str, Tensor] | None:
    """What attacks of this package find that begin outside the ball or from many starts, (n,) bool; None after `auto`.

    Ascents from the clean image stall where a network masks its gradients, as one trained in another norm does.
    """
    if isinstance(attack, load("attacks", "auto")):
        return None  # it has run them
    fooled = torch.zeros(len(scene.left.y), dtype=torch.bool, device=scene.left.y.device)
    names: list[str] = []
    for number, (name, options) in enumerate(_OTHERS[scene.threat.norm]):
        other = load("attacks", name)
        left = (~fooled).nonzero()[:, 0]
        if not len(left) or (target is not None and not other.targeted):
            continue
        found = _fooled(
            other(**options), scene, take(scene.left, left), seed=seed, target=target, tag=f" second look {number}"
        )
        fooled[left] = found
        names += [name] if name not in names else []
    return (f"other attacks: {' and '.join(names)}", fooled) if names else None


def _fooled(
    attack: Attack,
    scene: Scene,
    some: Subjects,
    *,
    seed: int,
    target: str | int | None,
    tag: str = "",
    learned: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Which images an attack brings to the goal within eps, (n,) bool."""
    engine = Engine(
        attack,
        scene.network,
        _Few(some.x.cpu(), some.y.cpu(), some.eps.cpu()),
        threat=scene.threat,
        target=target,
        seed=seed,
        batch_size=len(some.y),
        votes=scene.votes,
        within=True,
        tag=tag,
        learned=learned,
    )
    fooled = torch.zeros_like(some.y, dtype=torch.bool)
    for entry, _ in engine.run():
        fooled[entry.index.to(fooled.device)] = entry.success.to(fooled.device)
    return fooled
