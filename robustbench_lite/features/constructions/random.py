"""Images moved to a class drawn at random, and labelled with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_lite.features.construction import Block
from robustbench_lite.features.targeted import Targeted


@dataclass(frozen=True)
class Random(Targeted):
    """D_rand: t uniform over all classes, y among them (Ilyas et al. 2019, arXiv:1905.02175, section 3.2).

    So a robust feature tells nothing of the label: what is learned comes from the perturbations.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "images that an attack moved to a random class, labelled with that class"
    source: ClassVar[str] = "Ilyas et al. 2019, arXiv:1905.02175, section 3.2"
    symbol: ClassVar[str] = "D_rand"

    def targets(self, block: Block, n_classes: int) -> Tensor:
        """Drawn for each image."""
        return block.stream.child("target").integers(n_classes)
