"""The features of a network: what enters its last linear layer, found in any network that has one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .foreign import ask
from .modes import parts_with_hooks
from .network import frozen

ARGUMENT = "--model"


def last_linear(model: nn.Module, x: Tensor) -> nn.Linear:
    """The `nn.Linear` that is called last on the way from images x (N, C, H, W) to logits (N, K).

    x passes through the model once, in evaluation mode. Raises UserError for a network without a linear layer, for
    one whose last does not take a row an image, and for one that calls it twice.
    """
    calls: list[tuple[nn.Linear, Tensor]] = []

    def look(module: nn.Module, args: Any, _out: Any) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((module, args[0]))

    handles = [part.register_forward_hook(look) for _, part in parts_with_hooks(model) if isinstance(part, nn.Linear)]
    try:
        with frozen(model), torch.no_grad():
            logits = ask(model, x)
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise UserError(f"{ARGUMENT}: the network has no linear layer, so no penultimate one; give one that ends in it")
    layer, given = calls[-1]
    if given.ndim != 2 or len(given) != len(x) or not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError(
            f"{ARGUMENT}: the last linear layer takes {tuple(given.shape)} for {len(x)} images, expected a row each; "
            "give a network that ends in a linear layer"
        )
    if layer.out_features != logits.shape[1]:
        raise UserError(
            f"{ARGUMENT}: the last linear layer gives {layer.out_features} numbers, the network {logits.shape[1]}; "
            "give a network that ends in a linear layer"
        )
    if sum(one is layer for one, _ in calls) > 1:
        raise UserError(f"{ARGUMENT}: the last linear layer is called more than once; its input is no one feature")
    return layer


class Penultimate(nn.Module):
    """Images (N, C, H, W) in [0, 1] to the features (N, F) of a network: what enters its last linear layer.

    The representation g of Ilyas et al. 2019 (arXiv:1905.02175, section 3.1). x: images by which the layer is found.
    Raises UserError as `last_linear` does.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> Penultimate(net, torch.rand(1, 1, 2, 2))(torch.rand(5, 1, 2, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model = model
        self.layer = last_linear(model, x)
        self.n_features = self.layer.in_features

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        seen: list[Tensor] = []
        handle = self.layer.register_forward_pre_hook(lambda _layer, args: seen.append(args[0].clone()))
        try:
            ask(self.model, x)
        finally:
            handle.remove()
        return seen[-1]


class OneFeature(nn.Module):
    """One feature as two logits, f and -f, so that an attack by name moves it: label 0 says that f should be large.

    The margin of label 0 is 2 f and that of label 1 is -2 f, so what lowers the margin makes y f small.
    """

    def __init__(self, features: Penultimate, number: int) -> None:
        super().__init__()
        self.features, self.number = features, number

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2) of images (N, C, H, W)."""
        value = self.features(x)[:, self.number]
        return torch.stack([value, -value], 1)
