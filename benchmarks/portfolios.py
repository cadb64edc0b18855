"""`auto` beside the reference: torchattacks' AutoAttack, and our own `autoattack`, which is the same call for call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import robustbench_lite as rbl

from .parts import Part
from .rivals import Contestant, Run

REFERENCE = "torchattacks AutoAttack"
STEPS = 100  # of each gradient attack, in the paper


def _ours(part: Part, attack: str, **options: object) -> Run:
    def run() -> Tensor | None:
        return rbl.evaluate(
            part.network,
            part.x,
            part.y,
            attack=attack,
            attack_options=options,
            norm=part.norm,
            eps=part.eps,
            batch_size=part.batch_size,
            checks=False,
        ).adversarial

    return run


def _torchattacks(part: Part, steps: int | None) -> Run:
    """The other library's, as shipped (10 steps of each gradient attack) or with as many as the paper has."""
    import torchattacks

    name = {"linf": "Linf", "l2": "L2"}[part.norm]
    attack = torchattacks.AutoAttack(part.network, norm=name, eps=part.eps, version="standard", n_classes=10, seed=0)
    for inner in attack._autoattack.attacks:
        if steps is not None and hasattr(inner, "steps"):
            inner.steps = steps
    return lambda: torch.cat([attack(x, y) for x, y in part.batches()])


def portfolios(part: Part, note: Callable[[str], None], *, peers: bool = True) -> Iterator[Contestant]:
    """The other library's where it is installed, our `autoattack`, and `auto` by effort."""
    if peers:
        try:
            yield Contestant(f"{REFERENCE}, {STEPS} steps", _torchattacks(part, STEPS), "peer")
            yield Contestant(f"{REFERENCE}, as shipped", _torchattacks(part, None), "other")
        except ImportError as error:
            note(f"{REFERENCE} is left out: {error}; `make bench` installs it")
    yield Contestant("robustbench-lite autoattack", _ours(part, "autoattack"), "ours")
    for effort in ("quick", "standard"):
        yield Contestant(f"robustbench-lite auto, {effort}", _ours(part, "auto", effort=effort), "ours")
