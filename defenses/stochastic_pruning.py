"""Small activations left out at random, large ones seldom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError
from robustbench_lite.streams import uniform_like

NONLINEAR = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Hardswish)


@dataclass(frozen=True)
class StochasticPruning(InferenceDefense):
    """After each nonlinearity keeps activations by a chance that grows with their size (Dhillon et al. 2018, alg. 1).

    samples: draws with replacement from the activations, each drawn in proportion to its size, as a multiple of their
    number, > 0; what is never drawn becomes 0 and the rest is divided by its chance of being kept. Which are kept has
    no gradient: attacks follow that of what is kept, averaged (EOT), under which it holds nothing off (Athalye et al.
    2018, section 5.4). Departure: each activation is kept or not by a draw of its own with that chance,
    1 - (1 - p)^draws.
    adaptive: pgd averaged over what is kept (Athalye et al. 2018, section 5.4).
    """

    name: ClassVar[str] = "stochastic-pruning"
    summary: ClassVar[str] = "leaves out small activations at random"
    source: ClassVar[str] = "Dhillon et al. 2018, arXiv:1803.01442"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}
    randomized: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    samples: float = 1.0

    def __post_init__(self) -> None:
        if not self.samples > 0:
            raise UserError(f"samples must be > 0, got {self.samples:g}")

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network pruned anew at every call. Raises UserError for one without a layer that is a nonlinearity."""
        if not any(isinstance(layer, NONLINEAR) for layer in model.modules()):
            raise UserError("--defense stochastic-pruning: the network has no layer such as nn.ReLU to prune after")
        return Pruned(model, self.samples)


class Pruned(nn.Module):
    """A network whose activations are thinned out."""

    def __init__(self, model: nn.Module, samples: float) -> None:
        super().__init__()
        self.model = model
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""

        def prune(_layer: nn.Module, _inputs: Any, activation: Tensor) -> Tensor:
            size = activation.detach().double().abs()
            share = size / size.flatten(1).sum(1).clamp_min(1e-300).reshape(-1, *[1] * (size.ndim - 1))
            draws = self.samples * size[0].numel()
            chance = -torch.expm1(draws * torch.log1p(-share.clamp_max(1 - 1e-12)))
            kept = uniform_like(activation) < chance
            return activation * torch.where(kept, 1 / chance.clamp_min(1e-300), 0).to(activation.dtype)

        layers = [layer for layer in self.model.modules() if isinstance(layer, NONLINEAR)]
        handles = [layer.register_forward_hook(prune) for layer in layers]
        try:
            return self.model(x)  # type: ignore[no-any-return]
        finally:
            for handle in handles:
                handle.remove()
