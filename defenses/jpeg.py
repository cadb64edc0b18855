"""Images packed as JPEG before the network sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError
from robustbench_lite.filters import jpeg


@dataclass(frozen=True)
class Jpeg(InferenceDefense):
    """Packs every image as JPEG and unpacks it (Guo et al. 2018, arXiv:1711.00117; Das et al. 2017, arXiv:1705.02900).

    Rounding leaves no gradient, so attacks go through the identity (BPDA), under which it holds nothing off (Athalye
    et al. 2018, arXiv:1802.00420, section 5.3). quality: 1..100; 75 is Guo's.
    adaptive: pgd through the identity (Athalye et al. 2018, section 5.3).
    """

    name: ClassVar[str] = "jpeg"
    summary: ClassVar[str] = "packs and unpacks images as JPEG"
    source: ClassVar[str] = "Guo et al. 2018, arXiv:1711.00117"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}
    differentiable: ClassVar[bool] = False

    quality: int = 75

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality must be in 1..100, got {self.quality}")

    def transform(self, x: Tensor) -> Tensor:
        """The image unpacked; one or three channels together, of others each by itself."""
        return jpeg(x, self.quality)
