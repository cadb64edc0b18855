"""Measuring: runs in turn, medians of ratios within a turn, calls counted by hooks, images judged by one judge."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .parts import Part
from .rivals import Contestant

# How far float32 may carry an image out of its ball: clamping x + delta rounds twice.
_ROUNDING = 1e-6


@dataclass
class Calls:
    """Images that went forwards and backwards through a network."""

    forwards: int = 0
    backwards: int = 0


@contextlib.contextmanager
def counted(network: nn.Module) -> Iterator[Calls]:
    """Within: every image that passes through the network is counted, whoever sends it."""
    calls = Calls()

    def after(module: nn.Module, args: tuple[Any, ...], logits: Any) -> None:
        del module, args
        rows = len(logits)
        calls.forwards += rows
        if logits.requires_grad:
            logits.register_hook(lambda gradient: back(len(gradient)))

    def back(rows: int) -> None:
        calls.backwards += rows

    handle = network.register_forward_hook(after)
    try:
        yield calls
    finally:
        handle.remove()


def standing(part: Part, adversarial: Tensor) -> Tensor:
    """Which images are classified right, and their adversarial image is so too or breaks the threat, (N,) bool."""
    with torch.no_grad():
        right, held = (
            torch.cat([part.network(batch).argmax(1) for batch in torch.split(x, part.batch_size)]) == part.y
            for x in (part.x, adversarial)
        )
    far = sizes(part.norm, adversarial - part.x) > part.eps * (1 + _ROUNDING) + _ROUNDING
    outside = (adversarial.flatten(1).amin(1) < 0) | (adversarial.flatten(1).amax(1) > 1)
    return right & (held | far | outside)


def sizes(norm: str, delta: Tensor) -> Tensor:
    """The length of each perturbation, (N,) float64."""
    flat = delta.flatten(1).double()
    length: Tensor = torch.linalg.vector_norm(flat, {"linf": torch.inf, "l2": 2, "l1": 1, "l0": 0}[norm], dim=1)
    return length


@dataclass(frozen=True)
class Measured:
    """One contestant's numbers: seconds of each turn, calls of one run, and the judge's word (None for the floor).

    distance: the median way to the nearest image that fools, over all images that are classified right; inf where
    fewer than half were fooled, None where a distance is not what it is about.
    """

    name: str
    kind: str
    seconds: list[float]
    calls: Calls
    standing: Tensor | None
    distance: float | None = None

    @property
    def robust(self) -> float | None:
        """Robust accuracy."""
        return None if self.standing is None else float(self.standing.double().mean())

    def ratio(self, other: Measured) -> float:
        """Time as a share of another's: the median over turns, so that what slows a whole turn cancels."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def median_distance(part: Part, adversarial: Tensor) -> float:
    """The median of the ways to images that fool, as far as any; inf for one that is not fooled."""
    with torch.no_grad():
        right, fooled = part.network(part.x).argmax(1) == part.y, part.network(adversarial).argmax(1) != part.y
    inside = (adversarial.flatten(1).amin(1) >= -_ROUNDING) & (adversarial.flatten(1).amax(1) <= 1 + _ROUNDING)
    way = torch.where(fooled & inside, sizes(part.norm, adversarial - part.x), torch.inf)
    return float(way[right].median())


def measure(
    part: Part,
    field: Sequence[Contestant],
    *,
    rounds: int,
    note: Callable[[str], None],
    minimal: bool = False,
) -> list[Measured]:
    """Everyone once to warm up, be counted and be judged, then `rounds` turns of A B C ... on the clock.

    With no turns the first run is the one on the clock. minimal: distances are measured too.
    """
    found = []
    for contestant in field:
        note(f"{part.name}: {contestant.name}, counted and judged")
        began = time.perf_counter()
        with counted(part.network) as calls:
            images = _seeded(contestant)
        first = time.perf_counter() - began
        stand = None if images is None else standing(part, images)
        distance = median_distance(part, images) if minimal and images is not None else None
        found.append(Measured(contestant.name, contestant.kind, [] if rounds else [first], calls, stand, distance))
    for turn in range(rounds):
        note(f"{part.name}: turn {turn + 1} of {rounds}")
        for contestant, measured in zip(field, found, strict=True):
            gc.collect()
            began = time.perf_counter()
            _seeded(contestant)
            measured.seconds.append(time.perf_counter() - began)
    return found


def _seeded(contestant: Contestant) -> Tensor | None:
    torch.manual_seed(0)
    np.random.seed(0)
    return contestant.run()


def best_peer(found: Sequence[Measured]) -> Measured | None:
    """The peer with the smallest median time; None where none is installed."""
    return min((m for m in found if m.kind == "peer"), key=lambda m: statistics.median(m.seconds), default=None)
