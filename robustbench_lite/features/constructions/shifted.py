"""Images moved to the class after their own, and labelled with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_lite.features.construction import Block
from robustbench_lite.features.targeted import Targeted


@dataclass(frozen=True)
class Shifted(Targeted):
    """D_det: t = y + 1, the last class followed by the first (Ilyas et al. 2019, arXiv:1905.02175, section 3.2).

    So robust features point away from the right answer: who learns them says y + 1 of a real image.
    """

    name: ClassVar[str] = "shifted"
    summary: ClassVar[str] = "images that an attack moved to the class after their own, labelled with it"
    source: ClassVar[str] = "Ilyas et al. 2019, arXiv:1905.02175, section 3.2"
    symbol: ClassVar[str] = "D_det"

    def targets(self, block: Block, n_classes: int) -> Tensor:
        """The next class."""
        return (block.y + 1) % n_classes
