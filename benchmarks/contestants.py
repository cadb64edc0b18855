"""Who is compared: plain gradients as the floor, robustbench-lite, and the peers, each set up at its best."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import robustbench_lite as rbl

from .parts import Part

Run = Callable[[], Tensor | None]


@dataclass(frozen=True)
class Contestant:
    """A way to attack: `run` takes no argument and gives the adversarial images, or None for the floor.

    kind: "floor", "ours", "peer" (the best of them is what others are compared with) or "other".
    """

    name: str
    run: Run
    kind: str


def _floor(part: Part) -> Run:
    """As many gradients of cross entropy as the attack takes steps, at the clean images, and nothing else."""

    def run() -> None:
        for x, y in part.batches():
            for _ in range(part.steps):
                leaf = x.detach().requires_grad_()
                torch.autograd.grad(torch.nn.functional.cross_entropy(part.network(leaf), y, reduction="sum"), leaf)

    return run


def _ours(part: Part, *, stop_on_success: bool) -> Run:
    def run() -> Tensor | None:
        return rbl.evaluate(
            part.network,
            part.x,
            part.y,
            attack="pgd",
            norm="linf",
            eps=part.eps,
            batch_size=part.batch_size,
            stop_on_success=stop_on_success,
            checks=False,
            attack_options={"steps": part.steps, "step_size": part.step_size},
        ).adversarial

    return run


def _torchattacks(part: Part) -> Run:
    import torchattacks

    attack = torchattacks.PGD(part.network, eps=part.eps, alpha=part.step_size, steps=part.steps, random_start=True)
    return lambda: torch.cat([attack(x, y) for x, y in part.batches()])


def _foolbox(part: Part) -> Run:
    import foolbox.attacks.projected_gradient_descent
    import foolbox.models.pytorch

    model = foolbox.models.pytorch.PyTorchModel(part.network, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.projected_gradient_descent.LinfProjectedGradientDescentAttack(
        abs_stepsize=part.step_size, steps=part.steps, random_start=True
    )
    # `run` is the attack without the judgement that a call of it adds.
    return lambda: torch.cat([attack.run(model, x, y, epsilon=part.eps) for x, y in part.batches()])


def _art(part: Part) -> Run:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        part.network,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(part.x.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        eps=part.eps,
        eps_step=part.step_size,
        max_iter=part.steps,
        num_random_init=1,
        batch_size=part.batch_size,
        verbose=False,
    )
    images, labels = part.x.numpy(), part.y.numpy()
    return lambda: torch.from_numpy(attack.generate(images, labels))


_ALL: tuple[tuple[str, str, Callable[[Part], Run]], ...] = (
    ("40 plain gradients", "floor", _floor),
    ("robustbench-lite, nothing dropped", "ours", functools.partial(_ours, stop_on_success=False)),
    ("robustbench-lite, as shipped", "ours", functools.partial(_ours, stop_on_success=True)),
    ("torchattacks PGD", "peer", _torchattacks),
    ("foolbox LinfPGD", "peer", _foolbox),
    ("ART PGD (PyTorch)", "peer", _art),
)


def contestants(part: Part, note: Callable[[str], None], *, peers: bool = True) -> Iterator[Contestant]:
    """All that are installed, or all but the peers; `note` is told of a peer that is not."""
    for name, kind, make in _ALL:
        if kind == "peer" and not peers:
            continue
        try:
            run = make(part)
        except ImportError as error:
            note(f"{name} is left out: {error}; `make bench` installs it")
            continue
        yield Contestant(name.replace("40", str(part.steps)), run, kind)
