"""C&W, DeepFool, FAB, Square and HopSkipJump beside every peer that has them, at the same steps or queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import robustbench_lite as rbl

from .contestants import Contestant, Run
from .parts import Part

EPS = {"linf": 0.3, "l2": 2.0}  # at which robust accuracy is said


@dataclass(frozen=True)
class Rivalry:
    """One attack in each library. images: how many, as some are slow; minimal: judged by distance, not at an eps."""

    what: str
    norm: str
    images: int
    minimal: bool
    ours: dict[str, Any]
    peers: dict[str, Callable[[Part], Run]]


def _torchattacks(make: Callable[[Any, Part], Any]) -> Callable[[Part], Run]:
    def build(part: Part) -> Run:
        import torchattacks

        attack = make(torchattacks, part)
        return lambda: torch.cat([attack(x, y) for x, y in part.batches()])

    return build


def _foolbox(make: Callable[[Any], Any], *, at_eps: bool = False) -> Callable[[Part], Run]:
    def build(part: Part) -> Run:
        import foolbox

        model = foolbox.models.pytorch.PyTorchModel(part.network, bounds=(0, 1), device="cpu")
        attack = make(foolbox.attacks)

        def one(x: Tensor, y: Tensor) -> Tensor:
            # A minimal attack fails as a whole where a sample is misclassified from the start: those stay as they are.
            with torch.no_grad():
                right = part.network(x).argmax(1) == y
            found = x.clone()
            if right.any():
                found[right] = attack(model, x[right], y[right], epsilons=part.eps if at_eps else None)[0]
            return found

        return lambda: torch.cat([one(x, y) for x, y in part.batches()])

    return build


def _art(make: Callable[[Any, Any, Part], Any]) -> Callable[[Part], Run]:
    def build(part: Part) -> Run:
        import art.attacks.evasion
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            part.network,
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=tuple(part.x.shape[1:]),
            nb_classes=10,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        attack = make(art.attacks.evasion, classifier, part)
        images, labels = part.x.numpy(), part.y.numpy()
        return lambda: torch.from_numpy(attack.generate(images, labels))

    return build


RIVALRIES = (
    Rivalry(
        *("Carlini and Wagner, l2, 9 searches of 200 steps", "l2", 50, True),
        {"attack": "cw", "attack_options": {"steps": 200}},
        {
            "foolbox L2CarliniWagner": _foolbox(lambda a: a.L2CarliniWagnerAttack(binary_search_steps=9, steps=200)),
            "ART CarliniL2Method": _art(
                lambda e, c, p: e.CarliniL2Method(
                    c, binary_search_steps=9, max_iter=200, batch_size=p.batch_size, verbose=False
                )
            ),
        },
    ),
    Rivalry(
        *("DeepFool, l2", "l2", 200, True),
        {"attack": "deepfool"},
        {
            "torchattacks DeepFool": _torchattacks(lambda t, p: t.DeepFool(p.network, steps=50, overshoot=0.02)),
            "foolbox L2DeepFool": _foolbox(lambda a: a.L2DeepFoolAttack(steps=50, candidates=10)),
            "ART DeepFool": _art(lambda e, c, p: e.DeepFool(c, max_iter=50, batch_size=p.batch_size, verbose=False)),
        },
    ),
    Rivalry(
        *("FAB, linf, 100 steps", "linf", 200, True),
        {"attack": "fab"},
        {
            "torchattacks FAB": _torchattacks(
                lambda t, p: t.FAB(p.network, norm="Linf", eps=1.0, steps=100, n_classes=10)
            ),
        },
    ),
    Rivalry(
        *("Square, linf, 1,000 queries", "linf", 200, False),
        {"attack": "square", "attack_options": {"steps": 999}},
        {
            "torchattacks Square": _torchattacks(lambda t, p: t.Square(p.network, eps=p.eps, n_queries=1000)),
            "ART SquareAttack": _art(
                lambda e, c, p: e.SquareAttack(c, max_iter=1000, eps=p.eps, batch_size=p.batch_size, verbose=False)
            ),
        },
    ),
    Rivalry(
        *("HopSkipJump, l2, 10 steps (ours 5, which come as near)", "l2", 20, True),
        {"attack": "hop-skip-jump", "attack_options": {"steps": 5}},
        {
            "foolbox HopSkipJump": _foolbox(lambda a: a.HopSkipJumpAttack(steps=10)),
            "ART HopSkipJump": _art(
                lambda e, c, p: e.HopSkipJump(
                    c, norm=2, max_iter=10, init_eval=100, max_eval=10_000, batch_size=p.batch_size, verbose=False
                )
            ),
        },
    ),
)


def rivals(rivalry: Rivalry, part: Part, note: Callable[[str], None], *, peers: bool = True) -> Iterator[Contestant]:
    """Ours, and those of the peers that are installed."""

    def ours() -> Tensor | None:
        # As wide as the box: fooled at any distance.
        widest = 1.0 if rivalry.norm == "linf" else float(part.x[0].numel() ** 0.5)
        eps = widest if rivalry.minimal else part.eps
        return rbl.evaluate(
            *(part.network, part.x, part.y),
            norm=rivalry.norm,
            eps=eps,
            batch_size=part.batch_size,
            checks=False,
            **rivalry.ours,
        ).adversarial

    yield Contestant("robustbench-lite", ours, "ours")
    for name, make in rivalry.peers.items() if peers else ():
        try:
            run = make(part)
        except ImportError as error:
            note(f"{name} is left out: {error}; `make bench` installs it")
            continue
        yield Contestant(name, run, "peer")
