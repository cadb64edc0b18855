"""The attack itself, gone on with for more steps on a few images that it left standing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from .attack import Attack
from .engine import Engine
from .errors import UserError
from .portfolio import Portfolio
from .subjects import Scene

IMAGES = 16
_TIMES = (5, 2)  # the most that the passes allow
_PASSES = 1000  # forward passes that an image may cost


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

    The same seed and step size: an attack whose steps do not hang on their number goes on where it ended.
    """
    found = longer(attack, scene)
    if found is None:
        return None
    more, times = found
    left = scene.left
    few = _Few(left.x[:IMAGES].cpu(), left.y[:IMAGES].cpu(), left.eps[:IMAGES].cpu())
    engine = Engine(
        more,
        scene.network,
        few,
        threat=scene.threat,
        target=target,
        seed=seed,
        batch_size=len(few),
        votes=scene.votes,
        within=True,
        learned=learned,
    )
    fooled = torch.zeros(len(left.y), dtype=torch.bool, device=left.y.device)
    for entry, _ in engine.run():
        fooled[entry.index.to(fooled.device)] = entry.success.to(fooled.device)
    return f"more steps: the attack with {times} times its steps", fooled
