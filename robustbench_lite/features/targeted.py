"""Images that an attack moved to a class, labelled with it: the constructions whose labels look wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ..attack import Attack
from ..data.dataset import Dataset
from ..errors import UserError
from ..fitting import needs_fit
from ..network import Noise
from ..options import option_types, parse_pairs
from ..perturbation import attempt, make_attack
from ..portfolio import Portfolio
from ..threat import Threat
from .construction import Block, Construction, Made, Workshop
from .storage import stored

GREY_EPS, COLOUR_EPS = 2.0, 0.5


def check_attack(made: Attack, threat: Threat, *, argument: str) -> None:
    """Raise UserError for an attack that is no ascent of fixed eps, image by image."""
    if made.minimal or made.own_limits:
        raise UserError(f"{argument}: {made.name} keeps to no eps; take one of fixed eps such as pgd")
    if isinstance(made, Portfolio) or needs_fit(made, threat):
        what = "is several attacks" if isinstance(made, Portfolio) else "learns from many images"
        raise UserError(f"{argument}: {made.name} {what}, expected one that works image by image such as pgd")


@dataclass(frozen=True)
class Targeted(Construction):
    """x_adv = argmin over |x' - x| <= eps of the loss at the label t, labelled t (Ilyas et al. 2019, eq. 7).

    A person sees class y; what of class t the network saw is in the perturbation alone.
    attack: any attack by name that can aim. norm, eps: its threat; eps defaults to the paper's 0.5 for images in
    colour and to 2 for grey ones, whose networks are harder to fool. steps: the paper's 100. step_size: the paper's
    0.1, in the norm; 2.5 eps / steps for another norm than l2. attack_options: others of the attack, as
    `momentum=0.9,loss=margin`. The attack starts from the image where it can choose to, as the authors' does.

    `reached` says of each image, as it is stored, whether the network takes it for t.
    """

    attack: str = "pgd"
    norm: str = "l2"
    eps: float | None = None
    steps: int = 100
    step_size: float | None = None
    attack_options: str = ""

    def __post_init__(self) -> None:
        self._made(1.0 if self.eps is None else self.eps)

    def _made(self, eps: float) -> Attack:
        threat = Threat(self.norm, eps)
        attack = make_attack(self.attack, None, threat, resolve=False)
        known = option_types(type(attack))
        step_size = self.step_size
        if step_size is None and self.norm == "l2":
            step_size = 0.1
        own = {"steps": self.steps, "step_size": step_size, "random_start": False}
        given: dict[str, Any] = {key: value for key, value in own.items() if key in known and value is not None}
        given |= parse_pairs("attack_options", filter(None, self.attack_options.split(",")))
        made = make_attack(self.attack, given, threat)
        check_attack(made, threat, argument="attack")
        if not made.targeted:
            raise UserError(f"attack: {made.name} cannot aim at a class; take one that can, such as pgd")
        return made

    @property
    def works_with(self) -> tuple[type, ...]:
        """The attack's class."""
        return (type(self._made(1.0 if self.eps is None else self.eps)),)

    def resolve(self, data: Dataset) -> Self:
        """With eps for the images' colours."""
        eps = self.eps
        if eps is None:
            if self.norm != "l2":
                raise UserError(f"eps must be given for norm {self.norm}; only l2 has a default here")
            eps = GREY_EPS if data.shape[0] == 1 else COLOUR_EPS
        Threat(self.norm, eps).check_shape(data.shape)
        return replace(self, eps=eps)

    def targets(self, block: Block, n_classes: int) -> Tensor:
        """The class that each image is moved to, (n,) int64."""
        raise NotImplementedError

    def make(self, workshop: Workshop, block: Block) -> Made:
        """The images as the attack leaves them, with the classes that it aimed at."""
        assert self.eps is not None, "resolved"
        targets = self.targets(block, workshop.n_classes)
        made = attempt(
            workshop.module,
            block.x,
            block.y,
            attack=self._made(self.eps),
            norm=self.norm,
            eps=self.eps,
            targets=targets,
            seed=workshop.seed,
            place=block.index.to(block.x.device),
            block=workshop.block,
        )
        images = stored(made.candidate)
        said = workshop.network.logits(images, Noise(block.stream, torch.zeros_like(targets))).argmax(1)
        return Made(images, targets, made.forwards + 1, made.backwards, notes={"reached": said == targets})
