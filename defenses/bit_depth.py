"""Fewer bits a pixel: rounding away what is small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError


@dataclass(frozen=True)
class BitDepth(InferenceDefense):
    """Rounds every pixel to 2**bits levels (Xu et al. 2018, "Feature squeezing", arXiv:1704.01155).

    Its gradient is zero almost everywhere, so attacks go through the identity (BPDA), under which
    it was found to help little (He et al. 2017, arXiv:1706.04701).
    adaptive: pgd through the identity, with steps enough to cross levels (He et al. 2017).
    """

    name: ClassVar[str] = "bit-depth"
    summary: ClassVar[str] = "rounds pixels to 2**bits levels"
    source: ClassVar[str] = "Xu et al. 2018, arXiv:1704.01155"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}
    differentiable: ClassVar[bool] = False

    bits: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise UserError(f"bits must be in 1..16, got {self.bits}")

    def transform(self, x: Tensor) -> Tensor:
        """Pixels at the nearest of 2**bits even levels of [0, 1]."""
        levels = 2**self.bits - 1
        seen: Tensor = (x * levels).round() / levels
        return seen
