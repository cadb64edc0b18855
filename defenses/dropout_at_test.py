"""Inputs of layers left out at random whenever the network answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from robustbench_lite.defense import InferenceDefense
from robustbench_lite.errors import UserError
from robustbench_lite.streams import uniform_like


@dataclass(frozen=True)
class DropoutAtTest(InferenceDefense):
    """Leaves out each input of the linear layers with probability `share` at every call (compare Feinman et al. 2017).

    share: in [0, 1). Randomised: attacks average over it, and predictions are taken over many draws. It is told apart
    from `dropout`, which does so while learning and not at test time.
    adaptive: pgd averaged over what is left out (compare Athalye et al. 2018, arXiv:1802.00420).
    """

    name: ClassVar[str] = "dropout-at-test"
    summary: ClassVar[str] = "leaves out inputs of linear layers at every call"
    source: ClassVar[str] = "compare Feinman et al. 2017, arXiv:1703.00410"
    adaptive: ClassVar[str] = "pgd"
    adaptive_options: ClassVar[Mapping[str, Any]] = {"steps": 100}
    randomized: ClassVar[bool] = True

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"share must be in [0, 1), got {self.share:g}")

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network with its linear layers' inputs thinned out."""
        return Thinned(model, self.share)


class Thinned(nn.Module):
    """A network whose linear layers see their inputs with some left out, the others enlarged to make up for it."""

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__()
        self.model = model
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""

        def leave_out(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            kept = uniform_like(inputs[0]) >= self.share
            return (inputs[0] * kept / (1 - self.share), *inputs[1:])

        layers = [layer for layer in self.model.modules() if isinstance(layer, nn.Linear)]
        handles = [layer.register_forward_pre_hook(leave_out) for layer in layers]
        try:
            return self.model(x)  # type: ignore[no-any-return]
        finally:
            for handle in handles:
                handle.remove()
