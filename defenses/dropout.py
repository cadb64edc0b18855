"""Training with inputs of layers left out at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import dropout

from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError

if TYPE_CHECKING:
    from robustbench_lite.training import Trainer


@dataclass(frozen=True)
class Dropout(TrainingDefense):
    """Leaves out each input of the linear layers with probability `share` while learning (Srivastava et al. 2014).

    The network itself stays as it is, and is whole once trained. share: in [0, 1). That it does not defend was seen
    by Goodfellow et al. 2015; what is left out at test time is `dropout-at-test`.
    """

    name: ClassVar[str] = "dropout"
    summary: ClassVar[str] = "learns with inputs of linear layers left out"
    source: ClassVar[str] = "Srivastava et al. 2014, jmlr.org/papers/v15/srivastava14a"

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"share must be in [0, 1), got {self.share:g}")

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The inner loss of what is left of the network."""
        del trainer

        def leave_out(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (dropout(inputs[0], self.share, training=layer.training), *inputs[1:])

        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        handles = [layer.register_forward_pre_hook(leave_out) for layer in layers]
        try:
            return inner(network, x, y)
        finally:
            for handle in handles:
                handle.remove()
