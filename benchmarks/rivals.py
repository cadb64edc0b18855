"""Attacks of the peers as functions of a part, and an attack of ours with the peers' that are the same."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import robustbench_lite as rbl
from robustbench_lite.registry import load
from robustbench_lite.threat import Threat

from .parts import PARTS, Part, own

Run = Callable[[], Tensor | None]
Build = Callable[[Part], Run]


@dataclass(frozen=True)
class Contestant:
    """A way to attack: `run` takes no argument and gives the adversarial images, or None for the floor.

    kind: "floor", "ours", "peer" (the best of them is what others are compared with) or "other".
    """

    name: str
    run: Run
    kind: str


@dataclass(frozen=True)
class Said:
    """An option of a peer's attack that every contestant is given alike: a field of the part, by name."""

    name: str


EPS, STEPS, STEP_SIZE, NORM = Said("eps"), Said("steps"), Said("step_size"), Said("norm")


@dataclass(frozen=True)
class Rivalry:
    """One attack of ours and the same of the peers, with the same steps or queries, at one eps.

    steps, step_size (in units of eps): of ours and, where their options are `STEPS` and `STEP_SIZE`, of the peers'.
    options: of ours alone. on: "robust", "standard" or a network of nets.RECIPES. reasons: by peer, why ours may
    leave more.
    """

    attack: str
    norm: str
    on: str
    eps: float
    peers: Mapping[str, Build]
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    step_size: float = 0.0
    images: int = 100
    what: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)

    def part(self, batch_size: int) -> Part:
        """What every contestant is given."""
        made = _loaded(self.on, self.images, batch_size)
        title = f"{made.title.partition(', linf')[0]}, {self.norm}, robust accuracy at {self.eps:g}"
        size = self.step_size * self.eps
        return replace(made, title=title, norm=self.norm, eps=self.eps, steps=self.steps, step_size=size)

    @property
    def minimal(self) -> bool:
        """Whether it looks for the nearest image, and is judged by the distance too."""
        return bool(load("attacks", self.attack).minimal)

    def settings(self) -> dict[str, Any]:
        """The options of ours."""
        said = {"steps": self.steps, "step_size": self.step_size * self.eps}
        return {**self.options, **{name: value for name, value in said.items() if value}}

    def ours(self, part: Part) -> Run:
        """The run of ours."""
        # As wide as the box where the nearest is looked for: fooled at any distance.
        shape = tuple(part.x.shape[1:])
        eps = Threat(part.norm, 0).widest(shape) if self.minimal else part.eps

        def run() -> Tensor | None:
            return rbl.evaluate(
                *(part.network, part.x, part.y),
                attack=self.attack,
                attack_options=self.settings(),
                norm=part.norm,
                eps=eps,
                batch_size=part.batch_size,
                checks=False,
            ).adversarial

        return run


@functools.cache
def _loaded(on: str, images: int, batch_size: int) -> Part:
    if on in PARTS:
        return PARTS[on](images, 0, batch_size)
    return own(on, images, batch_size, lambda text: print(text, file=sys.stderr))


def torchattacks(name: str, **options: Any) -> dict[str, Build]:
    """An attack of torchattacks by name; an option that is `Said` is the part's."""

    def build(part: Part) -> Run:
        import torchattacks as library

        attack = getattr(library, name)(part.network, **_said(options, part))
        return lambda: torch.cat([attack(x, y) for x, y in part.batches()])

    return {f"torchattacks {name}": build}


def foolbox(name: str, **options: Any) -> dict[str, Build]:
    """An attack of foolbox by name, without the judgement that a call of it adds."""

    def build(part: Part) -> Run:
        import foolbox as library

        model = library.models.pytorch.PyTorchModel(part.network, bounds=(0, 1), device="cpu")
        given = _said(options, part)
        if "distance" in given:
            given["distance"] = getattr(library.distances, given["distance"])
        attack = getattr(library.attacks, name)(**given)
        at = {"epsilon": part.eps} if isinstance(attack, library.attacks.base.FixedEpsilonAttack) else {}

        def one(x: Tensor, y: Tensor) -> Tensor:
            # A minimal attack fails as a whole where a sample is misclassified from the start: those stay as they are.
            with torch.no_grad():
                right = part.network(x).argmax(1) == y
            found = x.clone()
            if right.any():
                found[right] = attack.run(model, x[right], y[right])
            return found

        if at:
            return lambda: torch.cat([attack.run(model, x, y, **at) for x, y in part.batches()])
        return lambda: torch.cat([one(x, y) for x, y in part.batches()])

    return {f"foolbox {name}": build}


def art(name: str, **options: Any) -> dict[str, Build]:
    """An attack of ART by name, in the part's batches and silent."""
    return _art(name, options, probabilities=False)


def art_of_probabilities(name: str, **options: Any) -> dict[str, Build]:
    """An attack of ART that wants a network that ends in a softmax, and labels as rows of zeros and a one."""
    return _art(name, options, probabilities=True)


def _art(name: str, options: Mapping[str, Any], *, probabilities: bool) -> dict[str, Build]:

    def build(part: Part) -> Run:
        import art.attacks.evasion

        kind = getattr(art.attacks.evasion, name)
        common = {"batch_size": part.batch_size, "verbose": False}
        given = {key: value for key, value in common.items() if key in inspect.signature(kind).parameters}
        attack = kind(_classifier(part, probabilities), **{**given, **_said(options, part)})
        images = part.x.numpy()
        labels = (torch.nn.functional.one_hot(part.y, 10) if probabilities else part.y).numpy()
        return lambda: torch.from_numpy(attack.generate(images, labels))

    return {f"ART {name}": build}


def _classifier(part: Part, probabilities: bool) -> Any:
    """The part's network as ART wants it."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        torch.nn.Sequential(part.network, torch.nn.Softmax(1)) if probabilities else part.network,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(part.x.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def _said(options: Mapping[str, Any], part: Part) -> dict[str, Any]:
    return {key: getattr(part, value.name) if isinstance(value, Said) else value for key, value in options.items()}


def rivals(rivalry: Rivalry, part: Part, note: Callable[[str], None], *, peers: bool = True) -> Iterator[Contestant]:
    """Ours, and those of the peers that are installed."""
    yield Contestant("robustbench-lite", rivalry.ours(part), "ours")
    yield from installed(rivalry.peers if peers else {}, part, note)


def installed(peers: Mapping[str, Build], part: Part, note: Callable[[str], None]) -> Iterator[Contestant]:
    """The peers that are installed; `note` is told of one that is not."""
    for name, build in peers.items():
        try:
            run = build(part)
        except ImportError as error:
            note(f"{name} is left out: {error}; `make bench` installs it")
            continue
        except Exception as error:  # an option that this version does not take, say
            note(f"{name} is left out: {type(error).__name__}: {error}")
            continue
        yield Contestant(name, run, "peer")
