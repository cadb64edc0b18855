"""Training on what fools other networks."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.models.weights import written_files
from robustbench_lite.options import parse_pairs
from robustbench_lite.perturbation import make_attack
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class EnsembleAdversarialTraining(TrainingDefense):
    """Half of the loss on images, half on those that an attack makes on one of several networks (Tramer et al. 2018).

    The network of a batch is drawn at random: one of `models`, which stay as they are, or the one that is trained.
    models: files of weights that `rbl train` wrote, with commas between. attack, attack_options: fgsm in the paper.
    norm, eps: the threat. It helps against transfer and not against the attack itself (table 4 of the paper).
    adaptive: pgd on the network itself, against which the paper claims little.
    """

    name: ClassVar[str] = "ensemble-adversarial-training"
    summary: ClassVar[str] = "trains on images that fool other networks"
    source: ClassVar[str] = "Tramer et al. 2018, arXiv:1705.07204"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}

    models: str = ""
    attack: str = "fgsm"
    norm: str = "linf"
    eps: float = 8 / 255
    attack_options: str = ""

    def __post_init__(self) -> None:
        make_attack(self.attack, self._options(), Threat(self.norm, self.eps))
        self._files()

    def _options(self) -> dict[str, str]:
        return parse_pairs("attack_options", filter(None, self.attack_options.split(",")))

    def _files(self) -> list[str]:
        return written_files(self.models, argument="models")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The mean of both losses."""
        files = self._files()
        shape = (x.shape[1], x.shape[2], x.shape[3])
        drawn = int(torch.randint(len(files) + 1, ()))
        source = network if drawn == len(files) else _network(files[drawn], trainer.classes, shape).to(x.device)
        threat = {"attack": self.attack, "norm": self.norm, "eps": self.eps}
        seen = trainer.perturb(source, x, y, options=self._options(), **threat)  # type: ignore[arg-type]
        return 0.5 * inner(network, x, y) + 0.5 * inner(network, seen, y)


@functools.lru_cache(maxsize=8)
def _network(file: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    from robustbench_lite.models import load_written

    return load_written(file, n_classes=classes, shape=shape, argument="models").module
