"""Logits divided by a temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError


@dataclass(frozen=True)
class Temperature(InferenceDefense):
    """Divides the logits by `temperature` when the network is asked (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    Below 1 it makes the network surer: the softmax rounds to zeros and ones, and an attack on the textbook's cross
    entropy sees no gradient, though no prediction has changed. Above 1 it undoes that: divided by the temperature that
    a network was distilled at, its logits give the old attacks their gradients back (Carlini and Wagner 2017,
    arXiv:1608.04644, section VIII). No attack here is moved by either: their losses do not saturate.
    adaptive: any attack on logits that does not saturate (Carlini and Wagner 2017).
    """

    name: ClassVar[str] = "temperature"
    summary: ClassVar[str] = "divides the logits, which hides or restores gradients and changes no prediction"
    source: ClassVar[str] = "Guo et al. 2017, arXiv:1706.04599; Carlini and Wagner 2017, arXiv:1608.04644"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100, "loss": "margin"}

    temperature: float = 0.01

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature must be > 0, got {self.temperature:g}")

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network with its logits divided."""
        return Divided(model, self.temperature)


class Divided(nn.Module):
    """A network at a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.model(x)
        return logits / self.temperature
