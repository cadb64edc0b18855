"""Whether the samples of an attack are apart: from each other, from other runs, and from a run that was stored."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..attack import Attack
from ..engine import Engine, Entry
from ..network import Network
from ..rows import concat, take, to_tensors
from ..threat import Threat
from .check import Failed
from .driver import COUNT, MOST, SAME, STEPS, Driver, Running, difference, driver_of, samples_of, threat_of
from .samples import Counted, Shape, images, linear_network


def check_order(attack: Attack, shape: Shape) -> str:
    """A sample alone, in a batch and in another order, in every norm, with and without targets."""
    order = torch.arange(COUNT - 1, -1, -1)
    parts = [("in another order", order)] + [("alone", torch.tensor([row])) for row in (0, COUNT - 1)]
    for norm in attack.norms:
        driver = driver_of(attack, norm, shape)
        x, y = samples_of(driver, shape)
        for targets in (None, (y + 1) % 3) if attack.targeted else (None,):
            batch = driver.batch(x, y, targets=targets)
            together = driver.run(batch, steps=STEPS)
            for what, rows in parts:
                apart = driver.run(take(batch, rows), steps=STEPS)
                when = f"when it is attacked {what} ({norm}{'' if targets is None else ', targeted'})"
                _agree([take(running, rows) for running in together], apart, when)
    return "a sample's candidates are the same alone, in a batch and in any order"


def _agree(expected: Sequence[Running], came: Sequence[Running], when: str) -> None:
    for step, (one, other) in enumerate(zip(expected, came, strict=True)):
        gap = difference(one, other)
        if gap > SAME:
            much = f"by {gap:.2g}" if math.isfinite(gap) else "or its count of passes"
            raise Failed(
                f"it mixes samples: a sample's state at step {step} changes {much} {when}; "
                "no operation may cross the first axis"
            )


def check_refill(driver: Driver, shape: Shape) -> str:
    """New samples join while others are under way: each has its own step."""
    batch = driver.batch(*samples_of(driver, shape))
    half = torch.arange(COUNT // 2)
    early, late = take(batch, half), take(batch, half + COUNT // 2)
    length = min(STEPS, driver.attack.length)
    apart = [driver.run(part, steps=length) for part in (early, late)]
    joined = driver.start(early)
    lead = max(1, length // 2)
    for _ in range(min(lead, length)):
        joined = driver.step(joined)
    joined = concat([joined, driver.start(late)])
    for step in range(length - lead):
        joined = driver.step(joined)
        when = "when other samples of its batch are at another step (batch.step has one number a sample)"
        _agree([apart[0][lead + step + 1]], [take(joined, half)], when)
        _agree([apart[1][step + 1]], [take(joined, half + COUNT // 2)], when)
    return "samples that join later fare as they would alone"


class Images:
    """A source for the engine."""

    def __init__(self, x: Tensor, y: Tensor, threat: Threat) -> None:
        self.x, self.y, self.eps = x, y, threat.each(len(y))

    def __len__(self) -> int:
        """How many."""
        return len(self.y)

    def fetch(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next in order."""
        index = torch.arange(first, min(first + count, len(self)))
        return index, self.x[index], self.y[index], self.eps[index]

    def images(self, index: Tensor) -> Tensor:
        """Any of them."""
        return self.x[index]


def _engine(
    driver: Driver,
    attack: Attack,
    x: Tensor,
    *,
    target: str | int | None = None,
    size: int = 3,
    max_queries: int | None = None,
) -> Engine:
    return Engine(
        attack,
        Network(driver.model, n_classes=driver.classes),
        Images(x, driver.labels(x), driver.threat),
        threat=driver.threat,
        target=target,
        batch_size=size,
        max_queries=max_queries,
        learned=driver.fit((x.shape[1], x.shape[2], x.shape[3])).learned,
    )


def check_limit(attack: Attack, shape: Shape) -> str:
    """No sample costs more forward passes than it may, by its own count and by the network's."""
    driver = driver_of(attack, attack.norms[0], shape, alone=False)
    x = images(COUNT, shape)
    for limit in (1, 2, 17):
        engine = _engine(driver, driver.attack, x, max_queries=limit)
        engine.network.model = counted = Counted(driver.model)
        with torch.no_grad():
            found = concat([entry for entry, _ in engine.run() if len(entry.y)])
        most = int(found.forwards.max())
        if most > limit or counted.forwards != int(found.forwards.sum()):
            raise Failed(
                f"with max_queries={limit} a sample costs {most} forward passes; the network saw {counted.forwards}, "
                f"{int(found.forwards.sum())} were told"
            )
    return "a limit of queries binds"


def check_resume(attack: Attack, shape: Shape) -> str:
    """An engine stored in the middle and restored, by an attack made anew, goes on to the last bit."""
    driver = driver_of(attack, attack.norms[0], shape, alone=False)
    x = images(COUNT, shape)
    with torch.no_grad():
        for moment in (2, 4):
            engine = _engine(driver, driver.attack, x)
            going = engine.run()
            for _ in range(moment):
                next(going, None)
            stored = engine.snapshot()
            # What the attack does for others in between must not matter.
            for _ in zip(range(3), _engine(driver, driver.attack, images(4, shape, seed=5)).run(), strict=False):
                pass
            other = _engine(driver, copy.deepcopy(driver.attack), x)
            other.restore(stored)
            resumed = other.run()
            for _ in range(STEPS):
                if not _same(next(going, None), next(resumed, None)):
                    raise Failed("a run that was stored and restored finds something else; keep all in the state")
            mine, others = engine.snapshot(), other.snapshot()
            wrong = sorted(mine.keys() ^ others.keys()) or [n for n in mine if not torch.equal(mine[n], others[n])]
            if wrong:
                raise Failed(
                    f"a run that was stored and restored goes on differently ({wrong[0]}); keep all in the state"
                )
    return "a stored run goes on to the last bit"


def _same(one: tuple[Entry, Tensor] | None, other: tuple[Entry, Tensor] | None) -> bool:
    if one is None or other is None:
        return one is other
    mine, others = to_tensors(one[0]), to_tensors(other[0])
    return all(torch.equal(mine[name], others[name]) for name in mine)


def check_targets(attack: Attack, shape: Shape) -> str:
    """The class aimed at makes a difference, and a success is at it."""
    driver = driver_of(attack, attack.norms[0], shape, classes=4)
    x, y = samples_of(driver, shape)
    runs = [driver.run(driver.batch(x, y, targets=(y + turn) % 4), steps=STEPS) for turn in (1, 2)]
    asked = int(runs[0][-1].forwards.sum())
    if asked and all(difference(a, b) == 0 for a, b in zip(*runs, strict=True)):
        raise Failed("the class that it aims at makes no difference; use batch.targets, or state targeted = False")
    driver = Driver(attack, threat_of(attack, attack.norms[0]), linear_network(shape, classes=4), 4)
    for target in ("next", 0):
        engine = _engine(driver, driver.attack, images(COUNT, shape), target=target, size=COUNT)
        with torch.no_grad():
            for _, (entry, _x) in zip(range(MOST), engine.run(), strict=False):
                wrong = entry.success & ((entry.adversarial_prediction != entry.target) | (entry.target == entry.y))
                if bool(wrong.any()):
                    raise Failed("a success was counted that is not at its target")
    return "aims at the class it is told" if asked else "it asks the network nothing, so it cannot aim"
