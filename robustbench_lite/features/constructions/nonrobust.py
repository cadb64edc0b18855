"""Images that hold a standard network's features and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustbench_lite.features.matching import Matching


@dataclass(frozen=True)
class NonRobust(Matching):
    """D_NR: features of a standard network, labels as they were (Ilyas et al. 2019, arXiv:1905.02175, section 3.1)."""

    name: ClassVar[str] = "nonrobust"
    summary: ClassVar[str] = "images that have the features of a standard network alone"
    source: ClassVar[str] = "Ilyas et al. 2019, arXiv:1905.02175, section 3.1"
    symbol: ClassVar[str] = "D_NR"
