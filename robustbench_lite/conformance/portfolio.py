"""The checks of a portfolio; each of its parts is an attack, with the checks of one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..attack import Attack
from ..engine import Entry
from ..network import Network
from ..options import option_types
from ..portfolio import Part, Portfolio, engine_for
from ..rows import concat, take
from ..threat import BALLS, Threat
from .apart import Images
from .check import Checks, Failed, plural
from .driver import COUNT, STEPS, Driver, driver_of, threat_of
from .samples import Shape, images

_RANK = {"label": 0, "score": 1, "gradient": 2}


def check_portfolio(attack: Portfolio, checks: Checks, shape: Shape) -> None:
    """Add the checks of a portfolio on images of this shape."""
    if checks.run("declaration", lambda: _declared(attack)):
        checks.run("parts", lambda: _parts(attack))
        checks.run("rows", lambda: _rows(attack, shape))


def _declared(attack: Portfolio) -> str:
    if type(attack).parts is Portfolio.parts:
        raise Failed("parts is not written")
    unknown = [norm for norm in attack.norms if norm not in BALLS]
    if unknown or not attack.norms:
        raise Failed(f"norms must name some of {', '.join(BALLS)}, got {attack.norms!r}")
    return f"{attack.access}, {', '.join(attack.norms)}"


def _parts(attack: Portfolio) -> str:
    said = []
    for norm in attack.norms:
        given = attack.parts(threat_of(attack, norm))
        if not given or not all(isinstance(part, Attack | Part) for part in given):
            raise Failed(f"parts must return instances of robustbench_lite.Attack or Part, got {given!r} ({norm})")
        parts = [Part.of(part).attack for part in given]
        for part in parts:
            if isinstance(part, Portfolio):
                raise Failed(f"a part is a portfolio itself: {part.name}; give its parts")
            if norm not in part.norms:
                raise Failed(f"its part {part.name} has no {norm}; leave that norm out, or the part")
            if _RANK[part.access] > _RANK[attack.access]:
                raise Failed(f"its part {part.name} asks for {part.access} access, it declares {attack.access}")
            if attack.targeted and not part.targeted:
                raise Failed(f"its part {part.name} cannot aim at a class; state targeted = False")
        said.append(f"{norm}: {', '.join(part.name for part in parts)}")
    return "; ".join(said)


@dataclass(frozen=True)
class _Short(Portfolio):
    """A portfolio whose parts take a few steps each, so that images reach the last."""

    whole: Portfolio

    def parts(self, threat: Threat) -> tuple[Part, ...]:
        """Those of the whole, shorter."""
        return tuple(
            replace(part, attack=replace(part.attack, steps=min(STEPS, part.attack.steps)))  # type: ignore[call-arg, attr-defined]
            if "steps" in option_types(type(part.attack))
            else part
            for part in map(Part.of, self.whole.parts(threat))
        )


def _run(driver: Driver, attack: Portfolio, shape: Shape, size: int) -> Entry:
    x = images(COUNT, shape)
    network = Network(driver.model, n_classes=driver.classes, block=1)
    source = Images(x, driver.labels(x), driver.threat)
    chain = engine_for(attack, network, source, threat=driver.threat, batch_size=size)
    with torch.no_grad():
        done = concat([entry for entry, _ in chain.run() if len(entry.y)])
    return take(done, done.index.argsort())


def _rows(attack: Portfolio, shape: Shape) -> str:
    short = _Short(attack)
    for name in ("name", "access", "norms", "targeted"):
        object.__setattr__(short, name, getattr(attack, name))
    fooled = 0
    for norm in attack.norms:
        driver = driver_of(attack, norm, shape)
        one, other = (_run(driver, short, shape, size) for size in (3, COUNT))
        for name in ("success", "forwards", "backwards"):
            if not torch.equal(getattr(one, name), getattr(other, name)):
                raise Failed(f"{name} depends on the batch size ({norm})")
        fooled += int(one.success.sum())
    return f"{fooled} of {plural(COUNT * len(attack.norms), 'image')} fooled, the same at any batch size"
